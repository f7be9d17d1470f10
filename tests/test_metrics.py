"""Scores, tests and distortions against published values or brute force; what is said of them."""

import itertools
import json
import math
import re
from types import SimpleNamespace as Fake
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import RECONSTRUCTED, TINY, examples, run_cell_with
from scipy import ndimage
from test_training import warp

TESTS = ("test", "augmented_test")
BIG = ("resnet50v2", "mobilenetv2")
FOUR = (0.9, 0.8, 0.7, 0.6), (0, 1, 2, 40), (0, 1, 2, 3)  # three of four are right
NOISE = np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype("uint8")  # to the edges
BOX = np.pad(np.full((8, 8, 8), 255, "uint8"), ((0, 0), (10, 10), (10, 10)))  # eight images
LAMBDA = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Lambda(lambda x: x)])
KEYS = [f"{name}_{variant}" for name in ("custom", *BIG) for variant in ("without_da", "with_da")]
KEYS.append("softmax_with_da")  # accuracies on both test sets, recall on validation:
ACCURACIES = {key: (0.9 - n / 100, 0.88 - n / 50, 0.9 + n / 100) for n, key in enumerate(KEYS)}
SPEEDS = {"custom": 9000.0, "resnet50v2": 600.0, "mobilenetv2": 1500.0, "softmax": 10.0}
SPEEDS["mobilenetv2_56px"] = 4500.0
GAPS = ((0.0075, 0.05), (0.0035, 0.0499), (0.02, 1e-6), (-0.023, 0.2), (0.01, 0.001), (0.11, 1e-9))
BAD = (("custom", LAMBDA.to_json(), "arbitrary code"), ("mobilenetv2", "x", "zip file"))


def sure(confidence, read):
    """Return float32 probabilities (N, 47) with `confidence` on the classes `read`."""
    confidence = np.broadcast_to(confidence, len(read))
    found = np.repeat((1 - confidence[:, None]) / 46, 47, axis=1)
    found[np.arange(len(read)), read] = confidence
    return found.astype("float32")


SCORES = (
    ("accuracy", 0.75, *FOUR),
    ("macro_f1", 4 / 15, 0.9, [0, 2, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2]),  # scikit-learn's example
    ("macro_f1", (1 + 2 / 3) / 2, 0.9, [7, 3, 46], [7, 3, 3]),  # over the classes that occur
    ("nll", -math.log(0.9 * 0.8 * 0.7 * 0.4 / 46) / 4, *FOUR),
    ("nll", -math.log(1e-12), 1, [1], [2]),  # finite
    ("ece", 0.5, 1, [0] * 4, [0, 0, 1, 1]),  # 1 belongs to the last bin
    ("ece", 0.1, (0.61, 0.61, 0.91, 0.91), [0] * 4, [0, 1, 0, 0]),  # bins do not cancel out
    ("ece", 0.22, (0.71, 0.73), [0, 0], [0, 1]),  # in one bin: |1 - 1.44| / 2
    ("ece", 0.515, (0.71, 0.74), [0, 0], [0, 1]),  # in two, whose border is 11/15
    ("ci95", (0.2553, 0.3662), 0.9, [1] * 81 + [2] * 182, [1] * 263),  # Newcombe 1998, table I
)


@pytest.mark.parametrize("name, expected, confidence, read, labels", SCORES)
def test_score(nb, name, expected, confidence, read, labels):
    found = nb.score(sure(confidence, read), np.array(labels))
    assert found[name] == pytest.approx(expected, abs=6e-5)
    assert json.loads(json.dumps(found)) == found


def test_top3_counts_what_is_strictly_above(nb):
    for above, ties, expected in ((2, 0, 1), (3, 0, 0), (2, 41, 1), (3, 1, 0)):
        row = np.full((1, 47), 0.01, "float32")
        row[0, 5 : 6 + ties] = 0.1  # which float32 and float64 round apart
        row[0, :above] = 0.3
        assert nb.score(row, np.array([5]))["top3"] == expected, (above, ties)


