"""Augmentation, batches, the training loop that can be taken up again, and the search."""

import inspect
import json
import math
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import examples, untimed
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

few = settings(max_examples=20, deadline=None)
NONE = {"shift": 0.0, "zoom": 0.0, "rotation": 0.0, "shear": 0.0}


def pictures(count, seed=0):
    """Return smooth uint8 images (count, 28, 28): interpolation of them is well conditioned."""
    random = np.random.RandomState(seed)
    coarse = random.uniform(0, 255, (count, 9, 9))
    grid = np.linspace(0, 8, 28)
    low = np.minimum(grid.astype(int), 7)
    share = grid - low
    rows = coarse[:, low] * (1 - share)[:, None] + coarse[:, low + 1] * share[:, None]
    return (rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share).astype(np.uint8)


def floats(images):
    """Return uint8 images (N, 28, 28) as the networks take them: float32 (N, 28, 28, 1)."""
    return images[..., None].astype(np.float32)


# -------------------------------------------------------------------------- augmentation


def random_amounts(count, seed=0):
    """Return `affine_rows`'s six arguments (count,), float32, in ranges wider than are used."""
    random = np.random.RandomState(seed)
    ranges = ((-6, 6), (-6, 6), (0.6, 1.5), (0.6, 1.5), (-3.1, 3.1), (-0.4, 0.4))
    return [random.uniform(*bounds, count).astype(np.float32) for bounds in ranges]


def test_backend_maps_as_numpy_does(nb):
    images = pictures(200)
    rows = nb.affine_rows(*random_amounts(200), np.cos, np.sin)
    transform = np.stack([*rows, *[np.zeros_like(rows[0])] * 2], 1).astype(np.float32)
    found = keras.ops.image.affine_transform(
        floats(images), transform, interpolation="bilinear", fill_value=0
    )[..., 0]
    found = np.floor(keras.ops.convert_to_numpy(found) + 0.5)
    expected = nb.warp(images, rows).astype(float)
    assert np.abs(found - expected).max() <= 1
    assert expected.std() > 20 and (expected != images).mean() > 0.5


@pytest.fixture
def drawn(monkeypatch):
    """Replace the layer's draws by `drawn.values` (6, N) and `drawn.knots` (2, N, 5, 5)."""
    held = SimpleNamespace(values=None, knots=None)

    def uniform(shape, low, high, dtype=None, seed=None):
        values = held.values if len(shape) == 2 else held.knots
        assert (low, high) == (-1, 1) and tuple(shape) == values.shape and seed is not None
        return keras.ops.convert_to_tensor(values.astype(np.float32))

    monkeypatch.setattr(keras.random, "uniform", uniform)
    return held


AXES = ("shift_x", "shift_y", "zoom_x", "zoom_y", "rotation", "shear")


@pytest.mark.parametrize("axis", (*AXES, "all"))
def test_layer_does_what_its_ranges_say(nb, drawn, axis):
    """Each draw of 1 is the whole range: 10 % of 28 pixels, 20 %, 20 degrees, a slope of .3."""
    images, count = pictures(8), 8
    drawn.values = np.zeros((6, count))
    chosen = range(6) if axis == "all" else [AXES.index(axis)]
    drawn.values[chosen] = np.random.RandomState(3).uniform(-1, 1, (len(chosen), count))
    most = (2.8, 2.8, 0.2, 0.2, math.radians(20), 0.3)
    base = (0, 0, 1, 1, 0, 0)
    amounts = {
        name: start + reach * draw
        for name, start, reach, draw in zip(AXES, base, most, drawn.values, strict=True)
    }
    layer = nb.RandomDistortion(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3)
    found = keras.ops.convert_to_numpy(layer(floats(images), training=True))[..., 0]
    expected = nb.warp_all(images, **amounts).astype(float)
    assert np.abs(np.floor(found + 0.5) - expected).max() <= 1
    assert (expected != images).any()


@pytest.mark.parametrize("row, shifted", ((0, np.s_[:, 3:]), (1, np.s_[3:])))
def test_shift_goes_right_and_down(nb, drawn, row, shifted):
    images = pictures(2)
    drawn.values = np.zeros((6, 2))
    drawn.values[row] = 1
    layer = nb.RandomDistortion(shift=3 / 28, zoom=0, rotation=0, shear=0)
    found = keras.ops.convert_to_numpy(layer(floats(images), training=True))[..., 0]
    kept = np.s_[:, :-3] if row == 0 else np.s_[:-3]
    for before, after in zip(images, found, strict=True):
        np.testing.assert_allclose(after[shifted], before[kept], atol=0.01)
        assert (after[:, :3] if row == 0 else after[:3]).max() < 0.01, "outside is not 0"


def test_nothing_at_zero_ranges(nb):
    images = floats(pictures(20))
    found = nb.RandomDistortion(**NONE)(images, training=True)
    np.testing.assert_allclose(found, images, atol=1e-3)


def test_augmentation_acts_in_training_alone(nb):
    images = floats(pictures(6))
    layer = nb.RandomDistortion(**nb.AUGMENTATION)
    assert (np.asarray(layer(images)) == images).all()
    assert (np.asarray(layer(images, training=False)) == images).all()
    assert not np.allclose(layer(images, training=True), images, atol=5)
    model = nb.training_model(keras.Sequential([layers.Flatten()]), nb.AUGMENTATION)
    assert (np.asarray(model(images)).reshape(images.shape) == images).all()


def test_draws_fill_their_ranges(nb, monkeypatch):
    """Uniform, independent of each other and from image to image, and new in every call."""
    seen, real = [], nb.affine_rows

    def affine_rows(*arguments):
        seen.append(np.array([keras.ops.convert_to_numpy(a) for a in arguments[:6]]))
        return real(*arguments)

    monkeypatch.setattr(nb, "affine_rows", affine_rows)
    layer = nb.RandomDistortion(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3)
    images = np.zeros((4000, 28, 28, 1), np.float32)
    for _ in range(2):
        layer(images, training=True)
    centre = np.array([0, 0, 1, 1, 0, 0])[:, None]
    most = np.array([2.8, 2.8, 0.2, 0.2, math.radians(20), 0.3])[:, None]
    first, second = ((amounts - centre) / most for amounts in seen)
    assert np.abs(first).max() <= 1 + 1e-5
    assert (first.min(1) < -0.99).all() and (first.max(1) > 0.99).all()
    assert np.abs(first.mean(1)).max() < 0.05  # five standard errors
    np.testing.assert_allclose((first**2).mean(1), 1 / 3, atol=0.03)
    assert np.abs(np.corrcoef(first) - np.eye(6)).max() < 0.09
    assert (
        np.abs([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second, strict=True)]).max() < 0.09
    )


def test_layer_comes_back_from_its_configuration(nb):
    ranges = {"shift": 0.1, "zoom": 0.2, "rotation": 20.0, "shear": 0.3, "elastic": 1.5}
    layer = nb.RandomDistortion(**ranges, name="distortion")
    again = keras.layers.deserialize(json.loads(json.dumps(keras.layers.serialize(layer))))
    for kept in (layer, again):
        assert {key: getattr(kept, key) for key in ranges} == ranges and kept.name == "distortion"


def test_augmentation_of_the_protocol(nb):
    found = {"shift": 0.1, "zoom": 0.2, "rotation": 20.0, "shear": 0.0, "elastic": 0.0}
    assert found == nb.AUGMENTATION == nb.augmentation({}) == nb.augmentation(nb.RECIPE)


def test_search_adds_to_the_augmentation(nb):
    added = {"shear": 0.2, "elastic": 1.0, "learning_rate": 0.1, "widths": (1, 1, 1)}
    expected = {"shift": 0.1, "zoom": 0.2, "rotation": 20.0, "shear": 0.2, "elastic": 1.0}
    assert nb.augmentation(added) == expected


def test_without_augmentation_only_the_network(nb):
    net = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten()])
    assert nb.training_model(net, None).layers == [net]
    augmented = nb.training_model(net, nb.AUGMENTATION).layers
    assert [type(layer).__name__ for layer in augmented] == ["RandomDistortion", "Sequential"]


def test_images_are_augmented_in_float32(nb):
    keras.config.set_dtype_policy("mixed_bfloat16")  # which cannot tell 250 from 251
    try:
        model = nb.training_model(keras.Sequential([layers.Flatten()]), nb.AUGMENTATION)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[0].compute_dtype == "float32"


# --------------------------------------------------------------------- elastic distortion
# What lies outside of the image counts as at most 0.001 of a pixel at its edge: 0.255 of 255.

OUTSIDE = 0.26


def spread_at(place):
    """Return the shares (5,) of the knots in the displacement at pixel `place` of an axis."""
    knots = [0, 6.75, 13.5, 20.25, 27]
    shares = [math.exp(-0.5 * ((place - knot) / 4.05) ** 2) for knot in knots]
    return np.array(shares) / sum(shares)


