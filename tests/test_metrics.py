"""Scores, tests and distortions against published values, brute force, or by hand."""

import itertools
import json
import math
from unittest.mock import patch

import numpy as np
import pytest
from conftest import TINY, run_cell_with

NOISE = np.random.RandomState(0).randint(0, 256, (8, 28, 28)).astype("uint8")
BOX = np.pad(np.full((8, 8, 8), 255, "uint8"), ((0, 0), (10, 10), (10, 10)))
GROUPS = ("0O", "1IL", "5S", "2Z", "9qg", "Ff")


@pytest.fixture
def scored(nb):
    """A function that scores made-up answers to images with the given labels."""

    def score(labels, predicted, confidence=0.9, truth=0.5, rank=0):
        labels = np.array(labels)
        fields = {"predicted": predicted, "confidence": confidence}
        arrays = {}
        for field, values in {**fields, "truth": truth, "rank": rank}.items():
            arrays[f"model/test/{field}"] = np.broadcast_to(values, len(labels))
        with patch.multiple(nb, create=True, predictions=arrays, test_labels=labels):
            found = nb.score("model", "test")
        assert json.loads(json.dumps(found)) == found
        return found

    return score


def test_accuracy_and_interval(scored):
    """81 of 263 is an example of Newcombe (1998, table I)."""
    found = scored([1] * 263, [1] * 81 + [2] * 182)
    assert found["accuracy"] == pytest.approx(81 / 263, abs=1e-6)
    assert found["ci95"] == pytest.approx([0.2553, 0.3662], abs=6e-5)


def test_log_loss_and_top3(scored):
    truth = [0.5, 0.25, 0.125, 0]
    found = scored([1, 2, 3, 4], [1, 2, 0, 0], truth=truth, rank=range(4))
    expected = -(math.log(0.5 * 0.25 * 0.125) + math.log(1e-7)) / 4
    assert found["nll"] == pytest.approx(expected, abs=1e-6)
    assert found["top3"] == 0.75, "ranks 0, 1 and 2"


def test_calibration_error(scored):
    """The gap between confidence and accuracy in each of 15 bins, by its size."""
    random = np.random.RandomState(1)
    confidence = np.r_[1, random.uniform(0.05, 1, 999)].astype("float16")
    chance = confidence + 0.3 * np.sin(40 * confidence)  # higher or lower, in turns
    predicted = (random.rand(1000) > chance).astype(int)  # 0 is right
    sure = confidence.astype(float)
    total = 0
    for number in range(15):
        chosen = np.minimum(np.floor(15 * sure), 14) == number
        total += abs(np.sum(sure[chosen] - (predicted[chosen] == 0))) / 1000
    found = scored([0] * 1000, predicted, confidence)["ece"]
    assert found == pytest.approx(total, abs=2e-6) and found > 0.1
    assert scored([0] * 4, [0, 0, 1, 1], 1)["ece"] == 0.5, "1 is in the last bin"


def test_merged_accuracy(nb, scored):
    """Within each group of look-alikes everything is right, between them nothing."""
    within = [pair for group in GROUPS for pair in itertools.permutations(group, 2)]
    others = set(itertools.permutations(nb.CHARACTERS, 2)) - set(within)
    for pairs, expected in ((within, 1), (others, 0)):
        labels = [nb.CHARACTERS.index(label) for label, _ in pairs]
        read = [nb.CHARACTERS.index(answer) for _, answer in pairs]
        found = scored(labels, read)
        assert (found["merged_accuracy"], found["accuracy"]) == (expected, 0)


PAIRS = ((1, 9, 11), (9, 1, 11), (5, 15, 21_700), (0, 0, 1), (3, 3, 64))