def test_merged_accuracy(nb):
    groups = ("0O", "1IL", "5S", "2Z", "9qg", "Ff")
    mixed = [pair for group in groups for pair in itertools.permutations(group, 2)]
    apart = [pair for pair in itertools.permutations(nb.CHARACTERS, 2) if pair not in mixed]
    for pairs, expected in ((mixed, 1), (apart, 0)):
        labels, read = np.array([[nb.CHARACTERS.index(c) for c in pair] for pair in pairs]).T
        found = nb.score(sure(0.9, read), labels)
        assert (found["merged_accuracy"], found["accuracy"]) == (expected, 0)


@pytest.mark.parametrize("gain, loss, tail", ((1, 9, 11), (9, 1, 11), (5, 15, 21_700), (0, 0, 1)))
def test_compare_pair(nb, gain, loss, tail):
    """Exact and two-sided: twice a binomial tail, such as (1 + 10) / 2^10; Wald's interval."""
    cells = np.repeat([(1, 0), (0, 1), (1, 1), (0, 0)], (gain, loss, 60, 40 - gain - loss), axis=0)
    found, middle = nb.compare_pair(*cells.astype(bool).T), (gain - loss) / 100
    half = 1.96 * math.sqrt(gain + loss - (gain - loss) ** 2 / 100) / 100
    assert (found["gain"], found["loss"], found["difference"]) == (gain, loss, middle)
    assert found["ci95"] == pytest.approx([middle - half, middle + half], abs=2e-6)
    assert found["p"] == pytest.approx(min(2 * tail / 2 ** (gain + loss), 1))
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("absent", ("none", "resnet50v2_without_da", "custom_with_da"))
def test_paired_tests(nb, absent):
    """Holm's correction, here of known values, counts the family that is shown, and no more."""
    family = [("custom_with_da", f"{name}_with_da") for name in BIG]
    family += [(f"{name}_with_da", f"{name}_without_da") for name in nb.ARCHITECTURES]
    shown = [(*pair, test) for pair in family if absent not in pair for test in TESTS]
    random, keys = np.random.RandomState(0), {*nb.MODELS} - {absent}
    right = {(key, test): random.rand(40) < 0.6 for key in sorted(keys) for test in TESTS}
    found = nb.paired_tests(right)
    assert [(entry["first"], entry["second"], entry["test"]) for entry in found] == shown
    for entry, (first, second, test) in zip(found, shown, strict=True):
        assert entry["gain"] == (right[first, test] & ~right[second, test]).sum()
    assert [each["p_holm"] for each in found] == nb.holm([each["p"] for each in found])
    assert nb.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert nb.holm([0.9, 0.6, 0.01]) == pytest.approx([1, 1, 0.03])
    assert nb.paired_tests({}) == []


def test_warp_is_bilinear(nb):
    """Each image by its own amounts, through `affine_rows`, as SciPy does it; 0 outside."""
    random = np.random.RandomState(0)
    reach = {"shift_x": 9, "shift_y": 9, "zoom_x": 0.5, "zoom_y": 0.25, "rotation": 3, "shear": 0.5}
    amounts = {key: ("zoom" in key) + random.uniform(-far, far, 5) for key, far in reach.items()}
    found, rows = nb.warp(NOISE, **amounts), nb.affine_rows(**amounts)
    for image, changed, numbers in zip(NOISE, found, np.transpose(rows), strict=True):
        assert np.abs(changed - warp(image.astype(float), numbers)).max() <= 0.5 + 1e-6


def test_augmented_test_set(nb):
    """The copy that models were scored on, as RandomState's stream is frozen (NumPy's NEP 19)."""
    path = nb.find_file(RECONSTRUCTED, nb.FILES["test", "images"])
    images = nb.parse_idx(nb.read_bytes(path), "images", path).swapaxes(1, 2)  # read-only
    digest = "29846be26c7e5cfb1acfb93a6a7fdd6e9f67fafa853bca7a3dfa6fb9f79f719e"
    assert nb.sha256(nb.augment_test_set(images)) == digest