def read_at(image, x, y):
    """Return a 28 x 28 image's value at a place, linearly interpolated, 0 outside."""
    value, left, top = 0.0, math.floor(x), math.floor(y)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        if 0 <= column < 28 and 0 <= row < 28:
            value += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return value


def test_bending_by_hand(nb, drawn):
    """Pixel by pixel: the affine map, then the knots' displacement, then one interpolation."""
    images, random = pictures(3), np.random.RandomState(4)
    drawn.values, drawn.knots = random.uniform(-1, 1, (6, 3)), random.uniform(-1, 1, (2, 3, 5, 5))
    layer = nb.RandomDistortion(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3, elastic=2.5)
    found = keras.ops.convert_to_numpy(layer(floats(images), training=True))[..., 0]
    shares = [spread_at(place) for place in range(28)]
    for image, after, values, knots in zip(
        images, found, drawn.values.T, drawn.knots.swapaxes(0, 1), strict=True
    ):
        amounts = np.multiply(values, (2.8, 2.8, 0.2, 0.2, math.radians(20), 0.3))
        amounts += (0, 0, 1, 1, 0, 0)
        a, b, c, d, e, f = nb.affine_rows(*amounts, math.cos, math.sin)
        for y, x in np.ndindex(28, 28):
            right, down = (2.5 * shares[y] @ grid @ shares[x] for grid in knots)
            expected = read_at(image, a * x + b * y + c + right, d * x + e * y + f + down)
            assert after[y, x] == pytest.approx(expected, abs=OUTSIDE), (y, x)


def test_hardly_any_bending_is_the_affine_map(nb, drawn):
    """On the whole image, so that the two ways to interpolate agree at its edges, too."""
    images, random, count = floats(pictures(50)), np.random.RandomState(5), 50
    drawn.values = random.uniform(-1, 1, (6, count))
    drawn.knots = random.uniform(-1, 1, (2, count, 5, 5))
    ranges = {"shift": 0.3, "zoom": 0.3, "rotation": 90.0, "shear": 0.3}
    plain, bent = (
        keras.ops.convert_to_numpy(nb.RandomDistortion(**ranges, elastic=e)(images, training=True))
        for e in (0.0, 1e-5)
    )
    np.testing.assert_allclose(bent, plain, atol=OUTSIDE)
    assert (plain == 0).mean() > 0.05 and np.abs(plain - images).mean() > 20


def displacements(nb, elastic, count, calls=1):
    """Return how far pixels were read from, (2, N, 28, 28), x first, by pictures of coordinates.

    NaN where the picture's edge may have been read.
    """
    layer = nb.RandomDistortion(**NONE, elastic=elastic)
    y, x = np.mgrid[:28, :28].astype(np.float32)
    found = []
    for _ in range(calls):
        before = keras.ops.convert_to_numpy(layer.seed_generator.state).copy()
        for ramp in (x, y):
            layer.seed_generator.state.assign(before)
            images = np.broadcast_to(ramp[..., None], (count, 28, 28, 1))
            read = keras.ops.convert_to_numpy(layer(images, training=True))[..., 0]
            inner = (np.minimum(x, y) >= elastic) & (np.maximum(x, y) <= 27 - elastic)
            found.append(np.where(inner, read - ramp, np.nan))
    return np.array(found)


@pytest.mark.parametrize("elastic", (0.5, 2.0))
def test_displacement_is_within_its_range(nb, elastic):
    found = displacements(nb, elastic, 500)
    assert np.nanmax(np.abs(found)) <= elastic + 1e-4
    assert np.nanmax(np.abs(found)) > 0.75 * elastic and np.nanstd(found) > 0.25 * elastic
    assert abs(np.nanmean(found)) < 0.05 * elastic


def test_displacement_reaches_its_range(nb, drawn):
    drawn.values, drawn.knots = np.zeros((6, 2)), np.ones((2, 2, 5, 5))
    drawn.knots[:, 1] = -1
    for found in displacements(nb, 2.0, 2):
        assert np.nanmin(found[0]) == pytest.approx(2, abs=1e-4) == np.nanmax(found[0])
        assert np.nanmin(found[1]) == pytest.approx(-2, abs=1e-4) == np.nanmax(found[1])


def test_bending_is_new_for_each_image_axis_and_call(nb):
    first_x, first_y, second_x, second_y = displacements(nb, 1.0, 400, calls=2)
    middle = [part[:, 14, 14] for part in (first_x, first_y, second_x, second_y)]
    middle += [first_x[:, 5, 5], np.roll(middle[0], 1)]
    assert np.abs(np.corrcoef(middle) - np.eye(6)).max() < 0.25  # five standard errors


def test_bending_is_smooth(nb, drawn):
    """Neighbours move alike: the picture is not torn, nor folded over, by what the search tries."""
    random, count = np.random.RandomState(6), 300
    drawn.values, drawn.knots = np.zeros((6, count)), random.choice((-1, 1), (2, count, 5, 5))
    found = displacements(nb, 2.0, count)
    for axis in (2, 3):
        steps, turns = np.diff(found, axis=axis), np.diff(found, 2, axis=axis)
        assert np.nanmax(np.abs(steps)) < 0.25 * 2 and np.nanmax(np.abs(turns)) < 0.1 * 2
    assert np.nanstd(found) > 0.5


@pytest.mark.parametrize("elastic", (0.0, 2.0))
@pytest.mark.parametrize("row", (0, 1))
@pytest.mark.parametrize("way", (-1, 1))
def test_outside_of_the_image_is_empty(nb, drawn, elastic, row, way):
    drawn.values, drawn.knots = np.zeros((6, 4)), np.random.RandomState(7).rand(2, 4, 5, 5) * 2 - 1
    drawn.values[row] = way
    layer = nb.RandomDistortion(shift=10 / 28, zoom=0, rotation=0, shear=0, elastic=elastic)
    white = np.full((4, 28, 28, 1), 255, np.float32)
    found = keras.ops.convert_to_numpy(layer(white, training=True))[..., 0]
    found = found.swapaxes(1, 2) if row else found
    found = found[:, :, ::-1] if way < 0 else found  # now it went to the right, from the left edge
    assert np.abs(found[:, :, : 10 - 3]).max() <= OUTSIDE
    assert found[:, 3:-3, 10 + 3 :].min() > 254.9


@pytest.mark.parametrize("elastic", (0.0, 1.0))
def test_batches_of_any_size_are_distorted_in_training(nb, elastic):
    """In a compiled graph, which has to do for 50 images and for the last 13 of 113."""
    images, seen = floats(pictures(113)), []

    class Sees(keras.layers.Layer):
        def call(self, x, training=False):
            seen.append((x.shape[0], training))
            return keras.ops.mean(x, (1, 2))

        def compute_output_shape(self, shape):
            return (shape[0], 1)

    net = keras.Sequential([keras.Input((28, 28, 1)), Sees()])
    model = nb.training_model(net, {**nb.AUGMENTATION, "elastic": elastic})
    assert model.output_shape == (None, 1)
    model.compile("sgd", "mae")  # how much the images' means change
    history = model.fit(
        images, images.mean((1, 2)), batch_size=50, epochs=2, shuffle=False, verbose=0
    ).history
    assert min(history["loss"]) > 5 and len(set(history["loss"])) == 2
    assert model.evaluate(images, images.mean((1, 2)), verbose=0) < 1e-3
    sizes = {size for size, training in seen if training}
    assert None in sizes or 13 in sizes


# ------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def data():
    """Images (113, 28, 28), each with its number in its first pixels, labels and class weights."""
    images, labels = pictures(113), (np.arange(113) * 5 % 47).astype(np.uint8)
    images[:, 0, 0] = np.arange(113)
    return images, labels, np.linspace(0.5, 1.5, 47)


def numbers(batches):
    """Return the numbers of the images in the order in which `batches` hands them out."""
    return np.concatenate([batches[i][0][:, 0, 0, 0] for i in range(len(batches))]).astype(int)


def test_batches_hold_what_belongs_together(nb, data):
    images, labels, weights = data
    batches = nb.Batches(images, labels, 20, 3, weights)
    assert len(batches) == 5  # 13 of 113 images are left out
    for index in range(5):
        x, y, w = batches[index]
        assert x.shape == (20, 28, 28, 1) and y.shape == (20, 47) and w.shape == (20,)
        assert {x.dtype, y.dtype, w.dtype} == {np.dtype(np.float32)}
        which = x[:, 0, 0, 0].astype(int)
        assert (x[..., 0] == images[which]).all()
        assert (y.argmax(1) == labels[which]).all() and (y.sum(1) == 1).all()
        np.testing.assert_allclose(w, weights[labels[which]])


