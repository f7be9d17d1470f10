"""Scores, tests and intervals against published values and brute force; what is said of them."""

import hashlib
import itertools
import math
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def close_figures():
    """Close what a test has drawn."""
    yield
    plt.close("all")


# ------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    "right, count, low, high",
    (
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score interval)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ),
)
def test_wilson_published(nb, right, count, low, high):
    assert nb.wilson(right, count) == pytest.approx((low, high), abs=6e-5)


def test_wilson_by_hand(nb):
    # n = 4, x = 2: the middle stays 1/2 and the half width is z sqrt(1/16 + z^2/64) / (1 + z^2/4)
    z = 1.959963984540054
    half = z * math.sqrt(1 / 16 + z * z / 64) / (1 + z * z / 4)
    assert nb.wilson(2, 4) == pytest.approx((0.5 - half, 0.5 + half))


@few
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_inverts_the_score_test(nb, counts):
    """Its ends p are where (share - p)^2 = z^2 p (1 - p) / n (Wilson 1927)."""
    right, count = counts
    low, high = nb.wilson(right, count)
    assert -1e-12 <= low <= right / count + 1e-12 <= high + 2e-12 <= 1 + 3e-12
    for p in (low, high):
        z2 = 1.959963984540054**2
        assert (right / count - p) ** 2 == pytest.approx(z2 * p * (1 - p) / count, abs=1e-9)
    mirrored = nb.wilson(count - right, count)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


# ----------------------------------------------------------------------------- paired tests


def rights(first_only, second_only, both=3, neither=2):
    """Return two boolean arrays with so many images in each of the four cells, shuffled."""
    cells = [(1, 0)] * first_only + [(0, 1)] * second_only + [(1, 1)] * both + [(0, 0)] * neither
    cells = np.random.RandomState(0).permutation(np.array(cells, bool).reshape(-1, 2))
    return cells[:, 0], cells[:, 1]


@pytest.mark.parametrize("first_only, second_only", itertools.product(range(5), range(6)))
def test_mcnemar_by_brute_force(nb, first_only, second_only):
    """Over all ways to toss a coin for each image that only one reads: how many are as uneven?"""
    count, gap = first_only + second_only, abs(first_only - second_only)
    tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=count)]
    expected = sum(abs(2 * heads - count) >= gap for heads in tosses) / len(tosses)
    found = nb.mcnemar(*rights(first_only, second_only))
    assert found[:2] == (first_only, second_only)
    assert found[2] == pytest.approx(expected)


@pytest.mark.parametrize(
    "first_only, second_only, p",
    (
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2^10
        (0, 5, 2 / 32),
        (5, 15, 0.0413895),  # R: binom.test(5, 20)$p.value
        (0, 0, 1),
        (7, 7, 1),
    ),
)
def test_mcnemar_by_hand(nb, first_only, second_only, p):
    assert nb.mcnemar(*rights(first_only, second_only))[2] == pytest.approx(p, rel=1e-5)


@few
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 50), st.integers(0, 50))
def test_mcnemar_is_symmetric_and_finite(nb, first_only, second_only, both, neither):
    assume(first_only + second_only + both + neither)
    a, b = rights(first_only, second_only, both, neither)
    forward, back = nb.mcnemar(a, b), nb.mcnemar(b, a)
    assert forward == (back[1], back[0], back[2]) == (first_only, second_only, forward[2])
    assert 0 <= forward[2] <= 1 and isinstance(forward[2], float)
    assert nb.mcnemar(a, a)[2] == 1


# ---------------------------------------------------------------------------------- scores


def one_hot_like(confidence, predicted):
    """Return probabilities (N, 47) with `confidence` (> .5) on `predicted`, the rest even."""
    confidence = np.asarray(confidence, float)
    found = np.repeat((1 - confidence[:, None]) / 46, 47, axis=1)
    found[np.arange(len(confidence)), predicted] = confidence
    return found


def calibration_by_definition(probabilities, labels, bins):
    """Guo et al. 2017, arXiv:1706.04599, equation 3: sum over bins of |B| / n |acc - conf|."""
    total = 0
    for number in range(bins):
        members = []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            inside = number / bins <= confidence < (number + 1) / bins
            if inside or (number == bins - 1 and confidence == 1):
                members.append((confidence, list(row).index(confidence) == label))
        if members:
            accuracy = sum(right for _, right in members) / len(members)
            mean = sum(confidence for confidence, _ in members) / len(members)
            total += len(members) / len(labels) * abs(accuracy - mean)
    return total