def test_distorted(nb):
    """Nothing at 0, else every image is changed, in the same way each time."""
    for kind, strength in ((kind, each) for kind, many in nb.STRENGTHS.items() for each in many):
        found = nb.distorted(NOISE, kind, strength)
        assert found.dtype == np.uint8 and (found == nb.distorted(NOISE, kind, strength)).all()
        assert ((found != NOISE).any((1, 2)) == (strength != 0)).all(), (kind, strength)
    shift, zoom, rotation, *_ = nb.AUGMENTATION.values()
    assert [*nb.COVERED.values()] == pytest.approx([rotation, 28 * shift, 100 * zoom])


def test_distorted_each_way(nb):
    def sides(kind, strength):
        white = nb.distorted(BOX, kind, strength) > 127
        return [white.any(axis).sum(1).tolist() for axis in (1, 2)]

    shifted = nb.distorted(BOX, "shift, pixels", 2.8)
    moved = np.round([ndimage.center_of_mass(image) for image in shifted], 2) - 13.5
    np.testing.assert_allclose(moved / 2.8, [[0, 1], [0, -1], [1, 0], [-1, 0]] * 2, atol=1e-9)
    assert sides("zoom, percent", 50) == [[12, 4] * 4] * 2
    for strength in (-2, -1, 1, 2):
        assert sides("stroke, pixels thicker", strength) == [[8 + strength] * 8] * 2
    for number, turned in enumerate(nb.distorted(NOISE, "rotation, degrees", 90)):
        assert (turned == np.rot90(NOISE[number], (-1) ** number)).all()  # counter-clockwise first
    for sigma in (0, 0.5, 1, 1.5, 2):  # a blur conserves the ink; variances add up
        found, squares = nb.distorted(BOX, "blur, sigma", sigma), (np.arange(28) - 13.5) ** 2
        assert found.sum() / BOX.sum() == pytest.approx(1, abs=0.005)
        variances = [np.average(squares, weights=found.sum((0, axis))) for axis in (1, 2)]
        assert variances == pytest.approx([(8**2 - 1) / 12 + sigma**2] * 2, rel=0.02)
    found = nb.distorted(np.full((400, 28, 28), 128, "uint8"), "noise, sigma", 20).astype(float)
    assert found.std() == pytest.approx(20, rel=0.02) and abs(found.mean() - 128) < 0.2
    assert nb.distorted(np.full((1, 28, 28), 255, "uint8"), "noise, sigma", 20).min() > 128


def test_measure_robustness(nb, monkeypatch):
    every = [(kind, strength) for kind, many in nb.STRENGTHS.items() for strength in many]
    monkeypatch.setattr(nb, "distorted", lambda images, *how: images + every.index(how))
    monkeypatch.setattr(nb, "predict", lambda model, images: np.eye(47)[model[images]])
    labels, read = np.array([3, 4, 3, 9]), np.random.RandomState(0).choice([3, 4, 9, 1], 30)
    models = {"custom_with_da": read, "custom_without_da": np.full(30, 3)}
    found = nb.measure_robustness(models, np.zeros(4, int), labels)
    assert found["custom_without_da"] == dict.fromkeys(nb.STRENGTHS, [2] * 5)
    counts = [(labels == each).sum() for each in read]
    assert list(itertools.chain(*found["custom_with_da"].values())) == counts


def test_measure_speeds(nb, monkeypatch):
    """Median, lowest, highest; all in turn within a round; the first two are not counted."""
    calls, clock, seconds = [], [0.0], {"a": (9, 9, 1, 2, 4), "b": (9, 9, 0.5, 0.5, 0.25)}

    def predict(name, images):
        calls.append((name, len(images)))
        clock[0] += seconds[name][calls.count(calls[-1]) - 1]

    fakes = {n: Fake(predict_on_batch=lambda images, n=n: predict(n, images)) for n in "ab"}
    monkeypatch.setattr(nb, "time", Fake(perf_counter=lambda: clock[0]))
    found = nb.measure_speeds(fakes, batches=(1, 8), rounds=3)
    assert calls == [("a", 1), ("a", 8), ("b", 1), ("b", 8)] * 5
    assert found["a"] == {"1": [0.5, 0.2, 1], "8": [4, 2, 8]}
    assert found["b"] == {"1": [2, 2, 4], "8": [16, 16, 32]}


