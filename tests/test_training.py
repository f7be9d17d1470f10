"""Augmentation, the recipe, the order of batches, trainings that are taken up again, the search."""

import itertools
import json
import math
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from conftest import TINY, arrays, examples, untimed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_models import by_hand

few = settings(max_examples=20, deadline=None)
STILL = {"shift_x": 0, "shift_y": 0, "zoom_x": 1, "zoom_y": 1, "rotation": 0, "shear": 0}
NONE = {"shift": 0, "zoom": 0, "rotation": 0, "shear": 0, "share": 1}


def floats(images):
    """Return uint8 images (N, 28, 28) as the networks take them: float32 (N, 28, 28, 1)."""
    return images[..., None].astype(np.float32)


# --------------------------------------------------------------------------- augmentation


def warp(image, rows):
    """Return a 28 x 28 image read through `affine_rows`'s six numbers, by SciPy."""
    a, b, c, d, e, f = (float(row) for row in rows)
    values = np.asarray(image, float)
    return ndimage.affine_transform(values, [[e, d], [b, a]], [f, c], order=1, mode="grid-constant")


def smooth(count, seed=0):
    """Return smooth uint8 images (count, 28, 28): interpolation of them is well conditioned."""
    noise = np.random.RandomState(seed).normal(size=(count, 40, 40))
    values = ndimage.gaussian_filter(noise, (0, 3, 3))[:, 6:-6, 6:-6]
    return np.interp(values, (values.min(), values.max()), (0, 255)).astype(np.uint8)


@pytest.mark.parametrize(
    "change, before, after",
    (
        ({"shift_x": 3}, (0, 0), (3, 0)),  # to the right
        ({"shift_y": 3}, (0, 0), (0, 3)),  # down
        ({"zoom_x": 1.5}, (6, 4), (9, 4)),  # over 1 enlarges
        ({"zoom_y": 0.5}, (6, 4), (6, 2)),
        (
            {"rotation": math.pi / 2},
            (6, 0),
            (0, -6),
        ),  # counter-clockwise: from the right to the top
        ({"shear": 0.5}, (0, -6), (3, -6)),  # what is above leans to the right
    ),
)
def test_signs_and_units(nb, change, before, after):
    """A spot of ink at `before` goes to `after`: pixels from the centre, right and down."""
    image = np.zeros((28, 28))
    y, x = np.mgrid[:28, :28] - 13.5
    image = 255 * np.exp(-((x - before[0]) ** 2 + (y - before[1]) ** 2) / 4)
    moved = warp(image, nb.affine_rows(**{**STILL, **change}))
    centre = [float((axis * moved).sum() / moved.sum()) for axis in (x, y)]
    assert centre == pytest.approx(after, abs=0.15)


@pytest.fixture
def drawn(monkeypatch):
    """Replace the layer's draws by `drawn.values` (7, N)."""
    held = SimpleNamespace(values=None)

    def uniform(shape, low, high, seed=None):
        assert (low, high) == (-1, 1) and tuple(shape) == held.values.shape and seed is not None
        return keras.ops.convert_to_tensor(held.values.astype(np.float32))

    monkeypatch.setattr(keras.random, "uniform", uniform)
    return held


@pytest.mark.parametrize("axis", (*range(6), "all"))
def test_layer_does_what_its_ranges_say(nb, drawn, axis):
    """A draw of 1 is the whole range: 10 % of 28 pixels, 20 %, 20 degrees, a slope of .3."""
    images, random = smooth(6), np.random.RandomState(3)
    drawn.values = np.zeros((7, 6))
    chosen = np.arange(6) if axis == "all" else axis
    drawn.values[chosen] = random.uniform(-1, 1, drawn.values[chosen].shape)
    layer = nb.RandomDistortion(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3, share=0.75)
    found = np.asarray(layer(floats(images), training=True))[..., 0]
    most = np.array([2.8, 2.8, 0.2, 0.2, math.radians(20), 0.3])[:, None]
    amounts = most * drawn.values[:6] + np.array(list(STILL.values()))[:, None]
    for output, image, values in zip(found, images, amounts.T, strict=True):
        expected = warp(image, nb.affine_rows(*values))[2:-2, 2:-2]
        np.testing.assert_allclose(output[2:-2, 2:-2], expected, atol=1)
    assert np.abs(found - images)[:, 2:-2, 2:-2].max() > 10, "nothing happens"


