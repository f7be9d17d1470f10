"""Scores, tests and distortions against published values or brute force; what is said of them."""

import itertools
import json
import math
import re
from types import SimpleNamespace as Fake

import keras
import numpy as np
import pytest
from conftest import ROOT, TINY, examples, run_cell_with
from scipy import ndimage, stats

TESTS = ("test", "augmented_test")
BIG = ("resnet50v2", "mobilenetv2")
FOUR = (0.9, 0.8, 0.7, 0.6), (0, 1, 2, 40), (0, 1, 2, 3)  # three of four are right
SIX = 0.9, (0, 2, 1, 0, 0, 1), (0, 1, 2, 0, 1, 2)  # scikit-learn's example of a macro-F1
NOISE = np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype("uint8")  # to the edges
BOX = np.pad(np.full((8, 8, 8), 255, "uint8"), ((0, 0), (10, 10), (10, 10)))  # eight images
LAMBDA = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Lambda(lambda x: x)])


def sure(confidence, read):
    """Return float32 probabilities (N, 47) with `confidence` on the classes `read`."""
    confidence = np.broadcast_to(confidence, len(read))
    found = np.repeat((1 - confidence[:, None]) / 46, 47, axis=1)
    found[np.arange(len(read)), read] = confidence
    return found.astype("float32")


@pytest.mark.parametrize(
    "name, expected, confidence, read, labels",
    (
        ("accuracy", 0.75, *FOUR),
        ("macro_f1", 4 / 15, *SIX),
        ("macro_f1", (1 + 2 / 3) / 2, 0.9, [7, 3, 46], [7, 3, 3]),  # over the classes that occur
        ("nll", -math.log(0.9 * 0.8 * 0.7 * 0.4 / 46) / 4, *FOUR),
        ("nll", -math.log(1e-12), 1, [1], [2]),  # finite
        ("ece", (0.1 + 0.2 + 0.3 + 0.6) / 4, *FOUR),
        ("ece", 0.5, 1, [0] * 4, [0, 0, 1, 1]),  # 1 belongs to the last bin
        ("ece", 0, 0.7, [0] * 10, [0] * 7 + [1] * 3),
        ("ece", 0.1, (0.61, 0.61, 0.91, 0.91), [0] * 4, [0, 1, 0, 0]),  # bins do not cancel out
        ("ece", 0.22, (0.71, 0.73), [0, 0], [0, 1]),  # in one bin: |1 - 1.44| / 2
        ("ece", 0.515, (0.71, 0.74), [0, 0], [0, 1]),  # in two, whose border is 11/15
        ("ci95", (0.2553, 0.3662), 0.9, [1] * 81 + [2] * 182, [1] * 263),  # Newcombe 1998, table I
        ("ci95", (0, 0.1611), 0.9, [2] * 20, [1] * 20),
    ),
)
def test_score(nb, name, expected, confidence, read, labels):
    found = nb.score(sure(confidence, read), np.array(labels))
    assert found[name] == pytest.approx(expected, abs=6e-5)
    assert json.loads(json.dumps(found)) == found


def test_top3_counts_what_is_strictly_above(nb):
    for above, ties, expected in ((2, 0, 1), (3, 0, 0), (2, 44, 1), (3, 1, 0)):
        row, others = np.full((1, 47), 0.01, "float32"), np.delete(np.arange(47), 5)
        row[0, [5, *others[above : above + ties]]] = 0.1  # which float32 and float64 round apart
        row[0, others[:above]] = 0.3
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


def test_holm(nb):
    assert nb.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert nb.holm([0.02, 0.011]) == pytest.approx([0.022, 0.022])  # never out of order
    assert nb.holm([0.9, 0.6, 0.01]) == pytest.approx([1, 1, 0.03])