@few
@given(st.integers(1, 80), st.integers(0, 1000), st.sampled_from((1, 4, 15)))
def test_calibration_error_by_definition(nb, count, seed, bins):
    random = np.random.RandomState(seed)
    probabilities = random.dirichlet(np.full(47, 0.03), count)
    labels = np.where(
        random.rand(count) < 0.6, probabilities.argmax(1), random.randint(0, 47, count)
    )
    assume(np.abs(probabilities.max(1) * bins % 1 - 0.5).max() < 0.5 - 1e-9)  # no bin's edge
    expected = calibration_by_definition(probabilities, labels, bins)
    assert nb.calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_of_known_cases(nb):
    sure = np.eye(47)[[3, 3, 5, 5]]
    assert nb.calibration_error(sure, np.array([3, 3, 5, 5])) == 0
    assert nb.calibration_error(sure, np.array([4, 4, 4, 4])) == 1
    assert nb.calibration_error(sure, np.array([3, 4, 5, 4])) == pytest.approx(0.5)
    # ten images at 0.7, of which seven are right: calibrated
    seven = one_hot_like([0.7] * 10, [1] * 10)
    assert nb.calibration_error(seven, np.array([1] * 7 + [2] * 3)) == pytest.approx(0, abs=1e-9)
    # two bins that err in opposite ways do not cancel: (2 |.5 - .61| + 2 |1 - .91|) / 4
    two = one_hot_like([0.61, 0.61, 0.91, 0.91], [0] * 4)
    assert nb.calibration_error(two, np.array([0, 1, 0, 0])) == pytest.approx(0.10)
    # in one bin they do: |3 - 3.04| / 4
    assert nb.calibration_error(two, np.array([0, 1, 0, 0]), bins=1) == pytest.approx(0.01)


def test_macro_f1_published(nb):
    # scikit-learn's documentation of f1_score(average="macro"): 0.26...
    labels, predicted = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 2, 1, 0, 0, 1])
    assert nb.macro_f1(predicted, labels) == pytest.approx(4 / 15)


@few
@given(st.lists(st.tuples(st.integers(0, 46), st.integers(0, 46)), min_size=1, max_size=120))
def test_macro_f1_by_definition(nb, pairs):
    labels, predicted = map(np.array, zip(*pairs, strict=True))
    scores = []
    for c in set(labels.tolist()):
        hits = ((labels == c) & (predicted == c)).sum()
        if hits == 0:
            scores.append(0)
            continue
        precision, recall = hits / (predicted == c).sum(), hits / (labels == c).sum()
        scores.append(2 * precision * recall / (precision + recall))
    assert nb.macro_f1(predicted, labels) == pytest.approx(np.mean(scores))


def ranked(rank, count=47):
    """Return one row of distinct probabilities in which class 5 stands at `rank`, 1 the best."""
    order = [c for c in range(count) if c != 5]
    order.insert(rank - 1, 5)
    row = np.empty(count)
    row[order] = np.arange(count, 0, -1)
    return row / row.sum()


def test_top3(nb):
    probabilities = np.array([ranked(rank) for rank in (1, 2, 3, 4, 47)], np.float32)
    found = nb.score(probabilities, np.full(5, 5))
    assert found["top3"] == pytest.approx(3 / 5) and found["accuracy"] == pytest.approx(1 / 5)


def test_top3_with_ties(nb):
    """Only what is strictly more probable stands before the right class."""
    row = np.zeros((1, 47), np.float32)
    row[0, [1, 2, 3, 5]] = 0.25  # four share the first place
    assert nb.score(row, np.array([5]))["top3"] == 1
    row[0, [1, 2, 3]] = 0.26
    assert nb.score(row, np.array([5]))["top3"] == 0
    tenths = np.full((1, 47), 0.1, np.float32)  # a number that float32 and float64 round apart
    assert nb.score(tenths, np.array([7]))["top3"] == 1


def test_merged_accuracy(nb):
    groups = ("0O", "1IL", "5S", "2Z", "9qg", "Ff")  # design: the confusable classes
    index = nb.CHARACTERS.index
    pairs = [(index(a), index(b)) for group in groups for a, b in itertools.permutations(group, 2)]
    apart = [
        (index(a), index(b)) for a, b in ("0I", "1S", "5Z", "29", "qF", "f0", "AB", "Q9", "nh")
    ]
    for labels_and_read, expected in ((pairs, 1), (apart, 0)):
        labels, read = map(np.array, zip(*labels_and_read, strict=True))
        found = nb.score(one_hot_like([0.9] * len(read), read), labels)
        assert found["merged_accuracy"] == expected and found["accuracy"] == 0