@pytest.mark.parametrize("row", (0, 1))
@pytest.mark.parametrize("way", (-1, 1))
def test_outside_of_the_image_is_empty(nb, drawn, row, way):
    drawn.values = np.zeros((7, 2))
    drawn.values[row] = way
    layer = nb.RandomDistortion(**{**NONE, "shift": 5 / 28})
    found = np.asarray(layer(np.full((2, 28, 28, 1), 255.0), training=True))[..., 0]
    found = found.swapaxes(1, 2) if row == 0 else found
    found = found if way == 1 else found[:, ::-1]
    assert np.abs(found[:, :5]).max() < 0.01 and np.abs(found[:, 5:] - 255).max() < 0.01


def test_draws_fill_their_ranges(nb, monkeypatch):
    """Uniform and independent in three images of four; the fourth is left as it is."""
    seen, real = [], nb.affine_rows

    def affine_rows(*arguments):
        seen.append(np.array([np.asarray(values) for values in arguments[:6]]))
        return real(*arguments)

    monkeypatch.setattr(nb, "affine_rows", affine_rows)
    layer = nb.RandomDistortion(**nb.AUGMENTATION)
    images = floats(np.tile(smooth(1), (4000, 1, 1)))
    found = np.asarray(layer(images, training=True))
    layer(images, training=True)
    moved = np.abs(found - images).max((1, 2, 3)) > 0.01
    assert 0.72 < moved.mean() < 0.78
    still = np.array(list(STILL.values()))[:, None]
    most = np.array([2.8, 2.8, 0.2, 0.2, math.radians(20), 0.2])[:, None]
    first, second = ((amounts - still) / most for amounts in seen)
    assert (first[:, ~moved] == 0).all() and not np.allclose(first, second)
    first = first[:, moved]
    assert np.abs(first).max() <= 1 + 1e-5
    assert (first.min(1) < -0.99).all() and (first.max(1) > 0.99).all()
    assert np.abs(first.mean(1)).max() < 0.06  # five standard errors
    np.testing.assert_allclose((first**2).mean(1), 1 / 3, atol=0.03)
    assert np.abs(np.corrcoef(first) - np.eye(6)).max() < 0.1


def test_augmentation_acts_in_training_alone(nb):
    assert nb.AUGMENTATION == {
        "shift": 0.1,
        "zoom": 0.2,
        "rotation": 20,
        "shear": 0.2,
        "share": 0.75,
    }
    images, layer = floats(smooth(20)), nb.RandomDistortion(**nb.AUGMENTATION)
    assert (np.asarray(layer(images)) == images).all()
    assert (np.asarray(layer(images, training=False)) == images).all()
    assert not np.allclose(layer(images, training=True), images, atol=5)
    still = nb.RandomDistortion(**NONE)(images, training=True)
    np.testing.assert_allclose(still, images, atol=1e-3)
    keras.config.set_dtype_policy("mixed_bfloat16")  # which cannot tell 250 from 251
    try:
        assert nb.RandomDistortion(**NONE).compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


# --------------------------------------------------------------------------------- recipe


def reference_loss(truth, probabilities, labels):
    """The smoothed cross-entropy of probabilities times the classes' shares, in NumPy."""
    adjusted = probabilities.astype(float) * np.bincount(labels, minlength=47) / len(labels)
    adjusted /= adjusted.sum(1, keepdims=True)
    target = 0.95 * np.eye(47)[truth] + 0.05 / 47
    return -(target * np.log(adjusted)).sum(1)