@pytest.mark.parametrize("absent", ("none", "resnet50v2_without_da", "custom_with_da"))
def test_paired_tests(nb, absent):
    """The family that is shown, and no more, is what Holm's correction counts."""
    family = [("custom_with_da", f"{name}_with_da") for name in BIG]
    family += [(f"{name}_with_da", f"{name}_without_da") for name in nb.ARCHITECTURES]
    left = [pair for pair in family if absent not in pair]
    random, keys = np.random.RandomState(0), [key for key in nb.MODELS if key != absent]
    right = {(key, test): random.rand(40) < 0.6 for key in keys for test in TESTS}
    found = nb.paired_tests(right)
    names = [(entry["first"], entry["second"], entry["test"]) for entry in found]
    assert names == [(*pair, test) for pair in left for test in TESTS]
    for entry, (first, second, test) in zip(found, names, strict=True):
        assert entry["gain"] == (right[first, test] & ~right[second, test]).sum()
    smallest = min(found, key=lambda entry: entry["p"])
    assert smallest["p_holm"] == pytest.approx(min(len(found) * smallest["p"], 1))
    assert nb.paired_tests({}) == []


def test_warp_is_bilinear(nb):
    """Each image by its own amounts, through `affine_rows`, as SciPy does it; 0 outside."""
    assert (nb.warp(NOISE) == NOISE).all()
    moved = nb.warp(NOISE, shift_x=3, shift_y=-5)  # right and up
    assert (moved[:, :23, 3:] == NOISE[:, 5:, :25]).all() and not moved[:, 23:].any()
    random = np.random.RandomState(0)
    reach = {"shift_x": 9, "shift_y": 9, "zoom_x": 0.5, "rotation": 3, "shear": 0.5}
    amounts = {key: (key == "zoom_x") + random.uniform(-far, far, 5) for key, far in reach.items()}
    amounts["zoom_y"] = 1.25
    found, rows = nb.warp(NOISE, **amounts), nb.affine_rows(**amounts)
    for image, changed, (a, b, c, d, e, f) in zip(NOISE, found, np.transpose(rows), strict=True):
        how = {"offset": (f, c), "order": 1, "mode": "grid-constant"}
        expected = ndimage.affine_transform(image.astype(float), [[e, d], [b, a]], **how)
        assert np.abs(changed - expected).max() <= 0.5 + 1e-6


def test_augmented_test_set_as_published(nb):
    """The models were scored on this copy; RandomState's stream is frozen (NumPy's NEP 19)."""
    path = ROOT / "data" / "reconstructed" / f"{nb.FILES['test', 'images']}.gz"
    stored = nb.parse_idx(nb.read_bytes(path), "images", path).swapaxes(1, 2)
    images = np.ascontiguousarray(stored)
    found = nb.sha256(nb.augment_test_set(images))
    assert found == "29846be26c7e5cfb1acfb93a6a7fdd6e9f67fafa853bca7a3dfa6fb9f79f719e"
    assert (images == stored).all(), "its input was changed"


def test_augmented_test_set_is_a_function_of_its_input(nb, monkeypatch):
    """Each image's distortion depends on its place alone, on no global state or other image."""
    found, other = nb.augment_test_set(NOISE), NOISE.copy()
    np.random.seed(1)
    monkeypatch.setattr(nb, "SEED", 1)
    other[3] = 0
    again = nb.augment_test_set(other)
    assert (np.delete(again, 3, 0) == np.delete(found, 3, 0)).all() and not again[3].any()
    assert (nb.augment_test_set(NOISE[::-1])[::-1] != found).any()
    monkeypatch.setattr(nb, "warp", lambda images, **amounts: amounts)
    drawn = nb.augment_test_set(np.zeros((5000, 28, 28), "uint8"))
    ranges = {key: [*np.quantile(drawn[key], (0, 0.25, 1)).round(2)] for key in drawn}
    assert ranges.pop("rotation") == [-0.35, -0.17, 0.35]  # 20 degrees in radians
    expected = {f"shift_{axis}": pytest.approx([-2.8, -1.4, 2.8], abs=0.1) for axis in "xy"}
    expected |= {f"zoom_{axis}": pytest.approx([0.8, 0.9, 1.2], abs=0.011) for axis in "xy"}
    assert ranges == expected and abs(np.corrcoef(list(drawn.values())) - np.eye(5)).max() < 0.08