def test_score(nb):
    labels = np.array([0, 1, 2, 3])
    probabilities = one_hot_like([0.9, 0.8, 0.7, 0.6], [0, 1, 2, 40]).astype(np.float32)
    found = nb.score(probabilities, labels)
    assert set(found) == {"accuracy", "ci95", "merged_accuracy", "macro_f1", "top3", "nll", "ece"}
    assert found["accuracy"] == 0.75
    assert found["ci95"] == pytest.approx(nb.wilson(3, 4), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(0.75)
    nll = -(math.log(0.9) + math.log(0.8) + math.log(0.7) + math.log(0.4 / 46)) / 4
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4, rel=1e-5)
    assert all(type(value) in (float, list) for value in found.values()), "not fit for JSON"


def test_nll_of_the_impossible_is_finite(nb):
    assert nb.score(np.eye(47)[[1]], np.array([2]))["nll"] == pytest.approx(-math.log(1e-12))


def test_confusion_matrix(nb):
    labels, predicted = np.array([1, 1, 1, 2, 46]), np.array([1, 3, 3, 2, 0])
    expected = np.zeros((47, 47), int)
    for label, read in zip(labels, predicted, strict=True):
        expected[label, read] += 1
    found = nb.confusion_matrix(predicted, labels)
    assert (found == expected).all() and found[1, 3] == 2 and found[46, 0] == 1


def test_top_confusions(nb):
    counts = np.diag(np.full(47, 90))
    index = nb.CHARACTERS.index
    counts[index("O"), index("0")] = 30
    counts[index("q"), index("9")] = 10
    counts[index("f"), index("F")] = 60
    counts[index("0"), index("0")] = 1000
    rows = nb.top_confusions(counts, most=3)
    assert [[*row[:2], int(row[2]), row[3]] for row in rows] == [
        ["`f`", "`F`", 60, "40.0"],
        ["`O`", "`0`", 30, "25.0"],
        ["`q`", "`9`", 10, "10.0"],
    ]


def test_fit_temperature_recovers_what_was_done(nb):
    random = np.random.RandomState(0)
    true = random.dirichlet(np.full(47, 0.2), 6000)
    labels = (true.cumsum(1) > random.rand(6000, 1)).argmax(1)
    for temperature in (0.5, 1.0, 2.0):
        sharpened = true**temperature  # dividing its logits by the temperature gives `true` again
        sharpened /= sharpened.sum(1, keepdims=True)
        assert nb.fit_temperature(sharpened, labels) == pytest.approx(temperature, rel=0.05)


def test_fit_temperature_at_the_ends(nb):
    labels = np.arange(47)
    right = one_hot_like([0.5] * 47, labels)
    assert nb.fit_temperature(right, labels) == pytest.approx(0.25, rel=0.02)
    assert nb.fit_temperature(right, (labels + 1) % 47) == pytest.approx(4, rel=0.02)
    assert nb.fit_temperature(np.eye(47, dtype=np.float32), labels) > 0  # zeros do no harm


# ----------------------------------------------------------------------------------- warps


def still(count=1, **amounts):
    """Return `affine_rows`'s arguments for `count` images, nothing but `amounts` happening."""
    base = {"shift_x": 0, "shift_y": 0, "zoom_x": 1, "zoom_y": 1, "rotation": 0, "shear": 0}
    return {key: np.full(count, amounts.get(key, value), float) for key, value in base.items()}


def warped(nb, images, **amounts):
    """Warp images by the same amounts."""
    rows = nb.affine_rows(**still(len(images), **amounts), cos=np.cos, sin=np.sin)
    return nb.warp(images, rows)


@pytest.fixture(scope="module")
def noise():
    """Random uint8 images (5, 28, 28), ink to the very edge."""
    return np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype(np.uint8)


def test_identity(nb, noise):
    found = warped(nb, noise)
    assert found.dtype == np.uint8 and (found == noise).all()


@pytest.mark.parametrize("x, y", ((3, 0), (-5, 0), (0, 4), (0, -27), (2, -7), (28, 0), (-40, 40)))
def test_whole_shifts_are_exact(nb, noise, x, y):
    """Positive shifts go right and down; what comes in from outside is 0."""
    padded = np.pad(noise, ((0, 0), (40, 40), (40, 40)))
    expected = padded[:, 40 - y : 68 - y, 40 - x : 68 - x]
    assert (warped(nb, noise, shift_x=x, shift_y=y) == expected).all()


def test_half_a_pixel_is_the_mean(nb, noise):
    """Halves are rounded up, and the pixels outside count as 0."""
    wide = np.pad(noise, ((0, 0), (0, 0), (1, 1))).astype(int)
    expected = (wide[:, :, :-2] + wide[:, :, 1:-1] + 1) // 2
    assert (warped(nb, noise, shift_x=0.5) == expected).all()