@pytest.fixture(scope="module")
def scored():
    """Labels and the probabilities (N, 47) that somebody gives them."""
    random = np.random.RandomState(5)
    shares = np.exp(random.normal(size=(60, 47)))
    return random.randint(0, 47, 60), (shares / shares.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("even", (False, True))
def test_adjusted_loss(nb, scored, even):
    random = np.random.RandomState(6)
    labels = np.arange(470) % 47 if even else np.r_[:47, random.randint(0, 20, 500)]
    found = np.asarray(nb.adjusted_loss(labels)(*scored))
    np.testing.assert_allclose(found, reference_loss(*scored, labels), rtol=1e-4)
    plain = keras.losses.CategoricalCrossentropy(label_smoothing=0.05, reduction=None)
    plain = np.asarray(plain(np.eye(47)[scored[0]], scored[1]))
    assert np.allclose(found, plain, rtol=1e-4) == even


def test_loss_of_absent_classes(nb, scored):
    loss = nb.adjusted_loss(np.arange(100) % 10)
    truth, probabilities = scored[0] % 10, keras.Variable(scored[1])
    assert np.isfinite(np.asarray(loss(truth, probabilities))).all()
    right, wrong = np.full((2, 1, 47), 1e-3, np.float32)
    right[0, 3], wrong[0, 4] = 1 - 46e-3, 1 - 46e-3
    assert float(loss(np.array([3]), right)[0]) < 1 < float(loss(np.array([3]), wrong)[0])


def test_absent_classes_are_not_predicted(small, monkeypatch):
    """What no training image shows is not what a trained network says."""
    images, labels = (array[:45] for array in small.splits["validation"])  # the classes 0 to 44
    monkeypatch.setitem(small.splits, "train", (images.repeat(4, 0), labels.repeat(4)))
    made_from = small.provenance("softmax", {}, 0.02, False, 40)
    net, _ = small.run({**made_from, "policy": "float32"})
    assert np.isin(small.predict(net, images).argmax(1), labels).mean() > 0.9


@few
@given(st.lists(st.integers(0, 46), min_size=1, max_size=300), st.integers(0, 1000))
def test_accuracy_so_weighted_is_the_mean_recall(nb, labels, seed):
    labels = np.array(labels)
    weights = nb.class_weights(labels)
    right = np.random.RandomState(seed).rand(len(labels)) < 0.6
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1, rel=1e-5)
    assert np.average(right, weights=weights) == pytest.approx(np.mean(recalls), abs=1e-5)


@pytest.fixture
def fits(monkeypatch):
    """Record the calls of `model.fit` instead of training."""
    calls = []

    def fit(self, batches, **options):
        calls.append(SimpleNamespace(model=self, batches=batches, **options))

    monkeypatch.setattr(keras.Model, "fit", fit)
    return calls


def prepare(nb, fits, network=TINY, augment=False):
    """Return what a training of 5 epochs of 9 batches hands to `fit`."""
    made_from = nb.provenance("custom", network, 0.01, augment, 5)
    nb.run({**made_from, "batch": 20, "policy": "float32"})
    return fits.pop()