def test_distorted(nb):
    """Nothing at 0, else every image is changed, in the same way each time; six kinds in all."""
    assert len(nb.STRENGTHS) == 6 and all(0 in strengths for strengths in nb.STRENGTHS.values())
    for kind, strength in ((kind, each) for kind, many in nb.STRENGTHS.items() for each in many):
        found = nb.distorted(NOISE, kind, strength)
        assert found.dtype == np.uint8 and (found == nb.distorted(NOISE, kind, strength)).all()
        assert ((found != NOISE).any((1, 2)) == (strength != 0)).all(), (kind, strength)
    reach, units = nb.AUGMENTATION, {"rotation": 1, "shift": 28, "zoom": 100}  # drawn in grey
    covered = [reach[key] * unit for key, unit in units.items()]
    assert list(nb.COVERED.values()) == pytest.approx(covered)


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
    dot = np.pad(np.full((1, 1, 1), 255, "uint8"), ((0, 1), (14, 13), (14, 13)))
    found = nb.distorted(dot, "blur, sigma in pixels", 1)[0] / 255
    for across, down in itertools.product((-2, 0, 1), repeat=2):  # a Gaussian of sigma 1
        density = math.exp(-(across**2 + down**2) / 2) / (2 * math.pi)
        assert found[14 + down, 14 + across] == pytest.approx(density, abs=0.01)
    grey = np.full((400, 28, 28), 128, "uint8")
    found = nb.distorted(grey, "noise, sigma of 255", 20).astype(float)
    assert found.std() == pytest.approx(20, rel=0.02) and abs(found.mean() - 128) < 1


def test_measure_robustness(nb, monkeypatch):
    every = [(kind, strength) for kind, many in nb.STRENGTHS.items() for strength in many]
    monkeypatch.setattr(nb, "distorted", lambda images, *how: images + every.index(how))
    monkeypatch.setattr(nb, "predict", lambda model, images: np.eye(47)[model[images]])
    labels, read = np.array([3, 4, 3, 9]), np.random.RandomState(0).choice([3, 4, 9, 1], 30)
    models = {("custom", "with_da"): read, ("custom", "without_da"): np.full(30, 3)}
    found = nb.measure_robustness(models, np.zeros(4, int), labels)
    assert found["custom_without_da"] == dict.fromkeys(nb.STRENGTHS, [2] * 5)
    for number, counts in enumerate(found["custom_with_da"].values()):
        assert counts == [(labels == each).sum() for each in read[5 * number :][:5]]
    assert json.loads(json.dumps(found)) == found


def test_measure_speeds(nb, monkeypatch):
    """Median, lowest, highest; all in turn within a round; the first two are not counted."""
    calls, clock, seconds = [], [0.0], {"a": (9, 9, 1, 2, 4), "b": (9, 9, 0.5, 0.5, 0.25)}

    def predict(name, images):
        assert images.shape[1:] == (28, 28, 1)
        calls.append((name, len(images)))
        clock[0] += seconds[name][calls.count(calls[-1]) - 1]

    fakes = {n: Fake(predict_on_batch=lambda images, n=n: predict(n, images)) for n in "ab"}
    monkeypatch.setattr(nb, "time", Fake(perf_counter=lambda: clock[0]))
    found = nb.measure_speeds(fakes, batches=(1, 8), rounds=3)
    assert calls == [("a", 1), ("a", 8), ("b", 1), ("b", 8)] * 5
    assert found["a"] == {"1": [0.5, 0.2, 1], "8": [4, 2, 8]}
    assert found["b"] == {"1": [2, 2, 4], "8": [16, 16, 32]}