@pytest.mark.parametrize("gain, loss, tail", PAIRS)
def test_compare_pair(nb, gain, loss, tail):
    """Exact and two-sided: twice a binomial tail, such as (1 + 10) / 2^10."""
    counts = (gain, loss, 60, 40 - gain - loss)
    cells = np.repeat([(1, 0), (0, 1), (1, 1), (0, 0)], counts, axis=0).astype(bool)
    found = nb.compare_pair(*cells.T)
    middle = (gain - loss) / 100
    half = 1.96 * math.sqrt(gain + loss - (gain - loss) ** 2 / 100) / 100
    p_value = min(2 * tail / 2 ** (gain + loss), 1)
    assert found == pytest.approx((middle, half, p_value))


def test_paired_tests_are_corrected_by_holm(nb, monkeypatch):
    """Each p-value times the number of those not below it, and never falling."""
    random = np.random.RandomState(0)
    names = ["custom_robust", *(f"{name}_with_da" for name in nb.COLORS)]
    names += [f"{name}_without_da" for name in nb.COLORS]
    right = {}
    for number, pair in enumerate(itertools.product(names, nb.TEST_SETS)):
        right[pair] = random.rand(400) < 0.6 + number / 50
    monkeypatch.setattr(nb, "is_right", lambda key, name: right[key, name])
    run_cell_with(nb, 'method="holm"')
    p_values = [row[-1] for row in nb.rows]
    assert len(p_values) == len(nb.corrected) == 6 * 2
    pairs = itertools.product(nb.PAIRS, nb.TEST_SETS)
    for ((first, second), name), p_value in zip(pairs, p_values, strict=True):
        assert p_value == nb.compare_pair(right[first, name], right[second, name])[2]
    largest = 0
    for place, number in enumerate(np.argsort(p_values)):
        largest = max(largest, min((12 - place) * p_values[number], 1))
        assert nb.corrected[number] == pytest.approx(largest)


def test_answer(nb):
    """What is published of the answers, and the place of the true class."""
    network = nb.make_model("custom", **TINY)
    images, labels = nb.test_images, nb.test_labels
    found = nb.record_answers(network, images, labels)
    assert [values.dtype for values in found.values()] == ["u1", "f2", "f2", "u1"]
    probabilities = nb.predict(network, images)
    for number, label in enumerate(labels):
        order = np.argsort(-probabilities[number], kind="stable").tolist()
        assert found["predicted"][number] == order[0]
        assert found["rank"][number] == order.index(label)
    confidence = probabilities.max(axis=1)
    np.testing.assert_allclose(found["confidence"], confidence, rtol=1e-3)
    truth = probabilities[np.arange(len(labels)), labels]
    np.testing.assert_allclose(found["truth"], truth, rtol=1e-3)


def test_nothing_is_distorted_at_strength_0(nb):
    """And whatever has a strength changes every image, in the same way each time."""
    for kind, (distort, strengths) in nb.DISTORTIONS.items():
        assert 0 in strengths
        for strength in strengths:
            found = distort(NOISE, strength)
            assert found.dtype == np.uint8
            assert (found == distort(NOISE, strength)).all()
            changed = (found != NOISE).any(axis=(1, 2))
            assert (changed == (strength != 0)).all(), (kind, strength)


def test_distortions_go_each_way(nb):
    for number, turned in enumerate(nb.turn(NOISE, 90)):
        expected = np.rot90(NOISE[number], (-1) ** number)  # counter-clockwise first
        assert (turned == expected).all()
    for pixels in (-2, -1, 1, 2):
        white = nb.thicken(BOX, pixels) > 127
        for axis in (1, 2):
            assert (white.any(axis=axis).sum(axis=1) == 8 + pixels).all()


@pytest.mark.parametrize("sigma", (0.5, 2))
def test_blur(nb, sigma):
    """It conserves the ink, and its variance adds up to that of the box."""
    found = nb.blur(BOX, sigma).astype(float)
    assert found.sum() / BOX.sum() == pytest.approx(1, abs=0.005)
    squares = (np.arange(28) - 13.5) ** 2
    variance = np.average(squares, weights=found.sum(axis=(0, 1)))
    assert variance == pytest.approx((8**2 - 1) / 12 + sigma**2, rel=0.02)


