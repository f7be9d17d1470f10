"""Augmentation, batches, the training loop that can be taken up again, and the search."""

import json
import math
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
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
    """Replace the layer's draws by `drawn.values` (6, N) in -1 to 1."""
    held = SimpleNamespace(values=None)

    def uniform(shape, low, high, dtype=None, seed=None):
        assert (low, high) == (-1, 1) and tuple(shape) == held.values.shape and seed is not None
        return keras.ops.convert_to_tensor(held.values.astype(np.float32))

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
    layer = nb.RandomAffine(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3)
    found = keras.ops.convert_to_numpy(layer(floats(images), training=True))[..., 0]
    expected = nb.warp_all(images, **amounts).astype(float)
    assert np.abs(np.floor(found + 0.5) - expected).max() <= 1
    assert (expected != images).any()


@pytest.mark.parametrize("row, shifted", ((0, np.s_[:, 3:]), (1, np.s_[3:])))
def test_shift_goes_right_and_down(nb, drawn, row, shifted):
    images = pictures(2)
    drawn.values = np.zeros((6, 2))
    drawn.values[row] = 1
    layer = nb.RandomAffine(shift=3 / 28, zoom=0, rotation=0, shear=0)
    found = keras.ops.convert_to_numpy(layer(floats(images), training=True))[..., 0]
    kept = np.s_[:, :-3] if row == 0 else np.s_[:-3]
    for before, after in zip(images, found, strict=True):
        np.testing.assert_allclose(after[shifted], before[kept], atol=0.01)
        assert (after[:, :3] if row == 0 else after[:3]).max() < 0.01, "outside is not 0"


def test_nothing_at_zero_ranges(nb):
    images = floats(pictures(20))
    found = nb.RandomAffine(**NONE)(images, training=True)
    np.testing.assert_allclose(found, images, atol=1e-3)


def test_augmentation_acts_in_training_alone(nb):
    images = floats(pictures(6))
    layer = nb.RandomAffine(**nb.AUGMENTATION)
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
    layer = nb.RandomAffine(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3)
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
    layer = nb.RandomAffine(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3, name="affine")
    again = keras.layers.deserialize(json.loads(json.dumps(keras.layers.serialize(layer))))
    kept = [(a.shift, a.zoom, a.rotation, a.shear, a.name) for a in (layer, again)]
    assert kept[0] == kept[1] == (0.1, 0.2, 20.0, 0.3, "affine")


def test_augmentation_of_the_protocol(nb):
    assert nb.AUGMENTATION == {"shift": 0.1, "zoom": 0.2, "rotation": 20.0, "shear": 0.0}


def test_without_augmentation_only_the_network(nb):
    net = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten()])
    assert nb.training_model(net, None).layers == [net]
    augmented = nb.training_model(net, nb.AUGMENTATION).layers
    assert [type(layer).__name__ for layer in augmented] == ["RandomAffine", "Sequential"]


def test_images_are_augmented_in_float32(nb):
    keras.config.set_dtype_policy("mixed_bfloat16")  # which cannot tell 250 from 251
    try:
        model = nb.training_model(keras.Sequential([layers.Flatten()]), nb.AUGMENTATION)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[0].compute_dtype == "float32"


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


# -------------------------------------------------------------------------- the optimiser


def optimiser(nb, steps, recipe=()):
    """Return the optimiser for `steps` steps, and the network: 2 + 2 + 2 + 2 weights."""
    net = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, name="dense"), layers.BatchNormalization()]
    )
    nb.compile_for_training(net, {**nb.RECIPE, **dict(recipe)}, steps)
    return net.optimizer, net