@few
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), batch=st.integers(1, 60))
def test_every_image_once(nb, data, seed, epoch, batch):
    batches = nb.Batches(*data[:2], batch, seed, data[2])
    batches.set_epoch(epoch)
    found = numbers(batches)
    assert len(found) == 113 // batch * batch
    assert len(set(found)) == len(found)


def test_order_is_a_function_of_seed_and_epoch(nb, data):
    def order(seed, epoch, before=()):
        batches = nb.Batches(*data[:2], 1, seed, data[2])
        for other in before:
            batches.set_epoch(other)
        batches.set_epoch(epoch)
        return tuple(numbers(batches))

    assert order(1, 2) == order(1, 2, before=(0, 1)) == order(1, 2, before=(5,))
    distinct = {order(seed, epoch) for seed in (1, 2, 3) for epoch in range(4)}
    assert len(distinct) == 12 and tuple(range(113)) not in distinct
    fresh = nb.Batches(*data[:2], 1, 1, data[2])
    assert tuple(numbers(fresh)) == order(1, 0)


def test_images_left_out_change_with_the_epoch(nb, data):
    batches, seen = nb.Batches(*data[:2], 20, 1, data[2]), set()
    for epoch in range(8):
        batches.set_epoch(epoch)
        seen |= set(numbers(batches))
    assert len(seen) == 113


def test_fewer_images_than_a_batch(nb, data):
    batches = nb.Batches(data[0][:7], data[1][:7], 128, 1, data[2])
    assert len(batches) == 1 and set(numbers(batches)) == set(range(7))


def test_seeds_of_random_layers(nb, data):
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Dropout(0.5),
            layers.Flatten(),
            keras.Sequential([layers.Dropout(0.5)]),
        ]
    )
    model = nb.training_model(net, nb.AUGMENTATION)
    batches = nb.Batches(*data[:2], 20, 1, data[2])

    def states(seed, epoch):
        callback = nb.EpochSeeds(batches, seed)
        callback.set_model(model)
        callback.on_epoch_begin(epoch)
        found = [
            tuple(keras.ops.convert_to_numpy(layer.seed_generator.state).tolist())
            for layer in model._flatten_layers()
            if hasattr(layer, "seed_generator")
        ]
        assert len(found) == 3
        return found

    first = states(1, 0)
    assert len({*first, *states(1, 1), *states(2, 0)}) == 9, "two layers, epochs or seeds alike"
    assert states(1, 0) == first
    batches.set_epoch(7)
    expected = tuple(numbers(batches))
    states(1, 7)
    assert tuple(numbers(batches)) == expected
    states(1, 8)
    assert tuple(numbers(batches)) != expected


# -------------------------------------------------------------------------- class weights


def test_weights_are_one_on_balanced_labels(nb):
    found = nb.class_weights(np.tile(np.arange(47), 13).astype(np.uint8))
    assert found.shape == (47,) and (found == 1).all()


@few
@given(st.lists(st.integers(0, 46), min_size=1, max_size=300))
def test_weights_even_out_the_classes(nb, labels):
    labels = np.array(labels)
    found, counts = nb.class_weights(labels), np.bincount(labels, minlength=47)
    assert np.isfinite(found).all()
    assert np.isclose(found[labels].mean(), 1)
    whole = (found * counts)[counts > 0]
    np.testing.assert_allclose(whole, whole[0])


# ------------------------------------------------------------------------------ the metric


def recall(labels, predicted):
    """Return the mean over the classes present of the share recognised, class by class."""
    return np.mean([(predicted[labels == c] == c).mean() for c in np.unique(labels)])


@few
@given(count=st.integers(1, 200), classes=st.integers(1, 47), seed=st.integers(0, 1000))
def test_mean_recall(nb, count, classes, seed):
    random = np.random.RandomState(seed)
    labels = np.minimum(random.geometric(2 / (classes + 1), count) - 1, classes - 1)  # uneven
    probabilities = random.dirichlet(np.ones(47), count).astype(np.float32)
    right = random.rand(count) < 0.6
    probabilities[right, labels[right]] = 2
    metric = nb.MeanRecall()
    for part in np.array_split(np.arange(count), 3):
        if len(part):
            metric.update_state(
                np.eye(47)[labels[part]], probabilities[part], sample_weight=random.rand(len(part))
            )
    assert float(metric.result()) == pytest.approx(
        recall(labels, probabilities.argmax(1)), abs=1e-5
    )


def test_mean_recall_by_hand(nb):
    # class 3: 3 of 4, class 5: 0 of 1, class 9: 1 of 1; accuracy 4 of 6
    labels, predicted = np.array([3, 3, 3, 3, 5, 9]), np.array([3, 3, 3, 9, 9, 9])
    metric = nb.MeanRecall()
    metric.update_state(np.eye(47)[labels], np.eye(47)[predicted])
    assert float(metric.result()) == pytest.approx((3 / 4 + 0 + 1) / 3)
    metric.reset_state()
    assert float(metric.result()) == 0
    metric.update_state(np.eye(47)[:5], np.eye(47)[:5])
    assert float(metric.result()) == 1


# -------------------------------------------------------------------------------- the loss


def recipe(nb, **changes):
    """Return the recipe with some values changed."""
    assert set(changes) <= set(nb.RECIPE)
    return {**nb.RECIPE, **changes}


def softmax(logits):
    """Return the probabilities (N, 47) of logits (N, 47), in float64."""
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def adjusted_loss(logits, labels, prior, smoothing):
    """Return the loss of Menon et al. 2021, equation 10 with tau = 1, with label smoothing."""
    adjusted = softmax(logits + np.log(np.maximum(prior, 1e-6)))
    target = np.eye(47)[labels] * (1 - smoothing) + smoothing / 47
    return -(target * np.log(adjusted)).sum(1).mean()


@pytest.fixture(scope="module")
def scored():
    """Logits (60, 47), labels of 46 of the classes, unevenly, and the classes' shares."""
    random = np.random.RandomState(8)
    labels = np.concatenate([np.arange(46), np.zeros(14, int)])
    prior = random.dirichlet(np.full(47, 0.5))
    prior[46] = 0
    return random.normal(0, 1.5, (60, 47)).astype(np.float32), labels, prior / prior.sum()


def loss_of(nb, scored, prior=None, **changes):
    """Return the recipe's loss of the scored examples, by Keras."""
    logits, labels, shares = scored
    model = keras.Sequential([keras.Input((47,)), layers.Softmax()])
    model.compile("sgd", nb.make_loss(recipe(nb, **changes), shares if prior is None else prior))
    return model.evaluate(logits, np.eye(47)[labels], verbose=0, batch_size=60)


@pytest.mark.parametrize("smoothing", (0.0, 0.05, 0.1))
def test_adjusted_loss(nb, scored, smoothing):
    found = loss_of(nb, scored, balance="logits", label_smoothing=smoothing)
    assert found == pytest.approx(adjusted_loss(*scored, smoothing), rel=1e-4)
    assert found != pytest.approx(adjusted_loss(*scored[:2], np.ones(47), smoothing), rel=0.01)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_weighed_loss_does_not_see_the_shares(nb, scored, smoothing):
    found = loss_of(nb, scored, balance="weights", label_smoothing=smoothing)
    expected = adjusted_loss(*scored[:2], np.ones(47), smoothing)  # even: not adjusted
    assert found == pytest.approx(expected, rel=1e-4)


def test_adjusted_loss_of_even_classes_is_the_plain_one(nb, scored):
    even = np.full(47, 1 / 47)
    adjusted, plain = (loss_of(nb, scored, even, balance=b) for b in ("logits", "weights"))
    assert adjusted == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("optimizer", ("adamw", "sgd"))
def test_training_minimises_the_recipe_s_loss(nb, scored, optimizer):
    """What `compile_for_training` sets up is the loss adjusted by the shares it is given."""
    logits, labels, prior = scored
    model = keras.Sequential([keras.Input((47,)), layers.Softmax()])
    nb.compile_for_training(model, recipe(nb, optimizer=optimizer, balance="logits"), 10, prior)
    found = model.evaluate(logits, np.eye(47)[labels], verbose=0, return_dict=True)
    smoothing = nb.RECIPE["label_smoothing"]
    assert found["loss"] == pytest.approx(adjusted_loss(*scored, smoothing), rel=1e-4)
    assert found["mean_recall"] == pytest.approx(recall(labels, logits.argmax(1)), abs=1e-5)


# -------------------------------------------------------------------------- the optimiser


def optimiser(nb, steps, **changes):
    """Return the optimiser for `steps` steps, and the network: 2 + 1 + 1 + 1 weights."""
    net = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, name="dense"), layers.BatchNormalization()]
    )
    nb.compile_for_training(net, recipe(nb, **changes), steps)
    return net.optimizer, net