def test_schedule(nb, fits):
    """From 0 to the rate in a tenth of the steps, then half a cosine down to 0."""
    call = prepare(nb, fits)
    schedule = call.model.optimizer._learning_rate
    steps = 5 * (188 // 20)  # 45, of which 4 are the warm-up
    found = [float(schedule(step)) for step in range(steps + 1)]
    expected = [0.01 * step / 4 for step in range(4)]
    expected += [0.005 * (1 + math.cos(math.pi * step / 41)) for step in range(42)]
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert (call.epochs, call.initial_epoch) == (5, 0)


def test_decay_spares_biases_and_normalisations(nb, fits):
    """With gradients of 0, AdamW moves what decays, and nothing else."""
    model = prepare(nb, fits, {**TINY, "dense": 5}).model
    assert type(model.optimizer) is keras.optimizers.AdamW and model.optimizer.weight_decay == 0.02
    model.optimizer.iterations.assign(4)  # the rate is at its highest
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    zeros = [keras.ops.zeros(variable.shape) for variable in model.trainable_variables]
    model.optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    for variable in model.trainable_variables:
        decays = variable.path.endswith("kernel")
        np.testing.assert_allclose(
            variable, 1 - 0.02 * 0.01 * decays, rtol=1e-6, err_msg=variable.path
        )


def test_training_minimises_the_recipe_s_loss(nb, fits, scored, monkeypatch):
    uneven = np.r_[:47, np.zeros(141, int)]
    monkeypatch.setitem(nb.splits, "train", (examples(4, 0)[0], uneven))
    found = np.asarray(prepare(nb, fits).model.loss(*scored))
    np.testing.assert_allclose(found, reference_loss(*scored, uneven), rtol=1e-4)


@pytest.mark.parametrize("augment", (False, True))
def test_augmentation_stands_before_the_network(nb, fits, augment):
    parts = [type(layer).__name__ for layer in prepare(nb, fits, augment=augment).model.layers]
    assert parts == ["RandomDistortion"] * augment + ["Functional"]


@pytest.mark.parametrize("rate", (0.0, 0.5))
def test_dropout_acts(nb, fits, rate):
    model = prepare(nb, fits, {**TINY, "dropout": rate}).model
    first, second = (np.asarray(model(floats(smooth(30)), training=True)) for _ in range(2))
    assert np.allclose(first, second) == (rate == 0)


def test_validation_is_padded_with_weight_0(nb, fits):
    images, labels, weights = prepare(nb, fits).validation_data
    assert images.shape == (256, 28, 28, 1) and labels.shape == weights.shape == (256,)
    assert len(set(weights[:47])) == 1 and weights[0] > 0 and not weights[47:].any()


def test_validation_loss_is_of_the_images_alone(small):
    made_from = {**small.provenance("softmax", {}, 0.02, False, 1), "policy": "float32"}
    net, history = small.run(made_from)
    images, labels = small.splits["validation"]
    loss = small.adjusted_loss(small.splits["train"][1])
    expected = np.asarray(loss(labels, small.predict(net, images))).mean()
    assert history[0]["val_loss"] == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------------------ precision


CPU = {"avx512_bf16": True, "amx_bf16 amx_int8": True, "avx512f avx2": False, None: False}


@pytest.mark.parametrize("flags", CPU)
def test_precision_of_processors(nb, monkeypatch, flags):
    file = SimpleNamespace(
        exists=lambda: flags is not None, read_text=lambda: f"flags : {flags} fpu"
    )
    monkeypatch.setattr(nb, "Path", lambda name: file)
    monkeypatch.setattr(nb, "accelerators", lambda: [])
    assert nb.precision("custom") == ("mixed_bfloat16" if CPU[flags] else "float32")
    assert nb.precision("mobilenetv2") == nb.precision("mobilenetv2_56px") == "float32"


@pytest.mark.parametrize("capability", ((7, 5), (8, 0), (10, 0)))
def test_precision_of_graphics_cards(nb, monkeypatch, capability):
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(nb, "accelerators", lambda: ["gpu:0"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"the {kind}"])
    details = {"the GPU": {"compute_capability": capability}}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.__getitem__)
    fast = capability >= (8, 0)
    assert nb.precision("resnet50v2") == ("mixed_bfloat16" if fast else "float32")
    assert nb.precision("mobilenetv2") == "float32"
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert nb.precision("resnet50v2") == "mixed_bfloat16"


# -------------------------------------------------------------------------------- batches


@few
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), size=st.integers(1, 60))
def test_every_image_once(nb, seed, epoch, size):
    """In an order that is a function of seed and epoch; the last, partial batch is left out."""
    images, labels = (
        np.arange(50, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2),
        np.arange(50),
    )

    def numbers(seed, epoch):
        batches = nb.Batches(images, labels, size, seed)
        batches.begin_epoch(epoch)
        found = []
        for x, y in (batches[index] for index in range(len(batches))):
            assert x.dtype == np.float32 and x.shape == (min(size, 50), 28, 28, 1)
            assert y.dtype == np.int32 and (x == y[:, None, None, None]).all()
            found += y.tolist()
        return found

    found = numbers(seed, epoch)
    assert len(found) == len(set(found)) == 50 // min(size, 50) * min(size, 50)
    assert found == numbers(seed, epoch)
    others = numbers(seed, epoch + 1), numbers(seed + 1, epoch)
    assert found != others[0] != others[1] != found


# ---------------------------------------------------------------- trainings and checkpoints