def test_schedule(nb):
    used, _ = optimiser(nb, 1000, {"learning_rate": 0.008, "warmup_share": 0.1})
    rate = used._learning_rate
    assert float(rate(0)) < 0.008 / 50
    assert float(rate(50)) == pytest.approx(0.004, rel=0.05)
    assert float(rate(100)) == pytest.approx(0.008, rel=0.02)
    assert float(rate(550)) == pytest.approx(0.004, rel=0.02)  # half way down the cosine
    assert float(rate(1000)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("steps, window", ((10, 1), (1000, 50), (100_000, 500)))
def test_window_of_the_moving_average(nb, steps, window):
    used, _ = optimiser(nb, steps, {"averaging_share": 0.05, "max_averaging_steps": 500})
    assert used.use_ema and used.ema_momentum == pytest.approx(1 - 1 / window)
    assert used.ema_overwrite_frequency is None


def test_biases_and_normalisations_do_not_decay(nb):
    used, net = optimiser(nb, 10, {"weight_decay": 0.5, "learning_rate": 0.1})
    for variable in net.trainable_variables:
        variable.assign(np.ones(variable.shape))
    for _ in range(3):
        used.apply([np.zeros(v.shape, np.float32) for v in net.trainable_variables])
    after = {
        variable.path.split("/")[-1]: np.asarray(variable) for variable in net.trainable_variables
    }
    assert sorted(after) == ["beta", "bias", "gamma", "kernel"]
    assert (after.pop("kernel") < 1).all()
    assert all((value == 1).all() for value in after.values())


# ------------------------------------------------------------------------------- training


def prototypes(count, seed):
    """Return `count` noisy copies of each of 47 random pictures, and labels: easily learnt."""
    random = np.random.RandomState(seed)
    clean = np.random.RandomState(42).choice([0.0, 255.0], (47, 7, 7)).repeat(4, 1).repeat(4, 2)
    labels = np.tile(np.arange(47), count).astype(np.uint8)
    noisy = clean[labels] + random.normal(0, 40, (len(labels), 28, 28))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


TRAIN, VALIDATION = prototypes(6, 0), prototypes(2, 1)
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


def run(nb, path=None, net=None, epochs=5, origin="a", recipe=(), augment=RANGES, seed=1):
    """Train the small network for a few epochs; return (network, history)."""
    net = small_network(seed) if net is None else net
    recipe = {**nb.RECIPE, "learning_rate": 0.02, "averaging_share": 0.2, **dict(recipe)}
    history = nb.run_training(
        net, TRAIN, VALIDATION, recipe, epochs, 47, augment, seed, path=path, origin=origin
    )
    return net, history


@pytest.fixture(scope="module")
def whole(nb, tmp_path_factory):
    """A run without interruption: its network, history and checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "run.weights.h5"
    net, history = run(nb, path)
    return SimpleNamespace(net=net, history=history, path=path)


def untimed(history):
    """Return a history without the seconds."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


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
    smoothed = np.eye(47)[VALIDATION[1]] * 0.9 + 0.1 / 47
    loss = -(smoothed * np.log(found)).sum(1).mean()
    assert loss == pytest.approx(whole.history[-1]["val_loss"], rel=1e-4)


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


def test_uneven_classes_are_weighed(nb, monkeypatch):
    """The rarest class counts as much as the commonest in training."""
    seen = []

    class Spy(nb.Batches):
        def __init__(self, images, labels, batch, seed, weights):
            seen.append(weights)
            raise Interrupted

    monkeypatch.setattr(nb, "Batches", Spy)
    labels = np.concatenate([np.arange(47), np.zeros(47, int)])
    with pytest.raises(Interrupted):
        nb.run_training(
            None, (np.zeros((94, 28, 28), np.uint8), labels), None, nb.RECIPE, 1, 47, None, 1
        )
    np.testing.assert_allclose(seen[0], nb.class_weights(labels))
    assert seen[0][1] == pytest.approx(48 * seen[0][0])


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

    def run_training(
        net,
        train,
        validation,
        recipe,
        epochs,
        batch,
        augment,
        seed,
        path=None,
        origin="",
        label=None,
    ):
        calls.append(
            SimpleNamespace(
                net=net,
                train=train,
                validation=validation,
                recipe=recipe,
                epochs=epochs,
                batch=batch,
                augment=augment,
                seed=seed,
                path=path,
                origin=origin,
                label=label,
            )
        )
        return [{"val_mean_recall": nb.fake_score(calls), "seconds": 0.5}] * epochs

    monkeypatch.setattr(nb, "fake_score", lambda calls: 0.5, raising=False)
    monkeypatch.setattr(nb, "run_training", run_training)
    return calls


BUDGET = {
    "epochs": {"softmax": 3, "resnet50v2": 0, "custom": 2},
    "batch": 32,
    "sample_per_class": None,
}
SPLITS = {"train": TRAIN, "validation": VALIDATION}


def test_train(nb, trainings, tmp_path):
    net, history = nb.train(
        "softmax",
        "with_da",
        {"learning_rate": 0.5, "dropout": 0.1},
        SPLITS,
        "digest",
        BUDGET,
        tmp_path,
        seed=3,
    )
    call = trainings[0]
    assert net is call.net and len(history) == 3
    assert call.recipe == {**nb.RECIPE, "learning_rate": 0.5}
    assert (call.epochs, call.batch, call.seed, call.augment) == (3, 32, 3, nb.AUGMENTATION)
    assert call.train[0] is TRAIN[0] and call.train[1] is TRAIN[1]
    assert call.validation is VALIDATION
    assert call.path == tmp_path / "softmax_with_da_3.weights.h5"
    assert call.label == "Training Softmax regression with DA"


def test_train_on_a_sample(nb, trainings, tmp_path):
    for _ in range(2):
        budget = {**BUDGET, "sample_per_class": 4}
        nb.train("softmax", "with_da", {}, SPLITS, "digest", budget, tmp_path)
    first, again = (call.train for call in trainings)
    assert (np.bincount(first[1]) == 4).all() and len(first[1]) == 4 * 47
    assert (first[0] == again[0]).all()
    known = {image.tobytes(): label for image, label in zip(*TRAIN, strict=True)}
    found = [known[image.tobytes()] for image in first[0]]
    assert found == list(first[1]), "images and labels do not belong together"
    assert trainings[0].validation is VALIDATION, "the validation images are sampled, too"


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
        budget = {"epochs": {"custom": epochs}, "batch": batch, "sample_per_class": sample}
        nb.train(
            "custom", variant, {**tiny, **dict(settings)}, SPLITS, data, budget, tmp_path, seed
        )
        return trainings[-1].origin

    base = origin()
    assert origin() == base != origin(**change)


# ----------------------------------------------------------------------------- the search


def space(hp):
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
    assert nb.chosen("small", trials) == {"widths": (4, 4, 4), "learning_rate": 0.001}


def test_each_trial_is_a_short_training(nb, searching):
    searching.run()
    calls = searching.trainings
    assert sorted(map(setting, calls)) == [(2, 0.001), (2, 0.002), (4, 0.001), (4, 0.002)]
    assert setting(calls[0]) == (4, 0.002), "the first trial is not the hand-picked one"
    for call in calls:
        assert (call.epochs, call.batch, call.seed) == (2, 16, nb.SEED)
        assert call.augment == nb.AUGMENTATION and call.path is None
        assert (np.bincount(call.train[1]) == 2).all() and len(call.train[1]) == 94
        assert call.validation is VALIDATION
        assert call.net.get_layer("dropout").rate == 0.25


def test_networks_over_mflops_fail_as_well(nb, searching, monkeypatch):
    net = nb.make_model("custom", widths=(4, 4, 4), depths=(1, 1, 1))
    monkeypatch.setattr(nb, "MAX_MFLOPS", nb.count_mflops(net) * 0.99)
    assert [trial["score"] for trial in searching.run()] == [0.2, 0.1, None, None, None, None]


def test_big_architectures_have_no_budget(nb, searching, monkeypatch):
    monkeypatch.setattr(nb, "STEPS", {"small": ("softmax", nb.optimiser_space)})
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


def test_spaces_start_from_the_hand_picked(nb):
    for step in ("trunk", "head", "optimiser"):
        hp = nb.kt.HyperParameters()
        chosen = nb.STEPS[step][1](hp)
        network, recipe = nb.split_settings(chosen)
        assert {**nb.CUSTOM, **network} == nb.CUSTOM and recipe == nb.RECIPE
        assert set(chosen) == {key for key in chosen if key in nb.CUSTOM or key in nb.RECIPE}


def test_steps_build_on_each_other(nb, monkeypatch, tmp_path):
    calls = []

    def search(step, fixed, splits, data, budget, folder):
        calls.append((step, dict(fixed)))
        return [{"settings": {}}]

    decided = {
        "trunk": {"pooling": "stride"},
        "head": {"label_smoothing": 0.05, "dropout": 0.1},
        "optimiser": {"learning_rate": 0.004},
        "mobilenetv2": {"learning_rate": 0.001},
    }
    monkeypatch.setattr(nb, "search", search)
    monkeypatch.setattr(nb, "chosen", lambda step, trials: decided[step])
    found, steps = nb.decide(SPLITS, "d", {"trials": {"mobilenetv2": 3, "resnet50v2": 0}}, tmp_path)
    custom = {**decided["trunk"], **decided["head"], **decided["optimiser"]}
    assert calls == [
        ("trunk", {}),
        ("head", decided["trunk"]),
        ("optimiser", {**decided["trunk"], **decided["head"]}),
        ("mobilenetv2", {"label_smoothing": 0.05}),
    ]
    mobile = {"label_smoothing": 0.05, "learning_rate": 0.001}
    assert found == {
        "custom": custom,
        "mobilenetv2": mobile,
        "mobilenetv2_56px": mobile,
        "resnet50v2": {"label_smoothing": 0.05},
        "softmax": {"label_smoothing": 0.05},
        "lenet5": {"label_smoothing": 0.05},
    }
    assert list(steps) == ["trunk", "head", "optimiser", "mobilenetv2"]


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