def test_noise(nb):
    grey = np.full((400, 28, 28), 128, "uint8")
    found = nb.add_noise(grey, 20).astype(float)
    assert (found.mean(), found.std()) == pytest.approx((128, 20), rel=0.02)
    white = nb.add_noise(grey + np.uint8(127), 20)
    assert white.min() > 128, "it wraps around"


def test_robustness(nb, monkeypatch):
    """Right answers are counted, for each model, distortion and strength."""
    read = np.random.RandomState(0).choice([3, 4, 9, 1], 10)
    models = {"a": read, "b": np.full(10, 3)}
    distortions = {"x": (np.add, [0, 1, 2]), "y": (np.subtract, [-3, -7])}
    monkeypatch.setattr(nb, "models", models, raising=False)
    monkeypatch.setattr(nb, "DISTORTIONS", distortions)
    monkeypatch.setattr(nb, "predict", lambda model, images: np.eye(47)[model[images]])
    labels = np.array([3, 4, 3, 9])
    values = {"results": {}, "chosen": np.arange(4), "PROFILE": "full"}
    values["test_labels"] = labels
    with patch.multiple(nb, create=True, test_images=np.zeros(4, int), **values):
        run_cell_with(nb, "counts = {key: {kind")
    found = nb.robustness["right"]
    assert found["b"] == {"x": [2] * 3, "y": [2] * 2}
    counts = [(labels == read[each]).sum() for each in (0, 1, 2, 3, 7)]
    assert list(itertools.chain(*found["a"].values())) == counts


@pytest.fixture
def seeds(nb):
    """Made-up answers of three seeds of a model: 1, 2 and 3 of 4 are right."""
    keys = ["custom_with_da", "custom_with_da_seed1", "custom_with_da_seed2"]
    keys += ["custom_with_da_30_epochs", "custom_without_da"]
    arrays = {}
    for number, (key, test) in enumerate(itertools.product(keys, nb.TEST_SETS)):
        arrays[f"{key}/{test}/predicted"] = (np.arange(4) > number // 2).astype(int)
        for field in ("confidence", "truth", "rank"):
            arrays[f"{key}/{test}/{field}"] = np.ones(4)
    values = {"predictions": arrays, "test_labels": np.zeros(4, int)}
    with patch.multiple(nb, create=True, TRAININGS=dict.fromkeys(keys), **values):
        yield


def test_titles_and_percent(nb):
    assert nb.title_of("mobilenetv2_without_da") == "MobileNetV2 without DA"
    assert nb.title_of("custom_robust") == "Custom CNN robust"
    score = {"accuracy": 0.90412, "ci95": [0.898, 0.910]}
    assert nb.percent(score) == "90.4 ± 0.6"


def test_collect_results(small, seeds):
    """The record of the chart, the tables and the text; seeds are of one model only."""
    assert small.seed_accuracies("custom_with_da", "test").tolist() == [25, 50, 75]
    network = small.make_model("custom", **TINY)
    values = dict.fromkeys(("DATA_NAME", "test_digest", "robustness", "speeds"), "?")
    values["models"] = {"custom_without_da": network, "custom_with_da": network}
    with patch.multiple(small, create=True, **values):
        run_cell_with(small, "collected = {}")
    found = small.collected
    assert json.loads(json.dumps(found)) == found
    assert small.read_record("results.json")["models"] == found
    model = found["custom"]
    assert list(model) == ["params", "mflops", "without_da", "with_da"]
    assert model["params"] == network.count_params()
    assert model["mflops"] == small.count_mflops(network)
    variant = model["with_da"]
    for test in ("test", "augmented_test"):
        low, high = variant[test]["ci95"]
        assert low < variant[test]["accuracy"] == 0.25 < high