@pytest.fixture(scope="module")
def made_from(nb):
    """A training with dropout and augmentation: 4 epochs of 4 batches of 46 images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nb, "BUDGET", {"batch": 46})
        return nb.provenance("custom", TINY, 0.03, True, 4)


@pytest.fixture(scope="module")
def whole(nb, made_from, tmp_path_factory):
    """A training without interruption: its checkpoint, network and history."""
    path = tmp_path_factory.mktemp("whole") / "run.weights.h5"
    net, history = nb.run(made_from, path)
    return SimpleNamespace(path=path, net=net, history=history)


def test_learns(small, whole):
    assert len(whole.history) == 4 and whole.history[3]["loss"] < whole.history[0]["loss"] - 0.1
    keys = {"accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert all(epoch.keys() == keys for epoch in whole.history)
    made_from = small.provenance("softmax", {}, 0.02, False, 8)
    net, history = small.run({**made_from, "policy": "float32"})
    images, labels = small.splits["validation"]
    right = small.predict(net, images).argmax(1) == labels
    assert history[-1]["val_accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    assert right.mean() > 0.9


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("epoch, batch", ((1, 0), (2, 3)))
def test_interrupted_run_ends_as_if_it_had_not_been(
    nb, whole, made_from, tmp_path, monkeypatch, epoch, batch
):
    """To the last bit of weights and history, with dropout and augmentation."""
    path, seen = tmp_path / "run.weights.h5", []

    def on_train_batch_begin(self, number, logs=None):
        if number == batch and len(self.history) == epoch:
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(nb.Checkpoint, "on_train_batch_begin", on_train_batch_begin, raising=False)
        nb.run(made_from, path)
    assert len(nb.restore(nb.make_model("custom", **TINY), tmp_path / "none", made_from)) == 0
    begin = nb.Batches.begin_epoch
    monkeypatch.setattr(nb.Batches, "begin_epoch", lambda self, e: (seen.append(e), begin(self, e)))
    net, history = nb.run(made_from, path)
    assert seen == [0, *range(epoch, 4)]  # 0 when it is made
    assert untimed(history) == untimed(whole.history)
    assert arrays(net) == arrays(whole.net)


def test_finished_run_is_not_trained_again(nb, whole, made_from, monkeypatch):
    monkeypatch.setattr(nb.Checkpoint, "on_epoch_begin", lambda *arguments: pytest.fail("an epoch"))
    net, history = nb.run(made_from, whole.path)
    assert history == whole.history and arrays(net) == arrays(whole.net)


def test_epochs_differ_and_seeds_differ(nb, made_from, whole):
    _, history = nb.run({**made_from, "seed": 1, "epochs": 1})
    assert untimed(history)[0] != untimed(whole.history)[0]
    assert len({epoch["loss"] for epoch in whole.history}) == 4


def test_run_of_another_configuration_is_not_taken_up(nb, whole, made_from, tmp_path):
    """Whatever differs. What another configuration left is replaced after the first epoch."""
    net = nb.make_model("custom", **TINY)
    before = arrays(net)
    for key in made_from:
        assert nb.restore(net, whole.path, {**made_from, key: "another"}) == [], key
    assert arrays(net) == before
    path, other = tmp_path / "run.weights.h5", {**made_from, "epochs": 1, "seed": 2}
    path.write_bytes(whole.path.read_bytes())
    assert len(nb.run(other, path)[1]) == 1
    with h5py.File(path) as file:
        assert json.loads(file.attrs["record"])["made_from"] == other


@pytest.mark.parametrize("damage", ("missing", "empty", "text", "cut", "record", "json"))
def test_damaged_checkpoint_is_not_taken_up(nb, whole, made_from, tmp_path, damage):
    path, content = tmp_path / "run.weights.h5", whole.path.read_bytes()
    contents = {"empty": b"", "text": b"<html>", "cut": content[: len(content) // 2]}
    if damage != "missing":
        path.write_bytes(contents.get(damage, content))
    if damage in ("record", "json"):
        with h5py.File(path, "a") as file:
            del file.attrs["record"]
            if damage == "json":
                file.attrs["record"] = '{"made_from": '
    net = nb.make_model("custom", **TINY)
    before = arrays(net)
    assert nb.restore(net, path, made_from) == [] and arrays(net) == before


def test_validating_seldom_changes_nothing_else(nb, whole, made_from):
    net, history = nb.run(made_from, every=4)
    assert ["val_accuracy" in epoch for epoch in history] == [False, False, False, True]
    assert arrays(net) == arrays(whole.net)


def test_run_takes_a_part_of_the_images(nb, made_from, fits, monkeypatch):
    nb.run({**made_from, "images": 47 * 3})
    nb.run({**made_from, "images": 47 * 3, "seed": 5})
    first, second = (call.batches for call in fits)
    assert np.bincount(first.labels).tolist() == [3] * 47 and first.batch == 46
    assert (first.images == second.images).all(), "the images depend on the training's seed"
    policies = {layer.dtype_policy.name for call in fits for layer in call.model.layers[-1].layers}
    assert policies == {made_from["policy"], "float32"}  # the probabilities


# ------------------------------------------------------------------------------ the search


@pytest.fixture
def tried(small, monkeypatch):
    """Replace `try_out` by a made-up score; what was tried, and where it is interrupted."""
    calls, end = [], SimpleNamespace(at=None)

    def try_out(made_from):
        if len(calls) == end.at:
            raise Interrupted
        calls.append(made_from)
        network, rate = made_from["network"], made_from["learning_rate"]
        recall = 0.5 + rate + sum(network.get("widths", ())) / 1000 + network.get("dropout", 0) / 7
        return {"recall": round(recall, 5), "parameters": 1, "MFLOPs": 0.1, "seconds": 2}

    monkeypatch.setattr(small, "try_out", try_out)
    small_networks = {
        small.describe(network): network
        for widths, depth, stride in itertools.product(((4, 6, 8), (4, 8, 8)), (1, 2), (1, 2))
        for network in [{"widths": widths, "depths": (1, 1, depth), "stride": stride, "dense": 0}]
    }
    monkeypatch.setattr(small, "affordable_networks", lambda: small_networks)
    return SimpleNamespace(calls=calls, end=end)


def test_try_out(small):
    made_from = small.provenance("custom", TINY, 0.01, True, 2, 94)
    found = small.try_out(made_from)
    parameters, multiply_adds = by_hand(**TINY)
    assert found["parameters"] == parameters and 0 <= found["recall"] <= 1
    assert found["MFLOPs"] == round(2 * multiply_adds / 1e6, 1) and isinstance(
        found["seconds"], int
    )


def test_compare(small, tried):
    """Each trial is recorded when it ends; recorded ones are skipped, others' forgotten."""
    plans = {f"{rate}": small.provenance("softmax", {}, rate, True, 1) for rate in (0.1, 0.3, 0.2)}
    tried.end.at = 2
    with pytest.raises(Interrupted):
        small.compare("step", plans)
    record = small.PUBLISH / "tuning" / "step.json"
    assert [trial["name"] for trial in small.read_json(record)["trials"]] == ["0.1", "0.3"]
    tried.end.at = None
    table = small.compare("step", plans)
    assert table["name"].tolist() == ["0.3", "0.2", "0.1"] and len(tried.calls) == 3
    assert table["made_from"].tolist() == [plans[name] for name in table["name"]]
    assert small.compare("step", plans).equals(table) and len(tried.calls) == 3
    others = {"0.2": plans["0.2"], "new": {**plans["0.3"], "version": 0}}
    assert small.compare("step", others)["name"].tolist() == ["new", "0.2"]
    assert len(tried.calls) == 4
    assert len(small.recorded_trials("step")) == 2