@pytest.mark.parametrize("optimizer, times", (("adamw", 1), ("sgd", 25)))
def test_schedule(nb, optimizer, times):
    used, _ = optimiser(nb, 1000, optimizer=optimizer, learning_rate=0.008, warmup_share=0.1)
    rates = [float(used._learning_rate(step)) / times for step in (0, 50, 100, 550, 1000)]
    assert rates[0] < 0.008 / 50
    assert rates[1] == pytest.approx(0.004, rel=0.05)
    assert rates[2] == pytest.approx(0.008, rel=0.02)
    assert rates[3] == pytest.approx(0.004, rel=0.02)  # half way down the cosine
    assert rates[4] == pytest.approx(0, abs=1e-6)


def test_optimisers(nb):
    adamw, _ = optimiser(nb, 10, optimizer="adamw", weight_decay=0.5)
    assert type(adamw) is keras.optimizers.AdamW and adamw.weight_decay == 0.5
    sgd, _ = optimiser(nb, 10, optimizer="sgd", weight_decay=0.5)
    assert type(sgd) is keras.optimizers.SGD and sgd.weight_decay == pytest.approx(0.02)
    assert sgd.momentum == 0.9 and sgd.nesterov


@pytest.mark.parametrize("optimizer", ("adamw", "sgd"))
@pytest.mark.parametrize("steps, window", ((10, 1), (1000, 50), (100_000, 500)))
def test_window_of_the_moving_average(nb, steps, window, optimizer):
    changes = {"averaging_share": 0.05, "max_averaging_steps": 500, "optimizer": optimizer}
    used, _ = optimiser(nb, steps, **changes)
    assert used.use_ema and used.ema_momentum == pytest.approx(1 - 1 / window)
    assert used.ema_overwrite_frequency is None


@pytest.mark.parametrize("optimizer", ("adamw", "sgd"))
def test_biases_and_normalisations_do_not_decay(nb, optimizer):
    """And kernels decay by rate x decay in a step, whichever the optimiser."""
    used, net = optimiser(nb, 10, optimizer=optimizer, weight_decay=0.5, learning_rate=0.1)
    for variable in net.trainable_variables:
        variable.assign(np.ones(variable.shape))
    expected = 1.0
    for step in range(5):
        rate = float(used._learning_rate(step)) / (25 if optimizer == "sgd" else 1)
        expected *= 1 - rate * 0.5
        used.apply([np.zeros(v.shape, np.float32) for v in net.trainable_variables])
    after = {
        variable.path.split("/")[-1]: np.asarray(variable) for variable in net.trainable_variables
    }
    assert sorted(after) == ["beta", "bias", "gamma", "kernel"]
    np.testing.assert_allclose(after.pop("kernel"), expected, rtol=1e-5)
    assert expected < 0.9
    assert all((value == 1).all() for value in after.values())


# ------------------------------------------------------------------------------- training


TRAIN, VALIDATION = examples(6, 0), examples(2, 1)
RANGES = {"shift": 0.03, "zoom": 0.05, "rotation": 3.0, "shear": 0.0}


def small_network(seed):
    """Return a small network with batch normalisation and dropout."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.AveragePooling2D(4),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(47),
            layers.Softmax(dtype="float32"),
        ]
    )


def run(nb, path=None, net=None, epochs=5, origin="a", changes=(), augment=RANGES, seed=1, **more):
    """Train the small network for a few epochs; return (network, history)."""
    net = small_network(seed) if net is None else net
    used = recipe(nb, **{"learning_rate": 0.02, "averaging_share": 0.2, **dict(changes)})
    history = nb.run_training(
        net, TRAIN, VALIDATION, used, epochs, 47, augment, seed, path=path, origin=origin, **more
    )
    return net, history


@pytest.fixture(scope="module")
def whole(nb, tmp_path_factory):
    """A run without interruption: its network, history and checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "run.weights.h5"
    net, history = run(nb, path)
    return SimpleNamespace(net=net, history=history, path=path)


def same_weights(first, second):
    """Return whether two networks have the same weights, bit for bit."""
    pairs = zip(first.get_weights(), second.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_learns(nb, whole):
    first, last = whole.history[0], whole.history[-1]
    assert len(whole.history) == 5
    assert last["loss"] < 0.7 * first["loss"] and last["val_loss"] < first["val_loss"]
    assert last["val_mean_recall"] > 0.8 > 0.4 > first["mean_recall"]
    assert all(
        set(epoch)
        == {
            "loss",
            "accuracy",
            "mean_recall",
            "val_loss",
            "val_accuracy",
            "val_mean_recall",
            "seconds",
        }
        for epoch in whole.history
    )


def test_network_ends_with_what_was_validated(nb, whole):
    """The moving average is what the history's last entry scored and what the network holds."""
    found = np.asarray(whole.net(floats(VALIDATION[0]), training=False))
    assert recall(VALIDATION[1].astype(int), found.argmax(1)) == pytest.approx(
        whole.history[-1]["val_mean_recall"], abs=1e-4
    )
    smoothing = nb.RECIPE["label_smoothing"]
    smoothed = np.eye(47)[VALIDATION[1]] * (1 - smoothing) + smoothing / 47
    loss = -(smoothed * np.log(found)).sum(1).mean()
    assert loss == pytest.approx(whole.history[-1]["val_loss"], rel=1e-4)


def test_validating_seldom_changes_nothing_else(nb, whole):
    net, history = run(nb, validate_every=3)
    assert [number for number, epoch in enumerate(history, 1) if "val_loss" in epoch] == [3]
    assert set(history[2]) == set(whole.history[2])
    for epoch, expected in zip(untimed(history), untimed(whole.history), strict=True):
        assert epoch == pytest.approx({key: expected[key] for key in epoch}, rel=1e-3)
    for found, expected in zip(net.get_weights(), whole.net.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)  # swapping, to validate, rounds


def test_learns_by_everything_else_that_the_search_tries(nb):
    changes = {"optimizer": "sgd", "learning_rate": 4e-3, "balance": "logits"}
    augment = {**RANGES, "shear": 0.1, "elastic": 1.0}
    _, history = run(nb, changes=changes, augment=augment)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["val_mean_recall"] > 0.8 > 0.4 > history[0]["mean_recall"]


class Interrupted(Exception):
    """What stands for a kill in the tests."""


def interrupt(nb, monkeypatch, epoch, batch):
    """Raise Interrupted in `epoch` (from 0) after `batch` batches."""

    def on_train_batch_end(self, number, logs=None):
        if len(self.history) == epoch and number + 1 == batch:
            raise Interrupted

    monkeypatch.setattr(nb.Checkpoint, "on_train_batch_end", on_train_batch_end)


def test_interrupted_run_ends_as_if_it_had_not_been(nb, whole, tmp_path, monkeypatch):
    """Cut off twice, and taken up with other initial weights, which the checkpoint replaces."""
    path = tmp_path / "run.weights.h5"
    for epoch, batch, seed in ((2, 3, 1), (4, 6, 1)):
        with monkeypatch.context() as patched:
            interrupt(nb, patched, epoch, batch)
            with pytest.raises(Interrupted):
                run(nb, path, net=small_network(seed))
        assert len(nb.saved_history(path, "a")) == epoch
    net, history = run(nb, path, net=small_network(99))
    assert untimed(history) == untimed(whole.history)
    assert same_weights(net, whole.net)


@pytest.fixture
def fits(monkeypatch):
    """Replace training by a note of the first epoch, counted from 0, and Interrupted."""
    begun = []

    def fit(self, *arguments, initial_epoch=0, **options):
        begun.append(initial_epoch)
        raise Interrupted

    monkeypatch.setattr(keras.Sequential, "fit", fit)
    return begun


def test_finished_run_is_not_trained_again(nb, whole, fits):
    before = whole.path.read_bytes()
    net, history = run(nb, whole.path, net=small_network(5))
    assert history == whole.history and same_weights(net, whole.net) and fits == []
    assert whole.path.read_bytes() == before


def test_batches_come_to_training_in_their_order(nb, monkeypatch):
    """Nothing shuffles on top of `Batches`, or an interrupted run could not be repeated."""
    asked = []

    class Spy(nb.Batches):
        def set_epoch(self, epoch):
            asked.append([])
            super().set_epoch(epoch)

        def __getitem__(self, index):
            asked[-1].append(index)
            return super().__getitem__(index)

    monkeypatch.setattr(nb, "Batches", Spy)
    net = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(47, "softmax")]
    )
    run(nb, net=net, epochs=3, augment=None)
    for epoch in asked[-3:]:
        assert epoch[-6:] == [0, 1, 2, 3, 4, 5]


def test_run_of_another_configuration_is_not_taken_up(nb, whole, fits):
    assert nb.saved_history(whole.path, "a") == whole.history
    assert nb.saved_history(whole.path, "b") == []
    net, before = small_network(5), small_network(5)
    with pytest.raises(Interrupted):
        run(nb, whole.path, net=net, epochs=9, origin="b")
    assert fits == [0] and same_weights(net, before)
    with pytest.raises(Interrupted):
        run(nb, whole.path, net=net, epochs=9, origin="a")
    assert fits == [0, 5] and not same_weights(net, before)