@pytest.fixture
def tiny(nb, tmp_path, monkeypatch):
    """A small network, published as custom_with_da (in parts) and mobilenetv2_with_da (whole)."""
    net = nb.make_model("custom", **TINY)
    for name in ("PUBLISH", "PRETRAINED"):
        monkeypatch.setattr(nb, name, tmp_path)
    for name in ("custom", "mobilenetv2"):
        nb.write_model(net, f"{name}_with_da", {"architecture": name, "network": TINY})
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.write_sums(tmp_path))
    return net


@pytest.mark.parametrize("name", ("custom", "mobilenetv2"))
def test_load_model(nb, tiny, name):
    model, (images, _) = nb.load_model(f"{name}_with_da"), examples(1, 3)
    assert {weight.dtype for weight in model.get_weights()} == {np.dtype("float32")}
    assert getattr(model, "optimizer", None) is None
    np.testing.assert_allclose(nb.predict(model, images), nb.predict(tiny, images), atol=1e-3)
    with pytest.raises(FileNotFoundError, match=f"{name}_without_da"):
        nb.load_model(f"{name}_without_da")


@pytest.mark.parametrize(
    "name, content, error",
    (
        ("custom_arch.json", LAMBDA.to_json(), "arbitrary code"),
        ("custom_arch.json", "no JSON", "custom_with_da: expected a model"),
        ("mobilenetv2_with_da.keras", "x", "mobilenetv2_with_da: expected a model"),
    ),
)
def test_model_that_cannot_be_loaded(nb, tiny, monkeypatch, name, content, error):
    (nb.PRETRAINED / name).write_text(content)
    key = name.split("_")[0] + "_with_da"
    with pytest.raises(ValueError, match=f"{name}: expected SHA-256"):
        nb.load_model(key)
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.write_sums(nb.PRETRAINED))
    with pytest.raises(ValueError, match=error):
        nb.load_model(key)


ACCURACIES = {  # on the test set and its augmented copy; validation recall
    "custom_without_da": (0.881, 0.771, 0.880),
    "custom_with_da": (0.893, 0.884, 0.890),
    "resnet50v2_without_da": (0.884, 0.759, 0.895),  # the best by validation, and by no test set
    "resnet50v2_with_da": (0.8855, 0.8805, 0.889),
    "mobilenetv2_without_da": (0.851, 0.672, 0.860),
    "mobilenetv2_with_da": (0.872, 0.861, 0.870),
    "softmax_with_da": (0.512, 0.402, 0.500),
}
SPEEDS = {"custom": 9000.0, "resnet50v2": 600.0, "mobilenetv2": 1500.0, "softmax": 10.0}
GAPS = {  # differences on both test sets with Holm's p
    ("custom_with_da", "resnet50v2_with_da"): ((0.0075, 0.05), (0.0035, 0.0499)),
    ("custom_with_da", "mobilenetv2_with_da"): ((0.021, 1e-6), (-0.023, 0.2)),
    ("custom_with_da", "custom_without_da"): ((0.012, 0.001), (0.113, 1e-99)),
}