@pytest.mark.parametrize("quarters", (1, 2, 3, 4, -1))
def test_quarter_turns_are_exact(nb, noise, quarters):
    """Counter-clockwise on the screen, as numpy.rot90 turns."""
    found = warped(nb, noise, rotation=quarters * math.pi / 2)
    assert (found == np.rot90(noise, quarters, axes=(1, 2))).all()


def test_mirrors_are_exact(nb, noise):
    assert (warped(nb, noise, zoom_x=-1) == noise[:, :, ::-1]).all()
    assert (warped(nb, noise, zoom_y=-1) == noise[:, ::-1]).all()


def test_rows_are_a_product_of_matrices(nb):
    """Output to input: back by the shift, turn about the centre, shrink by the zooms, shear."""
    random = np.random.RandomState(0)
    for _ in range(20):
        shift_x, shift_y, angle, shear = random.uniform(-2, 2, 4)
        zoom_x, zoom_y = random.uniform(0.5, 2, 2)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]])
        matrix = np.array([[1, shear], [0, 1]]) @ np.diag([1 / zoom_x, 1 / zoom_y]) @ turn
        centre = np.full(2, 13.5)
        offset = centre - matrix @ np.add(centre, (shift_x, shift_y))
        found = nb.affine_rows(shift_x, shift_y, zoom_x, zoom_y, angle, shear, math.cos, math.sin)
        expected = [*matrix[0], offset[0], *matrix[1], offset[1]]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_shear_moves_each_row_on_its_own(nb, noise):
    """A positive slope reads lower rows from further right, about the centre."""
    found = warped(nb, noise, shear=2)
    padded = np.pad(noise, ((0, 0), (0, 0), (28, 28)))
    for row in range(28):
        first = 28 + 2 * row - 27  # 2 (row - 13.5) to the right
        assert (found[:, row] == padded[:, row, first : first + 28]).all()


def extent(image):
    """Return (width, height) of the ink."""
    rows, columns = np.nonzero(image > 127)
    return np.ptp(columns) + 1, np.ptp(rows) + 1


def test_zoom_over_one_enlarges(nb):
    box = np.zeros((1, 28, 28), np.uint8)
    box[:, 10:18, 10:18] = 255
    assert extent(warped(nb, box, zoom_x=2)[0]) == (16, 8)
    assert extent(warped(nb, box, zoom_y=0.5)[0]) == (8, 4)


def test_outside_is_zero(nb):
    white = np.full((1, 28, 28), 255, np.uint8)
    small = warped(nb, white, zoom_x=0.5, zoom_y=0.5)[0]
    assert (small[8:20, 8:20] == 255).all()
    assert small[:6].max() == small[-6:].max() == small[:, :6].max() == small[:, -6:].max() == 0
    turned = warped(nb, white, rotation=math.pi / 4)[0]
    assert turned[0, 0] == turned[0, -1] == turned[-1, 0] == turned[-1, -1] == 0
    assert (turned[6:22, 6:22] == 255).all()


def slowly(image, rows):
    """Warp one image pixel by pixel, in pure Python: the definition of bilinear interpolation."""
    a, b, c, d, e, f = (float(value) for value in rows)

    def pixel(x, y):
        return float(image[y, x]) if 0 <= x < 28 and 0 <= y < 28 else 0.0

    found = np.zeros((28, 28))
    for y, x in itertools.product(range(28), repeat=2):
        u, v = a * x + b * y + c, d * x + e * y + f
        left, top = math.floor(u), math.floor(v)
        p, q = u - left, v - top
        found[y, x] = (
            (1 - p) * (1 - q) * pixel(left, top)
            + p * (1 - q) * pixel(left + 1, top)
            + (1 - p) * q * pixel(left, top + 1)
            + p * q * pixel(left + 1, top + 1)
        )
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_warp_by_definition(nb, noise, seed):
    random = np.random.RandomState(seed)
    amounts = {
        "shift_x": random.uniform(-9, 9),
        "shift_y": random.uniform(-9, 9),
        "zoom_x": random.uniform(0.3, 2),
        "zoom_y": random.uniform(0.3, 2),
        "rotation": random.uniform(-4, 4),
        "shear": random.uniform(-0.5, 0.5),
    }
    rows = nb.affine_rows(**still(1, **amounts), cos=np.cos, sin=np.sin)
    exact = slowly(noise[0], [row[0] for row in rows])
    assert np.abs(nb.warp(noise[:1], rows)[0] - exact).max() <= 0.5 + 1e-6