def test_broken_checkpoint_is_ignored(nb, whole, tmp_path, fits):
    path, content = tmp_path / "run.weights.h5", whole.path.read_bytes()
    assert nb.saved_history(path, "a") == []
    broken = [
        b"",
        b"\x00" * 3000,
        b"not HDF5" * 100,
        content[:100],
        content[: len(content) // 2],
        content[:-1],
        b"x" + content[1:],
    ]
    for version in broken:
        path.write_bytes(version)
        assert nb.saved_history(path, "a") == [], f"{len(version)} bytes were believed"
    with nb.h5py.File(path, "w") as file:
        file["weights"] = np.zeros(3)
    assert nb.saved_history(path, "a") == []
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Interrupted):
        run(nb, path)
    assert fits == [0]


def test_checkpoint_is_whole_or_the_one_before(nb, whole, tmp_path, monkeypatch):
    path = tmp_path / "run.weights.h5"
    path.write_bytes(whole.path.read_bytes())

    def save_weights(self, file, *arguments, **options):
        with open(file, "wb") as half:
            half.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save_weights", save_weights)
    with pytest.raises(OSError, match=r"run\.weights\.h5.*No space left"):
        nb.save_weights(whole.net, path, "a", [])
    assert path.read_bytes() == whole.path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_holds_the_optimiser(nb, whole):
    with nb.h5py.File(whole.path) as file:
        names = []
        file.visit(names.append)
        record = json.loads(file.attrs["record"])
    assert any(name.startswith("optimizer/vars") for name in names)
    assert record == {"made_from": "a", "history": whole.history}


def test_trains_in_mixed_precision(nb):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net, history = run(nb, net=small_network(1), epochs=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert net.layers[2].compute_dtype == "bfloat16"
    assert {weight.dtype for weight in net.weights} == {"float32"}
    assert math.isfinite(history[0]["loss"]) and all(
        np.isfinite(w).all() for w in net.get_weights()
    )


@pytest.fixture
def balancing(nb, monkeypatch):
    """`balancing(balance)` returns the class weights and the shares that a training would use."""
    labels, seen = np.concatenate([np.arange(47), np.zeros(47, int)]), []

    def compile_for_training(model, used, steps, prior):
        seen.append(prior)
        raise Interrupted

    class Spy(nb.Batches):
        def __init__(self, images, labels, batch, seed, weights):
            seen.append(weights)
            super().__init__(images, labels, batch, seed, weights)

    monkeypatch.setattr(nb, "Batches", Spy)
    monkeypatch.setattr(nb, "compile_for_training", compile_for_training)

    def balance(kind):
        train = np.zeros((94, 28, 28), np.uint8), labels
        net = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten()])
        with pytest.raises(Interrupted):
            nb.run_training(net, train, None, recipe(nb, balance=kind), 1, 47, None, 1)
        return seen[-2:]

    return balance


def test_uneven_classes_are_weighed(balancing):
    """The rarest class counts as much as the commonest in training."""
    weights, _ = balancing("weights")
    assert weights[1] == pytest.approx(48 * weights[0])
    assert weights[0] * 48 + weights[1:].sum() == pytest.approx(94)


def test_adjusted_loss_needs_no_weights(balancing):
    weights, prior = balancing("logits")
    assert weights.shape == (47,) and (weights == 1).all()
    np.testing.assert_allclose(prior, [48 / 94, *[1 / 94] * 46])


def test_training_policy_is_put_back(nb, monkeypatch):
    monkeypatch.setattr(nb, "precision", lambda: "mixed_bfloat16")
    with pytest.raises(Interrupted), nb.training_policy() as policy:
        assert policy == keras.config.dtype_policy().name == "mixed_bfloat16"
        raise Interrupted
    assert keras.config.dtype_policy().name == "float32"


def test_precision_is_one_that_keras_knows(nb):
    assert nb.precision() in ("float32", "mixed_bfloat16")


# ------------------------------------------------------------------- training one network


@pytest.fixture
def trainings(nb, monkeypatch):
    """Replace `run_training` by one that notes its arguments and returns a made-up history."""
    calls = []

    signature = inspect.signature(nb.run_training)

    def run_training(*given, **named):
        call = signature.bind(*given, **named)
        call.apply_defaults()
        calls.append(SimpleNamespace(**call.arguments))
        return [{"val_mean_recall": nb.fake_score(calls), "seconds": 0.5}] * calls[-1].epochs

    monkeypatch.setattr(nb, "fake_score", lambda calls: 0.5, raising=False)
    monkeypatch.setattr(nb, "run_training", run_training)
    monkeypatch.setattr(nb, "gc", SimpleNamespace(collect=lambda: None))  # takes half a second
    return calls


BUDGET = {
    "epochs": {"softmax": 3, "resnet50v2": 0, "custom": 2},
    "batch": 32,
    "sample_per_class": {},
}
SPLITS = {"train": TRAIN, "validation": VALIDATION}


def test_train(nb, trainings, tmp_path):
    net, history = nb.train(
        "softmax",
        "with_da",
        {"learning_rate": 0.5, "dropout": 0.1, "elastic": 1.5},
        SPLITS,
        "digest",
        BUDGET,
        tmp_path,
        seed=3,
    )
    call = trainings[0]
    assert net is call.net and len(history) == 3
    assert call.recipe == {**nb.RECIPE, "learning_rate": 0.5}
    assert (call.epochs, call.batch, call.seed, call.validate_every) == (3, 32, 3, 1)
    assert call.augment == {**nb.AUGMENTATION, "elastic": 1.5}
    assert call.train[0] is TRAIN[0] and call.train[1] is TRAIN[1]
    assert call.validation is VALIDATION
    assert call.path == tmp_path / "softmax_with_da_3.weights.h5"
    assert call.label == "Training Softmax regression with DA"


def test_train_on_a_sample(nb, trainings, tmp_path):
    for _ in range(2):
        budget = {**BUDGET, "sample_per_class": {"softmax": 4, "custom": 3}}
        nb.train("softmax", "with_da", {}, SPLITS, "digest", budget, tmp_path)
    first, again = (call.train for call in trainings)
    assert (np.bincount(first[1]) == 4).all() and len(first[1]) == 4 * 47
    assert (first[0] == again[0]).all()
    known = {image.tobytes(): label for image, label in zip(*TRAIN, strict=True)}
    found = [known[image.tobytes()] for image in first[0]]
    assert found == list(first[1]), "images and labels do not belong together"
    assert trainings[0].validation is VALIDATION, "the validation images are sampled, too"
    nb.train("softmax", "with_da", {}, SPLITS, "d", {**budget, "sample_per_class": {}}, tmp_path)
    assert trainings[-1].train[0] is TRAIN[0]


def test_train_without_epochs(nb, trainings, tmp_path):
    assert nb.train("resnet50v2", "with_da", {}, SPLITS, "d", BUDGET, tmp_path) == (None, [])
    assert trainings == []


def test_variants_differ_in_augmentation_alone(nb, trainings, tmp_path):
    for variant in nb.VARIANTS:
        nb.train("softmax", variant, {}, SPLITS, "d", BUDGET, tmp_path)
    first, second = (vars(call) for call in trainings)
    nets = [first.pop("net"), second.pop("net")]
    assert same_weights(*nets)
    differing = {
        key for key in first if first[key] is not second[key] and first[key] != second[key]
    }
    assert differing == {"augment", "path", "origin", "label"}
    assert first["augment"] is None and second["augment"] == nb.AUGMENTATION


@pytest.mark.parametrize(
    "change",
    (
        {"settings": {"learning_rate": 0.1}},
        {"settings": {"dropout": 0.15}},
        {"settings": {"optimizer": "sgd"}},
        {"settings": {"balance": "logits"}},
        {"settings": {"elastic": 1.0}},
        {"data": "other"},
        {"seed": 8},
        {"epochs": 9},
        {"batch": 16},
        {"sample": 5},
        {"variant": "without_da"},
        {"version": 99},
        {"policy": "other"},
    ),
)
def test_everything_is_in_the_origin(nb, trainings, tmp_path, monkeypatch, change):
    """A run is taken up only where all that it depends on is the same."""
    monkeypatch.setattr(nb, "fresh_network", lambda *arguments: None)
    tiny = {"widths": (2, 2, 2), "depths": (1, 1, 1)}

    def origin(
        settings=(),
        data="d",
        seed=1,
        epochs=2,
        batch=32,
        sample=None,
        variant="with_da",
        version=1,
        policy="float32",
    ):
        monkeypatch.setattr(nb, "CODE_VERSION", version)
        monkeypatch.setattr(nb, "precision", lambda: policy)
        monkeypatch.setattr(keras.config, "set_dtype_policy", lambda policy: None)
        sampled = {"custom": sample, "softmax": 3} if sample else {"softmax": 4}
        budget = {"epochs": {"custom": epochs}, "batch": batch, "sample_per_class": sampled}
        nb.train(
            "custom", variant, {**tiny, **dict(settings)}, SPLITS, data, budget, tmp_path, seed
        )
        return trainings[-1].origin

    base = origin()
    assert origin() == base != origin(**change)