@pytest.mark.parametrize("name, bad, error", BAD)
def test_load_model(nb, tmp_path, monkeypatch, name, bad, error):
    """Published in parts or whole; what has another digest is not opened, and no code is run."""
    net, (images, _), key = nb.make_model("custom", **TINY), examples(1, 3), f"{name}_with_da"
    monkeypatch.setattr(nb, "PUBLISH", tmp_path)
    monkeypatch.setattr(nb, "PRETRAINED", tmp_path)
    file, *_ = nb.write_model(net, key)
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.write_sums(tmp_path))
    model = nb.load_model(key)
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype("float32")}
    assert getattr(model, "optimizer", None) is None
    np.testing.assert_allclose(nb.predict(model, images), nb.predict(net, images), atol=1e-3)
    with pytest.raises(FileNotFoundError, match=f"{name}_.*lists"):
        nb.load_model(f"{name}_without_da")
    (tmp_path / file).write_text(bad)
    with pytest.raises(ValueError, match=f"{file}: expected SHA-256"):
        nb.load_model(key)
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.write_sums(tmp_path))
    with pytest.raises(ValueError, match=f"(?s){key}: expected a model.*{error}"):
        nb.load_model(key)


@pytest.fixture
def record(nb):
    """A made-up results.json."""
    found = {"models": {}, "references": {}, "paired": [], "data": {"name": "made-up data"}}
    for key, (*accuracies, recall) in ACCURACIES.items():
        name, variant, _ = nb.parsed(key)
        model = found["references" if name == "softmax" else "models"].setdefault(name, {})
        model |= {"params": int(100 * SPEEDS[name]), "mflops": SPEEDS[name] / 1000}
        entry = model[variant] = {"epochs": 30, "seconds": 1234, "hardware": "a CPU"}
        entry |= {"validation_recall": recall, "seeds": []}
        for test, a in zip(TESTS, accuracies, strict=True):
            scores = {"accuracy": a, "ci95": [a - 0.012, a + 0.011], "top3": a + 0.08}
            entry[test] = {**scores, "merged_accuracy": a + 0.05}
    others = ("resnet50v2_with_da", "mobilenetv2_with_da", "custom_without_da")
    for (second, test), (gap, p) in zip(itertools.product(others, TESTS), GAPS, strict=True):
        entry = {"first": "custom_with_da", "second": second, "test": test, "p": p / 6, "p_holm": p}
        found["paired"].append({**entry, "difference": gap, "ci95": [gap - 0.004, gap + 0.005]})
    found["images_per_second"] = {name: {"256": [SPEEDS[name], 1.0, 2.0]} for name in SPEEDS}
    found["hardware"] = "made-up hardware"
    return found | {"robustness": {"images": 200, "strengths": {}, "right": {}}}


def test_keys_entries_and_summary(nb, record):
    assert nb.parsed("custom_with_da_seed7851") == ("custom", "with_da", "7851")
    assert nb.title_of("mobilenetv2_56px_without_da") == "MobileNetV2 at 56 px without DA"
    table = nb.summary(record)
    assert table["model"].tolist() == [nb.title_of(key) for key in KEYS[:6]]
    expected = ["Custom CNN with DA", "900,000", "9.0", "89.00 [87.80, 90.10]"]
    assert table.iloc[1].tolist() == [*expected, "86.00 [84.80, 87.10]", 30, "1,234", "a CPU"]
    del record["models"]["mobilenetv2"], record["models"]["custom"]["without_da"]
    assert [key for key, _, _ in nb.entries(record)] == [*KEYS[1:4], KEYS[6]]