@pytest.fixture
def record(nb):
    """A made-up results.json."""
    found = {"models": {}, "references": {}, "paired": [], "data": {"name": "made-up data"}}
    for key, (*accuracies, recall) in ACCURACIES.items():
        name, variant = key.split("_", 1)
        model = found["references" if name == "softmax" else "models"].setdefault(name, {})
        model |= {"params": int(100 * SPEEDS[name]), "mflops": SPEEDS[name] / 1000}
        model["images_per_second"] = {"256": [SPEEDS[name], 1.0, 2.0]}
        entry = {"epochs": 30 if name == "custom" else 6, "seconds": 1234}
        entry["version"] = nb.VERSION - (name == "mobilenetv2")
        for test, a in zip(TESTS, accuracies, strict=True):
            entry[test] = {"accuracy": a, "ci95": [a - 0.012, a + 0.011], "macro_f1": a - 0.003}
            more = {"merged_accuracy": a + 0.05, "top3": a + 0.08, "nll": 1 - a, "ece": a / 9}
            entry[test] |= more
        model[variant] = {**entry, "validation_recall": recall}
    for pair, both in GAPS.items():
        for test, (gap, p) in zip(TESTS, both, strict=True):
            entry = dict(zip(("first", "second", "test"), (*pair, test), strict=True))
            numbers = {"difference": gap, "ci95": [gap - 0.004, gap + 0.005], "p_holm": p}
            found["paired"].append({**entry, "p": p / 9, **numbers})
    found["robustness"] = {"images": 200, "strengths": {}, "right": {}}
    return json.loads(json.dumps(found))


def test_titles_entries_and_summary(nb, record):
    assert nb.title_of("custom_with_da") == "Custom CNN with DA"
    assert nb.title_of("mobilenetv2_56px_without_da") == "MobileNetV2 at 56 px without DA"
    table = nb.summary(record)
    assert table["model"].tolist()[::2] == [nb.TITLES[name] for name in SPEEDS]
    expected = ["Custom CNN", "with DA", "900,000", "9.0", "89.30 [88.10, 90.40]"]
    assert table.iloc[1].tolist() == [*expected, "88.40 [87.20, 89.50]", 30, "1,234"]
    del record["models"]["mobilenetv2"], record["models"]["custom"]["without_da"]
    left = [key.split("_", 1) for key in [*list(ACCURACIES)[1:4], "softmax_with_da"]]
    assert [[name, variant] for name, variant, _, _ in nb.entries(record)] == left
    assert all(entry is model[variant] for _, variant, model, entry in nb.entries(record))


def test_scores_table(nb, record):
    """Recorded beside measured here; what was not measured here is left empty."""
    live = {("custom", "with_da", "test"): {"accuracy": 0.8935}}
    table = nb.scores_table(record, "test", live)
    assert table.iloc[1, 1] == 0.8935 and table.iloc[:, 1].isna().sum() == 6
    scores = record["models"]["custom"]["with_da"]["test"]
    assert table.iloc[1, 2:].to_dict() == {key: scores[key] for key in scores if key != "ci95"}
    augmented = nb.scores_table(record, "augmented_test", live)
    assert augmented["accuracy"].tolist() == [numbers[1] for numbers in ACCURACIES.values()]
    assert augmented["model"][4] == "MobileNetV2 without DA" and augmented.iloc[:, 1].isna().all()


def test_best_by_validation(nb, record):
    loaded = [tuple(key.split("_", 1)) for key in nb.MODELS]
    assert nb.best_by_validation(record, loaded) == ("resnet50v2", "without_da")
    loaded.remove(("resnet50v2", "without_da"))
    assert nb.best_by_validation(record, loaded) == ("custom", "with_da")