# -------------------------------------------------------------- training all, and publishing


@pytest.fixture
def publishing(nb, monkeypatch, tmp_path):
    """Replace training and writing; `run(**budget)` runs `train_all` and `calls` notes the rest."""
    held = SimpleNamespace(trained=[], written=[], left=0)

    def train(name, variant, used, splits, data_digest, budget, folder, seed=nb.SEED):
        assert (splits, data_digest, folder) == (SPLITS, "digest", tmp_path / "checkpoints")
        if not budget["epochs"][name]:
            return None, []
        assert used == {"widths": (1, 2, 3), "label_smoothing": 0.2}
        held.trained.append((name, variant, seed))
        return ("net", name, variant, seed), [{"loss": seed}] * budget["epochs"][name]

    def plain_network(net, name, network, images, augment, validation, seed=nb.SEED):
        assert network == {"widths": (1, 2, 3)} and validation is VALIDATION
        assert images is SPLITS["train"][0] and seed == net[3]
        assert augment == (nb.AUGMENTATION if net[2] == "with_da" else None)
        return ("plain", *net[1:]), 1.23456, 0.75

    def write_model(model, name, variant, folder):
        assert folder == tmp_path / "published"
        held.written.append((name, variant, model))
        return [f"{name}_{variant}.h5"]

    def leave_machines():
        held.left += 1

    for function in (train, plain_network, write_model, leave_machines):
        monkeypatch.setattr(nb, function.__name__, function)

    def run(epochs, seeds):
        names = [*nb.ARCHITECTURES, *nb.REFERENCES]
        used = {name: {"widths": (1, 2, 3), "label_smoothing": 0.2} for name in names}
        budget = {"epochs": {name: epochs.get(name, 0) for name in names}, "seeds": seeds}
        return nb.train_all(
            used, SPLITS, "digest", budget, tmp_path / "checkpoints", tmp_path / "published"
        )

    held.run = run
    return held


def test_train_all(nb, publishing):
    histories, facts, references, repeats = publishing.run({"mobilenetv2": 2, "softmax": 1}, {})
    keys = [("mobilenetv2", "with_da"), ("mobilenetv2", "without_da"), ("softmax", "with_da")]
    assert sorted(publishing.trained) == [(*key, nb.SEED) for key in keys]
    assert sorted(publishing.written) == [
        (*key, ("plain", *key, nb.SEED)) for key in keys if key[0] != "softmax"
    ]
    assert references == {"softmax": ("plain", "softmax", "with_da", nb.SEED)}
    assert repeats == {} and publishing.left == 1
    assert histories == {
        f"{name}_{variant}": [{"loss": nb.SEED}] * (1 if name == "softmax" else 2)
        for name, variant in keys
    }
    same = {"temperature": 1.2346, "seed": nb.SEED, "validation_recall": 0.75}
    assert facts == {
        "mobilenetv2_with_da": {**same, "files": ["mobilenetv2_with_da.h5"]},
        "mobilenetv2_without_da": {**same, "files": ["mobilenetv2_without_da.h5"]},
        "softmax_with_da": same,
    }


def test_further_seeds_are_trained_but_not_published(nb, publishing):
    first, second, third = nb.SEED, nb.SEED + 1, nb.SEED + 2
    histories, facts, references, repeats = publishing.run(
        {"custom": 2, "lenet5": 1}, {"custom": 3, "mobilenetv2": 2}
    )
    keys = [("custom", "with_da"), ("custom", "without_da")]
    expected = [(*key, seed) for key in keys for seed in (first, second, third)]
    assert sorted(publishing.trained) == [*expected, ("lenet5", "with_da", first)]
    assert repeats == {key: [("plain", *key, second), ("plain", *key, third)] for key in keys}
    assert set(facts) == {"custom_with_da", "custom_without_da", "lenet5_with_da"}
    assert {fact["seed"] for fact in facts.values()} == {first}
    assert [model[-1] for _, _, model in publishing.written] == [first, first]
    assert references["lenet5"][-1] == first and set(references) == {"lenet5"}
    assert {key: history[0]["loss"] for key, history in histories.items()} == {
        "custom_with_da": first,
        f"custom_with_da_{second}": second,
        f"custom_with_da_{third}": third,
        "custom_without_da": first,
        f"custom_without_da_{second}": second,
        f"custom_without_da_{third}": third,
        "lenet5_with_da": first,
    }


def test_budgets_name_what_is_there(nb):
    names = {*nb.ARCHITECTURES, *nb.REFERENCES}
    for budget in nb.BUDGETS.values():
        assert set(budget["epochs"]) == names
        assert set(budget["seeds"]) <= set(nb.ARCHITECTURES)  # only these have a place for them
        assert set(budget["sample_per_class"]) <= names
        assert set(budget["trials"]) == set(nb.STEPS)
        for step in nb.STEPS:
            assert nb.trial_images(step, budget) >= budget["batch"]


# ----------------------------------------------------------------------------- the search


def space(hp, fixed):
    """A small space: 3 widths, of which the last is over the budget of the test, and a rate."""
    return {
        "widths": (hp.Choice("width", [2, 4, 30], default=4),) * 3,
        "learning_rate": hp.Choice("learning_rate", [0.001, 0.002], default=0.002),
    }


@pytest.fixture
def searching(nb, monkeypatch, trainings, tmp_path):
    """A search of six trials, two of them over the budget; `run()` runs or resumes it."""
    monkeypatch.setattr(nb, "STEPS", {"small": ("custom", space)})
    monkeypatch.setattr(nb, "MAX_PARAMETERS", 10_000, raising=False)
    monkeypatch.setattr(nb, "MAX_MFLOPS", 1000, raising=False)
    score = {(2, 0.001): 0.1, (2, 0.002): 0.2, (4, 0.001): 0.4, (4, 0.002): 0.3}
    monkeypatch.setattr(nb, "fake_score", lambda calls: score[setting(calls[-1])])
    budget = {
        "trials": {"small": 6},
        "trial_images": {"custom": 94},
        "trial_epochs": 2,
        "batch": 16,
    }
    held = SimpleNamespace(budget=budget, trainings=trainings, folder=tmp_path / "tuning")

    def run(fixed=(), data="digest", **budget):
        fixed = {"depths": (1, 1, 1), "dropout": 0.25, **dict(fixed)}
        return nb.search("small", fixed, SPLITS, data, {**held.budget, **budget}, held.folder)

    held.run = run
    return held


def setting(call):
    """Return what the search chose for one call of `run_training`: (width, learning rate)."""
    return call.net.get_layer("stage1_1_conv").filters, call.recipe["learning_rate"]


def test_search(nb, searching):
    trials = searching.run()
    assert len(trials) == 6
    assert [trial["score"] for trial in trials] == [0.4, 0.3, 0.2, 0.1, None, None]
    assert trials[0]["settings"] == {"width": 4, "learning_rate": 0.001}
    assert [trial["settings"]["width"] for trial in trials[-2:]] == [30, 30]
    assert trials[-1]["parameters"] is None
    net = nb.make_model("custom", widths=(4, 4, 4), depths=(1, 1, 1))
    assert trials[0]["parameters"] == net.count_params()
    assert trials[0]["mflops"] == pytest.approx(nb.count_mflops(net))
    assert trials[0]["seconds"] == 1.0
    expected = {"widths": (4, 4, 4), "learning_rate": 0.001}
    assert nb.chosen("small", trials[0], {}) == expected
    assert nb.decided("small", trials, {"dropout": 0.25, "learning_rate": 9}) == {
        **expected,
        "dropout": 0.25,
    }


def test_trials_over_the_budget_are_recorded_by_one_line(nb, searching):
    """Their records are published, and a traceback would name the folders of the machine."""
    searching.run()
    records = [nb.read_json(path) for path in searching.folder.glob("small/trial_*/trial.json")]
    messages = [record["message"] for record in records if record["status"] == "FAILED"]
    assert len(messages) == 2
    assert all(nb.OVER_BUDGET in text and "\n" not in text for text in messages), messages