def test_only_what_is_wanted_is_computed(small, tried, monkeypatch):
    plans = {"a": small.provenance("softmax", {}, 0.1, True, 1)}
    monkeypatch.setattr(small, "ONLY", {"search", "lenet5_with_da"})
    assert [small.wanted(name) for name in ("search", "lenet5_with_da", "step")] == [
        True,
        True,
        False,
    ]
    assert small.compare("step", plans).empty and not tried.calls
    monkeypatch.setattr(small, "ONLY", set())
    assert small.wanted("step")
    monkeypatch.setattr(small, "PROFILE", "pretrained")
    assert not small.wanted("step") and not small.wanted("search")
    asked = []
    monkeypatch.setattr(small, "published", lambda name: asked.append(name) or small.PUBLISH / name)
    assert small.compare("step", plans).empty and small.search().empty and not tried.calls
    assert asked == ["tuning/step.json", "tuning/search.json"]
    trial = {"name": "b", "recall": 0.9, "parameters": 1, "MFLOPs": 0.1, "seconds": 2}
    trial["made_from"] = {"another": "configuration"}
    small.write_json(small.PUBLISH / "tuning" / "step.json", {"trials": [trial]})
    assert small.compare("step", plans)["name"].tolist() == ["b"], "a record is shown as it is"