def test_warp_all_is_warp_in_blocks(nb, noise):
    """Numbers and arrays mix, and no image is lost between the blocks of 2,000."""
    images = np.tile(noise, (401, 1, 1))
    angles = np.linspace(-1, 1, len(images))
    found = nb.warp_all(images, rotation=angles, zoom_x=1.25)
    assert found.shape == (2005, 28, 28) and found.dtype == np.uint8
    for number in (0, 1999, 2000, 2004):
        one = warped(nb, images[number : number + 1], rotation=angles[number], zoom_x=1.25)
        assert (found[number] == one[0]).all()
    assert (nb.warp_all(noise) == noise).all()


def characters(count):
    """Return made-up characters (count, 28, 28) by whole-number arithmetic alone."""
    y, x = np.mgrid[:28, :28]
    number = np.arange(count)[:, None, None]
    ring = np.abs((x - 13) ** 2 + (y - 13 - number % 3) ** 2 - 60 - number % 17) < 25
    bar = (x + number) % 9 < 3
    return (255 * (ring | (bar & (y > 6) & (y < 22) & (x > 5) & (x < 22)))).astype(np.uint8)


def test_augmented_test_set_is_the_same_everywhere(nb):
    """Pinned: it is made from a RandomState, whose stream NumPy has frozen (NEP 19)."""
    images = characters(60)
    before = images.copy()
    found = nb.augment_test_set(images)
    assert found.shape == images.shape and found.dtype == np.uint8
    assert (images == before).all()
    digest = "fd538b4af42fa5c7613996af88f41f45545c8ca2dd973ceedfcef6a590fe437e"
    assert hashlib.sha256(found.tobytes()).hexdigest() == digest
    assert (nb.augment_test_set(images) == found).all()
    assert (nb.augment_test_set(images, seed=2022) == found).all()
    assert (nb.augment_test_set(images, seed=1) != found).any()


def test_augmentation_of_the_test_set_depends_on_the_place_alone(nb):
    """The same image in the same place of as many is distorted in the same way."""
    images = characters(10)
    found, other = nb.augment_test_set(images), images.copy()
    other[4] = 0
    again = nb.augment_test_set(other)
    assert (again[4] == 0).all()
    assert (np.delete(again, 4, 0) == np.delete(found, 4, 0)).all()
    assert (nb.augment_test_set(images[::-1])[::-1] != found).any()


def test_augmented_test_set_uses_the_ranges(nb, monkeypatch):
    """Shift 10 %, zoom 20 % each axis for itself, 20 degrees, uniform, no shear."""
    seen = {}

    def warp_all(images, **amounts):
        seen.update(amounts)
        return images

    monkeypatch.setattr(nb, "warp_all", warp_all)
    nb.augment_test_set(np.zeros((5000, 28, 28), np.uint8))
    most = {
        "shift_x": (0, 2.8),
        "shift_y": (0, 2.8),
        "zoom_x": (1, 0.2),
        "zoom_y": (1, 0.2),
        "rotation": (0, math.radians(20)),
    }
    assert set(seen) == set(most)
    scaled = np.array([(seen[key] - centre) / reach for key, (centre, reach) in most.items()])
    assert np.abs(scaled).max() <= 1 + 1e-9
    assert (scaled.min(1) < -0.99).all() and (scaled.max(1) > 0.99).all()
    np.testing.assert_allclose((scaled**2).mean(1), 1 / 3, atol=0.03)
    assert np.abs(np.corrcoef(scaled) - np.eye(5)).max() < 0.08


def test_distort_goes_both_ways(nb):
    box = np.zeros((4, 28, 28), np.uint8)
    box[:, 11:17, 11:17] = 255
    shifted = nb.distort(box, "shift", 3)
    centres = [np.argwhere(image).mean(0) - 13.5 for image in shifted]
    assert [abs(value) for centre in centres for value in centre] == [3.0] * 8
    assert centres[0][1] == -centres[1][1] == 3
    box = np.zeros((2, 28, 28), np.uint8)
    box[:, 10:18, 10:18] = 255
    assert [extent(image) for image in nb.distort(box, "zoom", 50)] == [(12, 12), (4, 4)]
    turned = nb.distort(box, "rotation", 45)
    assert (turned[0] == warped(nb, box[:1], rotation=math.pi / 4)[0]).all()
    assert (turned[1] == warped(nb, box[:1], rotation=-math.pi / 4)[0]).all()
    for kind in nb.STRENGTHS:
        assert (nb.distort(box, kind, 0) == box).all()


# ------------------------------------------------------------------- what is said about it