def test_each_trial_is_a_short_training(nb, searching):
    searching.run()
    calls = searching.trainings
    assert sorted(map(setting, calls)) == [(2, 0.001), (2, 0.002), (4, 0.001), (4, 0.002)]
    assert setting(calls[0]) == (4, 0.002), "the first trial is not the hand-picked one"
    for call in calls:
        assert (call.epochs, call.batch, call.seed) == (2, 16, nb.SEED)
        assert call.validate_every == 2, "only the last epoch's score is used"
        assert call.augment == nb.AUGMENTATION and call.path is None
        assert (np.bincount(call.train[1]) == 2).all() and len(call.train[1]) == 94
        assert call.validation is VALIDATION
        assert call.net.get_layer("dropout").rate == 0.25


def test_what_was_decided_before_reaches_each_trial(nb, searching):
    before = {"optimizer": "sgd", "balance": "logits", "label_smoothing": 0.1, "learning_rate": 9}
    searching.run(fixed={**before, "shear": 0.2, "elastic": 2.0})
    for call in searching.trainings:
        rate = call.recipe["learning_rate"]
        assert call.recipe == {**nb.RECIPE, **before, "learning_rate": rate} and rate < 9
        assert call.augment == {**nb.AUGMENTATION, "shear": 0.2, "elastic": 2.0}


def test_images_of_a_trial(nb, searching):
    searching.run(trial_images={"custom": 94, "small": 150}, trials={"small": 1})
    assert (np.bincount(searching.trainings[0].train[1]) == 3).all()


def test_networks_over_mflops_fail_as_well(nb, searching, monkeypatch):
    net = nb.make_model("custom", widths=(4, 4, 4), depths=(1, 1, 1))
    monkeypatch.setattr(nb, "MAX_MFLOPS", nb.count_mflops(net) * 0.99)
    assert [trial["score"] for trial in searching.run()] == [0.2, 0.1, None, None, None, None]


def test_big_architectures_have_no_budget(nb, searching, monkeypatch):
    monkeypatch.setattr(nb, "STEPS", {"small": ("softmax", nb.rate_space)})
    monkeypatch.setattr(nb, "MAX_PARAMETERS", 10)
    monkeypatch.setattr(nb, "fake_score", lambda calls: 0.5)
    trials = searching.run(trials={"small": 2}, trial_images={"softmax": 94})
    assert [trial["score"] for trial in trials] == [0.5, 0.5]


def test_finished_search_is_not_repeated(searching):
    first = searching.run()
    count = len(searching.trainings)
    assert searching.run() == first
    assert len(searching.trainings) == count == 4


def test_interrupted_search_repeats_no_trial(nb, searching, monkeypatch):
    score, cut = nb.fake_score, []

    def once(calls):
        if len(calls) == 3 and not cut:
            cut.append(setting(calls.pop()))
            raise KeyboardInterrupt
        return score(calls)

    monkeypatch.setattr(nb, "fake_score", once)
    with pytest.raises(KeyboardInterrupt):
        searching.run()
    assert len(searching.trainings) == 2
    trials = searching.run()
    assert [trial["score"] for trial in trials] == [0.4, 0.3, 0.2, 0.1, None, None]
    calls = list(map(setting, searching.trainings))
    assert sorted(calls) == [(2, 0.001), (2, 0.002), (4, 0.001), (4, 0.002)]
    assert calls[2] == cut[0], "the trial that was cut off was not the next"


def test_search_of_another_configuration_is_not_taken_up(searching):
    searching.run()
    assert len(searching.trainings) == 4
    searching.run(data="other")
    assert len(searching.trainings) == 8
    searching.run(data="other")
    assert len(searching.trainings) == 8