def test_conclusions(nb, record):
    record["robustness"]["strengths"] = {"noise, sigma": (0, 20, 40, 60.0)}
    counts = {"custom_with_da": 50, "custom_without_da": 90}
    right = {key: {"noise, sigma": [180, 150, 120, count]} for key, count in counts.items()}
    record["robustness"]["right"] = right
    first, resnet, mobile, gain, robust, last = nb.conclusions(record)
    assert (
        robust
        == "Distorted more, the custom network reads with DA (without): noise, sigma 60: 25% (45%)."
    )
    assert "(900,000 parameters, 9 MFLOPs)" in first and re.search(r"89\.3%.*88\.4%", first)
    assert re.search(r"ResNet50V2 .*\b6, ours 30.* at 15\.0 times the speed", resnet)
    assert re.search(r"MobileNetV2 .*\b6, ours 30.* at 6\.0 times the speed", mobile)
    assert ("older" in resnet, "older" in mobile) == (False, True)
    assert "+0.75 points (+0.35 to +1.25, p = 0.05; not significant) on the test set" in resnet
    assert "+0.35 points (-0.05 to +0.85, p = 0.05) on the augmented one" in resnet
    assert "+2.10 points (+1.70 to +2.60, p < 0.0001) on the test set" in mobile
    assert "-2.30 points (-2.70 to -1.80, p = 0.2; not significant) on the augmented" in mobile
    assert "DA changes Custom CNN by +1.20 points" in gain and "+11.30 points" in gain
    assert re.search(r"47% .*97\.3%", last)  # 5.0 of 10.7 points
    said = " ".join((first, resnet, mobile, gain, robust, last))
    backed = r"[+-]\d+\.\d\d points \([+-][\d.]+ to [+-][\d.]+, p . [\d.e-]+(; not significant)?\)"
    assert len(re.findall(backed, said)) == said.count("points") == 6


@pytest.mark.parametrize("name, whole", [*itertools.product(BIG, (True, False))])
def test_conclusions_claim_nothing_of_what_is_not_published(nb, record, name, whole):
    del (record["models"] if whole else record["models"][name])[name if whole else "with_da"]
    said = [line for line in nb.conclusions(record) if nb.TITLES[name] in line]
    assert said == [f"{nb.TITLES[name]} with DA is not published yet; nothing is claimed of it."]


def test_collect(nb, monkeypatch, tmp_path):
    """What is published is counted and scored; references and further seeds are loaded for it."""
    (tmp_path / "last").write_bytes(b"12345")
    keys = ["custom_without_da", "custom_with_da", "lenet5_with_da", "custom_with_da_seed7851"]
    fields = {"seconds": 60, "validation_recall": 0.7, "temperature": 1.2, "hardware": "h"}
    kept, records, loaded = {"version": 4, "epochs": 3, "seed": 5}, {}, []
    for key in keys:
        made_from = {"architecture": "lenet5", "network": {"a": 1}, **kept}
        made_from["images"] = 94 if "without" in key else None
        records[key] = {**fields, "files": ["first", "last"], "made_from": made_from}
    net = Fake(layers=[], count_params=lambda: 7, load_weights=loaded.append)
    pairs = [tuple(key.split("_", 1)) for key in keys[:2]]
    live = {(*pair, test): {"accuracy": pair[1] + test} for pair in pairs for test in TESTS}
    put = {"live": live, "models": dict.fromkeys(pairs, net), "make_model": lambda name, a: net}
    put |= {"predict": lambda model, images: images, "test_sets": {TESTS[0]: 1, TESTS[1]: 2}}
    put |= {"score": lambda images, labels: {"accuracy": images + labels}, "test_labels": 1}
    put |= {"PRETRAINED": tmp_path, "published": str, "speeds": {"custom": "fast"}}
    for name, value in put.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    found, costs = nb.collect(records), {"params": 7, "mflops": 0}
    every = {**fields, **kept, "file_bytes": 5, "images": len(nb.splits["train"][1])}
    custom = {**costs, "images_per_second": "fast"}
    for _, variant in pairs:
        custom[variant] = {**every, **{test: {"accuracy": variant + test} for test in TESTS}}
    custom["without_da"]["images"] = 94
    custom["with_da"]["seeds"] = [{"test": 2, "augmented_test": 3}]
    lenet5 = {**every, "test": {"accuracy": 2}, "augmented_test": {"accuracy": 3}}
    references = {"lenet5": {**costs, "images_per_second": None, "with_da": lenet5}}
    assert found == {"models": {"custom": custom}, "references": references}
    assert loaded == [f"references/{key}.weights.h5" for key in keys[2:]]