def test_search(small, tried, monkeypatch):
    table = small.search()
    assert len(table) == len(tried.calls) == 3
    assert table["recall"].is_monotonic_decreasing
    for _, row in table.iterrows():
        made_from = row["made_from"]
        assert made_from in tried.calls
        network = made_from["network"]
        assert row["name"].startswith(small.describe(network)) and "dropout" in network
        assert (made_from["images"], made_from["epochs"], made_from["seed"]) == (94, 1, small.SEED)
        assert made_from["augmentation"] == small.AUGMENTATION
    assert small.search().equals(table) and len(tried.calls) == 3, "a finished search is repeated"
    (small.PUBLISH / "tuning" / "search.json").unlink()
    assert small.search().equals(table) and len(tried.calls) == 3, "its own records are not read"
    monkeypatch.setitem(small.BUDGET, "search", {**small.BUDGET["search"], "epochs": 2})
    assert len(small.search()) == 3 and len(tried.calls) == 6, "another configuration's is taken"


@pytest.fixture
def failed(small, tried, monkeypatch):
    """A search all of whose trials fail, the message of its error."""

    def try_out(made_from):
        raise MemoryError("bad luck")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as error:
        patch.setattr(small, "try_out", try_out)
        small.search()
    return str(error.value)


def test_failed_trials_are_an_error(small, failed):
    assert "bad luck" in failed and not (small.PUBLISH / "tuning" / "search.json").exists()


def test_failed_trials_are_run_again(small, failed, tried):
    assert len(small.search()) == 3


def test_affordable_networks(nb, monkeypatch):
    """Every combination that costs at most 600,000 parameters and 40 MFLOPs, counted by hand."""
    offered = []

    def make_custom(**network):
        parameters, multiply_adds = by_hand(**network)
        offered.append((network, parameters <= 600_000 and 2 * multiply_adds <= 40e6))
        return SimpleNamespace(count_params=lambda: parameters, mflops=2 * multiply_adds / 1e6)

    monkeypatch.setattr(nb, "make_custom", make_custom)
    monkeypatch.setattr(nb, "count_mflops", lambda model: model.mflops)
    found = nb.affordable_networks()
    assert list(found.values()) == [network for network, within in offered if within]
    assert len(offered) > 2 * len(found) - 100 and 40 < len(found) < len(offered)
    assert nb.describe(TINY) == "4-6-8 x 1-1-2, strided, average"
    assert nb.describe({**TINY, "dense": 9, "stride": 1}) == "4-6-8 x 1-1-2, dense 9"


@pytest.mark.parametrize("stride, dense, dropout, depth", ((1, 0, 0.1, 2), (2, 128, 0.0, 1)))
def test_neighbours(nb, stride, dense, dropout, depth):
    """Each differs from the winner in one choice at most, and each choice is looked at."""
    network = {"widths": [24, 48, 96], "depths": [1, depth, depth], "stride": stride}
    network |= {"dense": dense, "dropout": dropout}
    found = nb.neighbours(nb.provenance("custom", network, 0.008, True, 4, 94))
    chosen = found.pop("as chosen")
    assert (chosen["network"], chosen["learning_rate"]) == (network, 0.008)
    assert (chosen["images"], chosen["epochs"]) == (None, nb.BUDGET["finals"]["epochs"])
    seen = set()
    for text, plan in found.items():
        changed = [key for key in network if plan["network"][key] != network[key]]
        changed += [key for key in plan if key != "network" and plan[key] != chosen[key]]
        assert len(changed) <= 1, text
        seen.update(changed)
        for key in {"widths", "depths"} & set(changed):
            pairs = zip(plan["network"][key], network[key], strict=True)
            assert sum(one != other for one, other in pairs) == 1, text
        assert plan["network"]["dropout"] >= 0 and min(plan["network"]["depths"]) >= 1
        nb.make_custom(**plan["network"])
    assert seen >= {"widths", "stride", "dense", "dropout", "learning_rate"}
    assert ("depths" in seen) == (depth > 1)