def test_everything_is_in_the_origin_of_a_search(nb, searching, monkeypatch):
    """A search is taken up only where all that it depends on is the same."""
    base = {
        "step": "small",
        "fixed": {"dropout": 0.1},
        "budget": searching.budget,
        "data_digest": "d",
    }
    before = nb.search_origin(**base)
    assert nb.search_origin(**base) == before
    changes = [{"fixed": {"dropout": 0.2}}, {"data_digest": "e"}]
    changes += [
        {"budget": {**searching.budget, key: value}}
        for key, value in (
            ("trials", {"small": 7}),
            ("trial_images", {"custom": 47}),
            ("trial_images", {"custom": 94, "small": 47}),
            ("trial_epochs", 3),
            ("batch", 8),
        )
    ]
    for change in changes:
        assert nb.search_origin(**{**base, **change}) != before, change
    for name, value in (
        ("SEED", 1),
        ("RECIPE", {}),
        ("AUGMENTATION", {}),
        ("CUSTOM", {}),
        ("CODE_VERSION", 99),
        ("STEPS", {"small": ("custom", nb.head_space)}),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(nb, name, value)
            assert nb.search_origin(**base) != before, name


@pytest.mark.parametrize("error", (ValueError("bad luck"), MemoryError("bad luck")))
def test_trial_that_fails_otherwise_is_an_error(nb, searching, monkeypatch, error):
    score = nb.fake_score

    def failing(calls):
        if setting(calls[-1]) == (2, 0.001):
            raise error
        return score(calls)

    monkeypatch.setattr(nb, "fake_score", failing)
    for _ in range(2):  # taken up again, it is still one
        with pytest.raises(RuntimeError, match="bad luck"):
            searching.run()


def test_score_that_is_no_number_is_an_error(nb, searching, monkeypatch):
    score = nb.fake_score
    monkeypatch.setattr(
        nb, "fake_score", lambda calls: math.nan if len(calls) == 2 else score(calls)
    )
    with pytest.raises(RuntimeError, match=r"trial_\d.trial\.json: expected a finished trial"):
        searching.run()


def test_search_without_any_finished_trial_is_an_error(nb, searching, monkeypatch):
    monkeypatch.setattr(nb, "MAX_PARAMETERS", 10)
    with pytest.raises(RuntimeError, match=r"finished trial|consecutive failures"):
        searching.run()
    assert searching.trainings == []


def test_search_says_nothing(searching, capfd):
    searching.run()
    searching.run()
    out, err = capfd.readouterr()
    assert not re.search("Traceback|Trial|Reloading", out + err)


def trunk(width, score, depth=1):
    """Return a trial of the first step, as `search` does; score None: over the budget."""
    widths = {"width_1": width, "width_2": 48, "width_3": 96}
    depths = {"depth_1": depth, "depth_2": 1, "depth_3": 2}
    return {"settings": {**widths, **depths, "pooling": "stride"}, "score": score}


def trunk_of(width, depth=1):
    """Return the same in `make_custom`'s terms."""
    return {"widths": (width, 48, 96), "depths": (depth, 1, 2), "pooling": "stride"}


TRUNKS = [
    trunk(48, 0.9),
    trunk(24, 0.8),
    trunk(48, 0.7, depth=2),
    trunk(40, 0.6),
    trunk(32, 0.5),
    trunk(24, None, depth=2),
]
FINALISTS = [trunk_of(48), trunk_of(24), trunk_of(48, depth=2), trunk_of(40)]


def test_spaces_start_from_the_hand_picked(nb):
    known = {**nb.CUSTOM, **nb.RECIPE, **nb.AUGMENTATION}
    named = set()
    for step, (_, its_space) in nb.STEPS.items():
        if step == "final":
            continue
        chosen = its_space(nb.kt.HyperParameters(), {})
        assert chosen == {key: known[key] for key in chosen}, step
        named |= set(chosen)
    assert set(nb.SHARED) | set(nb.CUSTOM) <= named
    assert not {"learning_rate", "weight_decay"} & set(nb.SHARED)


def test_final_step_starts_from_the_best(nb):
    assert nb.final_space(nb.kt.HyperParameters(), {"finalists": FINALISTS}) == FINALISTS[0]


def test_finalists_are_the_best_four_that_finished(nb):
    assert nb.decided("trunk", TRUNKS, {}) == {**trunk_of(48), "finalists": FINALISTS}
    few_finished = [*TRUNKS[:2], *[trunk(32, None)] * 4]
    assert nb.decided("trunk", few_finished, {})["finalists"] == FINALISTS[:2]


def test_final_step_decides_among_the_finalists(nb):
    fixed = nb.decided("trunk", TRUNKS, {})
    trials = [{"settings": {"place": place}, "score": 0.5} for place in (3, 1, 4)]
    assert nb.decided("final", trials, fixed) == FINALISTS[2]
    later = [{"settings": {"optimizer": "sgd", "learning_rate": 0.008, "weight_decay": 0.05}}]
    assert nb.decided("optimiser", later, {**FINALISTS[2], "weight_decay": 0.5}) == {
        **FINALISTS[2],
        **later[0]["settings"],
    }


def test_final_step_tries_every_finalist_once(nb, trainings, monkeypatch, tmp_path):
    """By real trials, each of a network; "finalists" is nothing that `make_custom` takes."""
    monkeypatch.setattr(nb, "MAX_PARAMETERS", 10**9, raising=False)
    monkeypatch.setattr(nb, "MAX_MFLOPS", 10**9, raising=False)
    shape = [(8, (1, 1, 1)), (4, (1, 1, 1)), (6, (1, 1, 1)), (2, (2, 1, 1))]
    finalists = [{"widths": (w,) * 3, "depths": depths, "pooling": "max"} for w, depths in shape]
    fixed, count = {**finalists[0], "finalists": finalists}, nb.BUDGETS["full"]["trials"]["final"]
    scores = {8: 0.1, 4: 0.2, 6: 0.4, 2: 0.3}
    monkeypatch.setattr(
        nb, "fake_score", lambda calls: scores[calls[-1].net.get_layer("stage1_1_conv").filters]
    )
    budget = {"trials": {"final": count}, "trial_images": {"custom": 47, "final": 141}}
    trials = nb.search(
        "final", fixed, SPLITS, "d", {**budget, "trial_epochs": 1, "batch": 16}, tmp_path
    )
    assert [trial["settings"] for trial in trials] == [{"place": place} for place in (3, 4, 2, 1)]
    assert trainings[0].net.get_layer("stage1_1_conv").filters == 8, "not the best first"
    assert {len(call.train[1]) for call in trainings} == {3 * 47}
    names = [{layer.name for layer in call.net.layers} for call in trainings]
    assert sum("stage1_2_conv" in layers_of for layers_of in names) == 1
    assert nb.decided("final", trials, fixed) == finalists[2]


STEP_TRIALS = {
    "trunk": TRUNKS,
    "final": [{"settings": {"place": 3}, "score": 0.9}],
    "head": [
        {
            "settings": {
                "squeeze": True,
                "dropout": 0.3,
                "drop_path": 0.05,
                "label_smoothing": 0.1,
                "balance": "logits",
            },
            "score": 0.9,
        }
    ],
    "optimiser": [
        {
            "settings": {"optimizer": "sgd", "learning_rate": 0.008, "weight_decay": 0.05},
            "score": 0.9,
        }
    ],
    "distortion": [{"settings": {"shear": 0.1, "elastic": 2.0}, "score": 0.9}],
    "mobilenetv2": [{"settings": {"learning_rate": 0.016, "weight_decay": 0.005}, "score": 0.9}],
}


def test_steps_build_on_each_other(nb, monkeypatch, tmp_path):
    calls = []

    def search(step, fixed, splits, data, budget, folder):
        calls.append((step, dict(fixed)))
        return STEP_TRIALS[step]

    monkeypatch.setattr(nb, "search", search)
    found, steps = nb.decide(SPLITS, "d", {"trials": {"mobilenetv2": 3, "resnet50v2": 0}}, tmp_path)
    head, optimiser, distortion, rate = (
        STEP_TRIALS[step][0]["settings"]
        for step in ("head", "optimiser", "distortion", "mobilenetv2")
    )
    shared = {"optimizer": "sgd", "label_smoothing": 0.1, "balance": "logits", **distortion}
    assert calls == [
        ("trunk", {}),
        ("final", {**FINALISTS[0], "finalists": FINALISTS}),
        ("head", FINALISTS[2]),
        ("optimiser", {**FINALISTS[2], **head}),
        ("distortion", {**FINALISTS[2], **head, **optimiser}),
        ("mobilenetv2", shared),
    ]
    assert found == {
        "custom": {**FINALISTS[2], **head, **optimiser, **distortion},
        "mobilenetv2": {**shared, **rate},
        "mobilenetv2_56px": {**shared, **rate},
        "resnet50v2": shared,
        "softmax": shared,
        "lenet5": shared,
    }
    assert steps == STEP_TRIALS
    network, _ = nb.split_settings(found["custom"])
    assert set(network) == set(nb.CUSTOM)


@pytest.mark.parametrize("variant", ("with_da", "without_da"))
def test_shared_settings_reach_the_big_architectures(nb, trainings, monkeypatch, tmp_path, variant):
    """As `decide` returns them; the network itself stands for any."""
    monkeypatch.setattr(nb, "fresh_network", lambda name, network, seed: (name, network, seed))
    shared = {"optimizer": "sgd", "label_smoothing": 0.0, "balance": "logits"}
    used = {**shared, "shear": 0.1, "elastic": 2.0, "learning_rate": 0.016, "weight_decay": 0.005}
    budget = {**BUDGET, "epochs": {"resnet50v2": 2}}
    nb.train("resnet50v2", variant, used, SPLITS, "d", budget, tmp_path)
    call = trainings[0]
    assert call.net == ("resnet50v2", {}, nb.SEED)
    assert call.recipe == {**nb.RECIPE, **shared, "learning_rate": 0.016, "weight_decay": 0.005}
    expected = {**nb.AUGMENTATION, "shear": 0.1, "elastic": 2.0}
    assert call.augment == (expected if variant == "with_da" else None)


# --------------------------------------------------------------------- the search, published


@pytest.fixture
def release(nb, tmp_path):
    """A stand-in for the published records of a whole search, STEP_TRIALS."""
    budget = nb.BUDGETS["full"]
    settings = {"custom": {}}

    class Release:
        folder, notes, sums = tmp_path, [], {}

        def json(self, name):
            return {
                "settings": settings,
                "code_version": nb.CODE_VERSION,
                "data": {"digests": "digest"},
            }

        def file(self, name):
            path = tmp_path / name
            return path if path.exists() else None

    held, fixed = Release(), {}
    for step, trials in STEP_TRIALS.items():
        if step == "mobilenetv2":
            settings["custom"] = fixed
            fixed = {key: fixed[key] for key in nb.SHARED}
        project = tmp_path / "tuning" / step
        nb.write_json(project / "made_from.json", nb.search_origin(step, fixed, budget, "digest"))
        for number, trial in enumerate(trials):
            record = {
                "hyperparameters": {"values": trial["settings"]},
                "metrics": {"metrics": {}},
                "status": "FAILED",
                "message": f"{nb.OVER_BUDGET}: 9 parameters",
            }
            if trial["score"] is not None:
                value = {"observations": [{"value": [trial["score"]], "step": 0}]}
                record |= {"metrics": {"metrics": {"val_mean_recall": value}}, "message": None}
                record["status"] = "COMPLETED"
            nb.write_json(project / f"trial_{number}" / "trial.json", record)
        fixed = nb.decided(step, trials, fixed)
    held.sums = {path.relative_to(tmp_path).as_posix(): "" for path in tmp_path.rglob("*.json")}
    return held


def shown(nb, release):
    """Return which steps of the published search are shown, with their settings and scores."""
    _, steps = nb.recorded_search(release, nb.BUDGETS["full"])
    return {
        step: [{key: trial[key] for key in ("settings", "score")} for trial in trials]
        for step, trials in steps.items()
    }


def test_published_search_is_shown(nb, release):
    assert shown(nb, release) == STEP_TRIALS and release.notes == []


@pytest.mark.parametrize("step, kept", (("trunk", ()), ("final", ("trunk",)), ("mobilenetv2", ())))
def test_published_step_of_another_configuration_is_not_shown(nb, release, step, kept):
    nb.write_json(release.folder / "tuning" / step / "made_from.json", "of something else")
    found = shown(nb, release)
    if step == "mobilenetv2":  # nothing else depends on it
        kept = [name for name in STEP_TRIALS if name != step]
    else:  # but what follows does
        kept = [*kept, "mobilenetv2"]
    assert list(found) == list(kept)
    assert len(release.notes) == len(STEP_TRIALS) - len(kept)
    assert all("made with another configuration" in note for note in release.notes)


def test_published_step_that_is_not_there_is_not_shown(nb, release):
    """A file of the first step could not be had: no later one can be told to belong to it."""
    (release.folder / "tuning" / "trunk" / "trial_1" / "trial.json").unlink()
    assert list(shown(nb, release)) == ["mobilenetv2"]
    release.sums = {}
    assert shown(nb, release) == {}


# ---------------------------------------------------------------------------- convergence


@pytest.mark.parametrize(
    "recall, expected",
    (
        ([0.5, 0.6, 0.7, 0.8, 0.9], False),
        ([0.5, 0.6, 0.7, 0.9, 0.901], True),
        ([0.5, 0.6, 0.7, 0.9, 0.902], True),  # 0.2 points are not more than 0.2 points
        ([0.5, 0.6, 0.7, 0.9, 0.9021], False),
        ([0.5, 0.6, 0.7, 0.9, 0.8], True),  # it fell
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.88, 0.881, 0.8815], True),  # a fifth of 10 are 2
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.88, 0.882, 0.8825], False),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.903], False),  # a fifth of 6 are 2, begun ones counted
        ([0.9], False),  # too short to tell
        ([0.9, 0.9], True),
        ([], False),
    ),
)
def test_converged(nb, recall, expected):
    assert nb.converged([{"val_mean_recall": value} for value in recall]) is expected