def test_draw_comparison(nb, record):
    """Bars and intervals are the recorded ones; a variant that is missing is left out."""
    del record["models"]["resnet50v2"]["without_da"]
    keys = [key for key in nb.MODELS if key != "resnet50v2_without_da"]
    figure = nb.draw_comparison(record)
    assert "made-up data" in figure.get_suptitle()
    for number, axis in enumerate(figure.axes):
        heights = [ACCURACIES[key][number] for key in keys]
        assert [bar.get_height() for bar in axis.patches] == heights
        assert [text.get_text() for text in axis.texts] == [f"{100 * a:.1f}" for a in heights]
        ends = [part[:, 1] for lines in axis.collections for part in lines.get_segments()]
        np.testing.assert_allclose(ends, [(a - 0.012, a + 0.011) for a in heights])
        plain = [bar.get_hatch() is None for bar in axis.patches]
        assert plain == ["with_da" in key for key in keys]
        assert axis.get_title() == list(nb.TEST_SETS.values())[number]
        names = [tick.get_text().split("\n")[0] for tick in axis.get_xticklabels()]
        assert names == list(nb.ARCHITECTURES.values())


def test_draw_robustness(nb):
    right = {kind: [80 - place, 70, 60, 50, 10] for place, kind in enumerate(nb.STRENGTHS)}
    keys = ("custom_without_da", "mobilenetv2_with_da")
    robustness = {"images": 100, "strengths": nb.STRENGTHS, "right": dict.fromkeys(keys, right)}
    figure = nb.draw_robustness(robustness)
    for axis, (kind, counts) in zip(figure.axes, right.items(), strict=True):
        assert axis.get_xlabel() == kind
        ends = [stats.binomtest(n, 100).proportion_ci(method="wilson") for n in (10, counts[0])]
        for line, band, key in zip(axis.lines, axis.collections, keys, strict=True):
            expected = [nb.STRENGTHS[kind], [count / 100 for count in counts]]
            np.testing.assert_allclose(line.get_data(), expected)
            assert line.get_linestyle() == ("--" if "without" in key else "-")
            box = band.get_paths()[0].get_extents()
            assert (box.y0, box.y1) == pytest.approx((ends[0][0], ends[1][1]))
    for text, key in zip(figure.legends[0].get_texts(), keys, strict=True):
        assert text.get_text() == nb.title_of(key)


def test_draw_histories(nb):
    """The recorded curves of the architectures and variants that there are."""
    history = [{"accuracy": 0.8, "val_accuracy": 0.85}, {"accuracy": 0.9, "val_accuracy": 0.88}]
    keys = ("custom_without_da", "custom_with_da", "mobilenetv2_with_da", "softmax_with_da")
    axes = nb.draw_histories({key: {"history": history} for key in keys}).axes
    assert [axis.get_title() for axis in axes] == ["Custom CNN", "MobileNetV2"]
    for axis, shown in zip(axes, (["without DA", "with DA"], ["with DA"]), strict=True):
        drawn = [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines]
        assert drawn == [(1, 2, 0.8, 0.9), (1, 2, 0.85, 0.88)] * len(shown)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == shown


def test_draw_errors(nb, record, monkeypatch):
    """Rows are the true classes, columns what they were read as."""
    read, labels = np.repeat(np.arange(47), 3), np.repeat(np.arange(47), 3)
    read[9:11] = 5  # two of the three of class 3
    put = {"results": record, "models": {("custom", "with_da"): None}, "test_labels": labels}
    put["probabilities"] = {("custom", "with_da", "test"): np.eye(47)[read]}
    for name, value in put.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    assert nb.confusion_matrix(read, labels)[3, [3, 5]].tolist() == [1, 2]
    run_cell_with(nb, "def best_by_validation")
    shown = np.ma.filled(nb.below.images[0].get_array(), np.nan)
    assert shown[3, 5] == 2 and np.isfinite(shown).sum() == 1 and shown.shape == (47, 47)
    assert [bar.get_height() for bar in nb.above.patches][2:5] == pytest.approx([1, 1 / 3, 1])