def test_scores_table(nb, record):
    """Recorded beside measured here, empty where it was not; mean and deviation of the seeds."""
    live, custom = {("custom_with_da", "test"): {"accuracy": 0.8935}}, record["models"]["custom"]
    table, scores = nb.scores_table(record, "test", live), custom["with_da"]["test"]
    assert table.iloc[1, 1] == 0.8935 and table.iloc[:, 1].isna().sum() == 6
    assert table.iloc[1, 2:].to_dict() == {key: scores[key] for key in scores if key != "ci95"}
    augmented = nb.scores_table(record, "augmented_test", live)
    assert augmented["accuracy"].tolist() == [numbers[1] for numbers in ACCURACIES.values()]
    assert augmented["model"][4] == "MobileNetV2 without DA" and augmented.iloc[:, 1].isna().all()
    seeds = [dict(zip(TESTS, pair, strict=True)) for pair in ((0.892, 0.856), (0.888, 0.864))]
    custom["with_da"]["seeds"] = seeds  # as `collect` records them
    for test, text in zip(TESTS, ("3: 0.8900 ± 0.0020", "3: 0.8600 ± 0.0040"), strict=True):
        assert nb.scores_table(record, test, live)["seeds"].tolist() == ["", text, *[""] * 5]


def test_conclusions(nb, record):
    """Each difference has its interval and p; of what is not published nothing is claimed."""
    kinds = ("rotation, degrees", "noise, sigma", "stroke, thicker")
    record["robustness"]["strengths"] = dict.fromkeys(kinds, (-2, 20, 40, 60.0, 80))
    counts = {"with_da": (40, 1, 2, 160, 3), "without_da": (60, 1, 2, 90, 3)}
    right = {f"custom_{variant}": dict.fromkeys(kinds, each) for variant, each in counts.items()}
    record["robustness"]["right"] = right
    ours, speed, gain, beyond, lacks, last = said = nb.conclusions(record)
    text = "With DA the custom network (900,000 parameters, 9 MFLOPs) reads 89.0% of the"
    assert ours.startswith(f"{text} test images, 86.0% of the augmented; against ")
    _, resnet, mobile = (half.split(" and ") for half in ours.split("; against "))
    text = "{} that is {} points ({})".format
    first = text("ResNet50V2", "+0.75", "+0.35 to +1.25, p = 0.05; not significant")
    assert resnet == [first, "+0.35 points (-0.05 to +0.85, p = 0.05)"]
    first = text("MobileNetV2", "+2.00", "+1.60 to +2.50, p < 0.001")
    assert mobile == [first, "-2.30 points (-2.70 to -1.80, p = 0.2; not significant)"]
    assert "on made-up hardware the custom network is 15.0 times as fast as ResNet50V2" in speed
    assert "6.0 times" in speed and "2.0 times as fast as MobileNetV2 at 56 px" in speed
    assert gain.startswith("DA changes the accuracy of Custom CNN by +1.00 points")
    assert "+11.00 points" in gain
    noise, stroke = lacks.split(" network reads ")[1].split("; ")
    assert beyond.endswith(" network reads rotation (degrees) 60: 80% with DA, 45% without")
    assert noise == "noise (sigma) 60: 80% with DA, 45% without"
    assert stroke == "stroke (thicker) -2: 20% with DA, 30% without"
    assert re.search(r"45% .*97\.0%", last)  # 5 of 11 points
    backed = r"[+-]\d+\.\d\d points \([+-][\d.]+ to [+-][\d.]+, p [=<] [\d.]+(; not significant)?\)"
    assert len(re.findall(backed, " ".join(said))) == " ".join(said).count("points") == 6
    record["paired"], record["images_per_second"] = [], {"custom": {"256": [1.0]}}
    assert not any(nb.TITLES[name] in line for name in BIG for line in nb.conclusions(record))


def test_collect(nb, tmp_path):
    """What is published and loaded is counted and scored; a further seed needs the first."""
    (tmp_path / "last").write_bytes(b"12345")
    kept = {"version": 4, "epochs": 3, "seed": 5, "images": None}
    costs = {"seconds": 60, "validation_recall": 0.7, "temperature": 1.2, "hardware": "h"}
    record = {**costs, "files": ["first", "last"], "made_from": kept}
    keys = ["custom_with_da_seed7851", "lenet5_with_da", "custom_without_da", "custom_with_da"]
    live = {(key, test): {"accuracy": key + test} for key in keys for test in TESTS}
    loaded = dict.fromkeys(keys, Fake(layers=[], count_params=lambda: 7))
    with mock.patch.dict(vars(nb), {"live": live, "loaded": loaded, "PRETRAINED": tmp_path}):
        records = dict.fromkeys([*keys, "softmax_with_da", "custom_without_da_seed7851"], record)
        found = nb.collect(records)
        del loaded["custom_with_da"], loaded["lenet5_with_da"]
        assert list(nb.collect(records)["models"]["custom"]) == ["params", "mflops", "without_da"]
    custom, lenet5 = found["models"].pop("custom"), found["references"].pop("lenet5")
    assert found == {"models": {}, "references": {}}
    costs |= {**kept, "images": len(nb.splits["train"][1]), "file_bytes": 5}
    scores = {test: {"accuracy": f"lenet5_with_da{test}"} for test in TESTS}
    assert lenet5 == {"params": 7, "mflops": 0, "with_da": {**costs, **scores, "seeds": []}}
    assert custom["without_da"]["test"] == {"accuracy": "custom_without_datest"}
    seed = {test: f"custom_with_da_seed7851{test}" for test in TESTS}
    assert custom["with_da"]["seeds"] == [seed] and custom["without_da"]["seeds"] == []