def metrics(accuracy):
    """Return one test set's made-up scores, each another number."""
    return {
        "accuracy": accuracy,
        "ci95": [accuracy - 0.012, accuracy + 0.011],
        "merged_accuracy": accuracy + 0.05,
        "macro_f1": accuracy - 0.003,
        "top3": accuracy + 0.08,
        "nll": 1 - accuracy,
        "ece": accuracy / 20,
    }


def entry(test, augmented, epochs=7, seconds=1234, converged=True):
    """Return one variant's made-up entry."""
    return {
        "epochs": epochs,
        "seconds": seconds,
        "converged": converged,
        "seed": 1,
        "validation_recall": test - 0.001,
        "temperature": 1.1,
        "file_bytes": 1_234_567,
        "test": metrics(test),
        "augmented_test": metrics(augmented),
    }


def results(resnet=True):
    """Return a made-up results.json, with or without ResNet50V2."""

    def model(params, mflops, speed, **variants):
        speeds = {"1": speed / 100, "256": speed}
        return {"params": params, "mflops": mflops, "images_per_second": speeds, **variants}

    found = {
        "generation": "Made up.",
        "code_version": 3,
        "data": {"name": "made-up data", "test_digest": "d"},
        "models": {
            "custom": model(
                555_555, 66.6, 9000.0, without_da=entry(0.881, 0.771), with_da=entry(0.893, 0.884)
            ),
            "mobilenetv2": model(
                2_318_242,
                156.7,
                1500.0,
                without_da=entry(0.851, 0.672),
                with_da=entry(0.872, 0.861, converged=False),
            ),
        },
        "references": {"softmax": model(36_895, 0.1, 90000.0, with_da=entry(0.512, 0.402, 3, 45))},
    }
    if resnet:
        found["models"]["resnet50v2"] = model(
            23_654_836, 999.9, 600.0, without_da=entry(0.884, 0.759), with_da=entry(0.8855, 0.8805)
        )
    return found


@pytest.fixture(params=(True, False), ids=("with ResNet50V2", "without"))
def record(request):
    """A made-up results.json."""
    return results(request.param)


@pytest.fixture
def budget(nb, monkeypatch):
    """What the notebook knows about the big architectures by then."""
    monkeypatch.setattr(nb, "BIG_PARAMETERS", {"mobilenetv2": 2_318_242}, raising=False)


def test_conclusions(nb, record, budget):
    lines = nb.conclusions(record).data.splitlines()
    assert [line[:3] for line in lines] == [f"{number}. " for number in range(1, len(lines) + 1)]
    assert "555,555 parameters, 24 % of MobileNetV2's" in lines[0]  # 555,555 / 2,318,242 = .2396
    assert "reads 89.3 % of the test images" in lines[0]
    said = {
        name: [line for line in lines if title in line and "Against" in line]
        for name, title in nb.ARCHITECTURES.items()
    }
    (mobile,) = said["mobilenetv2"]
    assert "+2.1 points on the test set and +2.3 on the augmented one, at 6.0 times" in mobile
    assert "had not converged, so no superiority is claimed" in mobile
    gains = next(line for line in lines if "many points" in line)
    assert "Custom CNN +11.3" in gains and "MobileNetV2 +18.9" in gains
    assert "reads 94.3 %, and the right class is among its first three in 97.3 %" in lines[-1]
    if "resnet50v2" in record["models"]:
        (resnet,) = said["resnet50v2"]
        # .893 - .8855 = +.75, .884 - .8805 = +.35 points; 9000 / 600 = 15
        assert re.search(
            r"\+0\.[78] points on the test set and \+0\.[34] on .* at 15\.0 times", resnet
        )
        assert "converged" not in resnet and "ResNet50V2 +12." in gains
        assert not any("not published" in line for line in lines)
    else:
        assert said["resnet50v2"] == [] and "ResNet50V2" not in gains
        expected = "ResNet50V2 is not published yet, so nothing is claimed about it."
        assert sum(expected in line for line in lines) == 1


def test_conclusions_tell_losses(nb, budget):
    record = results()
    record["models"]["custom"]["with_da"] = entry(0.80, 0.79)
    text = nb.conclusions(record).data
    assert "-7.2 points on the test set and -7.1 on the augmented one" in text


def test_conclusions_name_the_one_that_is_missing(nb, budget):
    record = results()
    del record["models"]["mobilenetv2"]
    text = nb.conclusions(record).data
    assert "MobileNetV2 is not published yet" in text
    assert "ResNet50V2 is not published yet" not in text