def test_loading_goes_on_without_what_cannot_be_had(nb, capsys):
    faults = [FileNotFoundError("a"), ConnectionError("no server"), ValueError("bad file")]
    net, seed = Fake(count_params=lambda: 1234), "custom_with_da_seed7851"  # `full` alone loads it
    put = {"load_model": mock.Mock(side_effect=[*faults, net, net, net, net])}
    put |= {**dict.fromkeys(("loaded", "models")), "records": ["lenet5_with_da", seed]}
    with mock.patch.dict(vars(nb), put):
        run_cell_with(nb, "loaded[key] = load_model(key)")
        assert list(nb.models) == nb.MODELS[3:] and [*nb.loaded] == [*nb.models, "lenet5_with_da"]
    texts = ("a", "no server", "bad file", "1,234 parameters")
    said = [f"{key}: {text}" for key, text in zip(nb.MODELS, texts, strict=False)]
    assert capsys.readouterr().out.replace("Without ", "").splitlines()[:4] == said


def test_images_that_were_trained_on_are_dropped(nb, tmp_path, capsys):
    known, others = np.arange(5) == 3, [each + 1 for each in NOISE]
    np.save(tmp_path / "train_images.npy", nb.image_digests(NOISE[known]))
    put = {"test_images": NOISE, "test_labels": np.arange(5), "published": tmp_path.joinpath}
    put["test_sets"] = {"test": NOISE, "augmented_test": np.array(others)}
    with mock.patch.dict(vars(nb), {**put, "keep": None}):
        run_cell_with(nb, "keep = unseen(")
        assert nb.test_labels.tolist() == [0, 1, 2, 4] and nb.test_images is nb.test_sets["test"]
        for test, images in put["test_sets"].items():
            np.testing.assert_array_equal(nb.test_sets[test], images[~known])
    assert "1 of 5 test images" in capsys.readouterr().out


def test_other_data_are_not_compared(nb, record, capsys):
    """Accuracies that were measured on them have nothing to agree with."""
    put = {"results": record, "live": {}, "emnist": {"name": "other data"}, "show": mock.Mock()}
    put |= dict.fromkeys(("comparable", "note", "table", "gap"))
    for pair in itertools.product("ab", "ab"):
        digests = dict(zip(("test_digest", "augmented_digest"), pair, strict=True))
        record["data"] |= {"test_digest": "a", "augmented_digest": "a"}
        with mock.patch.dict(vars(nb), {**put, "digests": digests}):
            run_cell_with(nb, "comparable =")
        same = pair == ("a", "a")
        assert ("accuracies differ" in capsys.readouterr().out) == same
        assert ("not comparable" in str(put["show"].call_args)) != same


def test_draw_predictions(nb, monkeypatch):
    """What is read, how surely, and the truth where it is another."""
    monkeypatch.setattr(nb, "draw_grid", mock.Mock())
    nb.draw_predictions(NOISE[:2], np.array([10, 11]), sure(0.9, [10, 12]), "title")
    (_, titles, _, title, colors), _ = nb.draw_grid.call_args
    assert titles == ["A 90%", "C 90% [B]"] and title == "title"
    assert list(colors) == [nb.COLORS["custom"], nb.COLORS["resnet50v2"]]