def test_result_rows(nb, record):
    rows = nb.result_rows(record)
    assert all(len(row) == len(nb.RESULT_HEADER) for row in rows)
    by_title = {(row[0], row[1]): row for row in rows}
    custom = by_title["Custom CNN", "with DA"]
    assert custom[2:] == [
        "555,555",
        "66.6",
        "89.30 [88.10, 90.40]",
        "88.40 [87.20, 89.50]",
        "7 (1,234 s)",
    ]
    assert by_title["Softmax regression", "with DA"][4] == "51.20 [50.00, 52.30]"
    assert by_title["Softmax regression", "with DA"][6] == "3 (45 s)"
    assert ("MobileNetV2", "with DA (not converged)") in by_title
    absent = [row[:2] for row in rows if row[2:] == [""] * 5]
    later = "not trained in this generation"
    assert absent == [["ResNet50V2", "not published yet"]] * (
        "resnet50v2" not in record["models"]
    ) + [["LeNet-5", later], ["MobileNetV2 at 56 px", later]]
    assert len(rows) == (9 if "resnet50v2" in record["models"] else 8)


def test_models_of_an_earlier_run_are_marked(nb, record):
    mobile = record["models"]["mobilenetv2"]
    mobile["with_da"]["code_version"], mobile["without_da"]["code_version"] = 2, 3
    named = [row[1] for row in nb.result_rows(record) if row[0] == "MobileNetV2"]
    assert sorted(named) == ["with DA (not converged) (from an earlier run)", "without DA"]
    rest = [row[1] for row in nb.result_rows(record) if row[0] != "MobileNetV2"]
    assert not any("earlier" in state for state in rest)


def test_draw_comparison(nb, record):
    figure = nb.draw_comparison(record, "A title")
    names = [name for name in nb.ARCHITECTURES if name in record["models"]]
    for axis, (test, title) in zip(figure.axes, nb.TEST_SETS.items(), strict=True):
        bars = [patch for patch in axis.patches if isinstance(patch, matplotlib.patches.Rectangle)]
        expected = [
            record["models"][name][variant][test]["accuracy"]
            for name in names
            for variant in nb.VARIANTS
        ]
        assert [bar.get_height() for bar in bars] == pytest.approx(expected)
        assert [text.get_text() for text in axis.texts] == [f"{100 * a:.1f}" for a in expected]
        ends = [segment[:, 1] for line in axis.collections for segment in line.get_segments()]
        np.testing.assert_allclose(ends, [(a - 0.012, a + 0.011) for a in expected])
        assert axis.get_title() == title
        low, high = axis.get_ylim()
        assert low < 0.66 and high == 1 and axis.get_xlim()[0] < -0.3
        assert [tick.get_text().split("\n")[0] for tick in axis.get_xticklabels()] == [
            nb.ARCHITECTURES[name] for name in names
        ]
    assert figure.get_suptitle() == "A title"
    assert nb.draw_comparison(record).get_suptitle() == "Accuracy on made-up data"
    figure.canvas.draw()


def test_draw_comparison_with_one_variant(nb):
    record = results()
    for model in record["models"].values():
        del model["without_da"]
    bars = nb.draw_comparison(record).axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.893, 0.8855, 0.872])


def test_detail_and_score_rows(nb, record):
    details = nb.detail_rows(record)
    assert all(len(row) == len(nb.DETAIL_HEADER) for row in details)
    custom = next(row for row in details if row[0] == "Custom CNN with DA")
    assert custom[1:] == ["1.23", 7, "1,234", "0.8920", "90", "9,000"]
    live = {
        ("custom", "with_da", "test"): {"accuracy": 0.8935},
        ("custom", "without_da", "test"): {"accuracy": 0.8825},
    }
    for comparable in (True, False):
        rows = {row[0]: row for row in nb.score_rows(record, "test", live, comparable)}
        assert all(len(row) == len(nb.SCORE_HEADER) for row in rows.values())
        assert rows["Custom CNN with DA"][1:] == [
            "89.30",
            "88.10 to 90.40",
            "94.30",
            "89.00",
            "97.30",
            "0.107",
            "0.045",
            "89.35",
        ]
        differs = " **differs**" if comparable else ""
        assert rows["Custom CNN without DA"][-1] == "88.25" + differs
        assert rows["MobileNetV2 with DA"][-1] == ""
    augmented = {row[0]: row for row in nb.score_rows(record, "augmented_test", {}, True)}
    assert augmented["MobileNetV2 without DA"][1] == "67.20"


def test_paired_rows(nb):
    labels = np.arange(10)
    good, bad = np.eye(47)[labels], np.eye(47)[np.where(labels < 6, labels + 1, labels)]
    probabilities = {("custom", "with_da", "test"): good, ("mobilenetv2", "with_da", "test"): bad}
    pairs = [
        (("custom", "with_da"), ("mobilenetv2", "with_da")),
        (("custom", "with_da"), ("resnet50v2", "with_da")),
    ]
    (row,) = nb.paired_rows(probabilities, labels, pairs)
    assert row == ["Custom CNN with DA", "MobileNetV2 with DA", "Test set", "+60.00", 6, 0, "0.031"]