def test_draw_comparison(nb, record):
    """Bars and intervals are the recorded ones; a variant that is missing is left out."""
    del record["models"]["resnet50v2"]["without_da"]
    keys = [f"{name}_{variant}" for variant in nb.VARIANTS for name in nb.ARCHITECTURES]
    keys.remove("resnet50v2_without_da")
    for number, axis in enumerate(nb.draw_comparison(record).axes):
        heights, bars = [ACCURACIES[key][number] for key in keys], axis.patches
        assert [bar.get_height() for bar in bars] == heights
        assert [bar.get_hatch() for bar in bars] == ["//"] * 2 + [None] * 3
        assert [bar.get_center()[0] for bar in bars] == pytest.approx([-0.2, 1.8, 0.2, 1.2, 2.2])
        assert [text.get_text() for text in axis.texts] == [f"{100 * a:.1f}" for a in heights]
        ends = [part[:, 1] for lines in axis.collections for part in lines.get_segments()]
        np.testing.assert_allclose(ends, [(a - 0.012, a + 0.011) for a in heights])
        assert axis.get_title() == list(nb.TEST_SETS.values())[number]
        assert axis.get_xticklabels()[2].get_text().startswith("MobileNetV2\n")


def test_draw_robustness(nb):
    """Shares and Wilson's intervals of each model at each strength of each kind."""
    looks, kinds = {"custom_without_da": "--", "mobilenetv2_with_da": "-"}, list(nb.STRENGTHS)
    right = {key: {kind: [20, n, len(key), 9, 0] for n, kind in enumerate(kinds)} for key in looks}
    figure = nb.draw_robustness({"images": 20, "strengths": nb.STRENGTHS, "right": right})
    for axis, kind in zip(figure.axes, kinds, strict=True):
        assert axis.get_xlabel() == kind
        for line, band, key in zip(axis.lines, axis.collections, looks, strict=True):
            shares = np.divide(right[key][kind], 20)
            np.testing.assert_allclose(line.get_data(), [nb.STRENGTHS[kind], shares])
            assert (line.get_linestyle(), line.get_label()) == (looks[key], nb.title_of(key))
            assert {0.1611, 0.8389} <= {*band.get_paths()[0].vertices[:, 1].round(4)}  # of 0 and 20


def test_draw_histories(nb):
    """The recorded curves of the architectures and variants that there are."""
    history = [{"accuracy": 0.8, "val_accuracy": 0.85}, {"accuracy": 0.9, "val_accuracy": 0.88}]
    keys = ("custom_without_da", "custom_with_da", "mobilenetv2_with_da", "softmax_with_da")
    figure = nb.draw_histories({key: {"history": history} for key in keys})
    for axis, title, count in zip(figure.axes, ("Custom CNN", "MobileNetV2"), (2, 1), strict=True):
        drawn = [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines]
        assert (axis.get_title(), drawn) == (title, [(1, 2, 0.8, 0.9), (1, 2, 0.85, 0.88)] * count)


def test_draw_errors(nb, record):
    """Of the loaded model that validation prefers; rows are true classes, columns what was read."""
    labels = np.repeat(np.arange(47), 3)
    read = np.where(np.isin(np.arange(141), (9, 10)), 5, labels)  # two of the three of class 3
    keys = ("custom_without_da", "custom_with_da")
    put = {"results": record, "models": dict.fromkeys(keys), "test_labels": labels}
    put["probabilities"] = {("custom_with_da", "test"): np.eye(47)[read]}
    with mock.patch.dict(vars(nb), put):
        run_cell_with(nb, "def best_by_validation")
        bars, shown = nb.above.patches, np.asarray(nb.below.images[0].get_array())
        put["show"] = mock.Mock()
        with mock.patch.dict(vars(nb), put):
            run_cell_with(nb, "share = errors")
    assert shown[3, 5] == 2 and np.count_nonzero(shown) == 1 and shown.shape == (47, 47)
    assert [bar.get_height() for bar in bars][2:5] == pytest.approx([1, 1 / 3, 1])
    assert put["show"].call_args[0][0].iloc[0].tolist() == ["3", "5", 2, 0.667]