def test_collected_results_fill_the_tables(nb, monkeypatch, tmp_path, budget):
    """What a run writes has all that the tables read."""
    monkeypatch.setattr(nb, "PROFILE", "quick")
    (tmp_path / "a").write_bytes(b"12345")
    names = [("custom", "without_da"), ("custom", "with_da"), ("softmax", "with_da")]
    models = {key: nb.make_model(key[0]) for key in names}
    live = {
        (*key, test): metrics(0.5 + number / 10)
        for number, key in enumerate(names)
        for test in nb.TEST_SETS
    }
    history = [{"val_mean_recall": 0.5, "seconds": 2.0}, {"val_mean_recall": 0.7, "seconds": 3.2}]
    histories = {f"{name}_{variant}": history for name, variant in names}
    facts = {
        key: {
            "seed": 3,
            "temperature": 1.2,
            "validation_recall": 0.72,
            "files": ["a"] * (key[0] == "c"),
        }
        for key in histories
    }
    facts["custom_without_da"]["code_version"] = 2
    speeds = {"custom": {"1": 10.0, "256": 300.0}, "softmax": {"1": 50.0, "256": 900.0}}
    published = nb.Published(tmp_path, None, nb.write_sums(tmp_path))
    found = nb.collect_results(
        live, speeds, {"custom": {}}, histories, facts, published, models, {"name": "made up"}
    )
    custom = found["models"]["custom"]
    assert custom["params"] == models["custom", "with_da"].count_params()
    assert custom["mflops"] == round(nb.count_mflops(models["custom", "with_da"]), 3)
    assert custom["with_da"]["test"] == live["custom", "with_da", "test"]
    assert custom["without_da"]["code_version"] == 2
    assert custom["with_da"] | {"test": 0, "augmented_test": 0} == {
        "code_version": nb.CODE_VERSION,
        "epochs": 2,
        "seconds": 5,
        "converged": False,
        "seed": 3,
        "validation_recall": 0.72,
        "temperature": 1.2,
        "file_bytes": 5,
        "test": 0,
        "augmented_test": 0,
    }
    assert found["references"]["softmax"]["with_da"]["file_bytes"] == 0
    found["code_version"] = nb.CODE_VERSION
    assert len(nb.result_rows(found)) == 7 and len(nb.detail_rows(found)) == 3
    assert nb.json.loads(nb.json.dumps(found)) == found
    nb.draw_comparison(found)


def test_over_seeds(nb):
    first = {"test": metrics(0.9), "augmented_test": metrics(0.8)}
    others = [
        {"test": metrics(0.93), "augmented_test": metrics(0.8)},
        {"test": metrics(0.87), "augmented_test": metrics(0.8)},
    ]
    found = nb.over_seeds([7, 8, 9], first, others)
    assert found["seeds"] == [7, 8, 9] and set(found) == {"seeds", *nb.TEST_SETS}
    assert found["test"]["values"] == [0.9, 0.93, 0.87]
    assert found["test"]["mean"] == pytest.approx(0.9)
    assert found["test"]["std"] == pytest.approx(0.03)  # of a sample: by n - 1
    assert found["augmented_test"]["std"] == pytest.approx(0)


def test_draw_confusion_and_robustness(nb, monkeypatch):
    monkeypatch.setattr(nb, "DATA_NAME", "made-up data", raising=False)
    counts = np.diag(np.full(47, 9))
    nb.draw_confusion(counts, "No errors").canvas.draw()
    counts[3, 5] = 40
    figure = nb.draw_confusion(counts, "Errors")
    shown = figure.axes[0].images[0].get_array()
    assert float(shown[3, 5]) == 40 and np.isnan(np.ma.filled(shown, np.nan)[3, 3])
    curves = {
        ("custom", variant, kind): [0.9, 0.8, 0.7, 0.6, 0.5]
        for variant in nb.VARIANTS
        for kind in nb.STRENGTHS
    }
    figure = nb.draw_robustness(curves, 47)
    for axis, (kind, strengths) in zip(figure.axes, nb.STRENGTHS.items(), strict=True):
        for line in axis.lines:
            assert tuple(line.get_xdata()) == strengths and list(line.get_ydata()) == [
                0.9,
                0.8,
                0.7,
                0.6,
                0.5,
            ]
        assert nb.UNITS[kind] in axis.get_xlabel() and len(axis.lines) == 2
