"""Augmentation, the recipe, the order of batches, trainings that are taken up again, the search."""

import gc
import json
import math
from types import SimpleNamespace
from unittest.mock import Mock, patch

import h5py
import keras
import numpy as np
import pytest
from conftest import TINY, arrays, run_cell_with, untimed
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_models import by_hand
from test_survival import made_up_trials

few = settings(max_examples=20, deadline=None)
STILL = {"shift_x": 0, "shift_y": 0, "zoom_x": 1, "zoom_y": 1, "rotation": 0, "shear": 0}


def warp(image, rows):
    """Return a 28 x 28 image read through `affine_rows`'s six numbers, by SciPy."""
    a, b, c, d, e, f = (float(row) for row in rows)
    return ndimage.affine_transform(image, [[e, d], [b, a]], [f, c], order=1, mode="grid-constant")


def smooth(count):
    """Return smooth float32 images (N, 28, 28, 1): interpolation of them is well conditioned."""
    noise = np.random.RandomState(0).normal(size=(count, 40, 40))
    values = ndimage.gaussian_filter(noise, (0, 3, 3))[:, 6:-6, 6:-6, None]
    return np.interp(values, (values.min(), values.max()), (0, 255)).astype(np.float32)


MOVES = {
    "shift to the right": ({"shift_x": 3}, (0, 0), (3, 0)),
    "shift down": ({"shift_y": 3}, (0, 0), (0, 3)),
    "zoom over 1 enlarges": ({"zoom_x": 1.5}, (6, 4), (9, 4)),
    "zoom of the other axis": ({"zoom_y": 0.5}, (6, 4), (6, 2)),
    "counter-clockwise from the right to the top": ({"rotation": math.pi / 2}, (6, 0), (0, -6)),
    "what is above leans to the right": ({"shear": 0.5}, (0, -6), (3, -6)),
}


@pytest.mark.parametrize("change, before, after", MOVES.values(), ids=MOVES)
def test_signs_and_units(nb, change, before, after):
    """A spot of ink at `before` goes to `after`: pixels from the centre, right and down."""
    y, x = np.mgrid[:28, :28] - 13.5
    image = 255 * np.exp(-((x - before[0]) ** 2 + (y - before[1]) ** 2) / 4)
    moved = warp(image, nb.affine_rows(**{**STILL, **change}))
    centre = [float((axis * moved).sum() / moved.sum()) for axis in (x, y)]
    assert centre == pytest.approx(after, abs=0.15)


@pytest.fixture
def drawn(monkeypatch):
    """The draws that the layer gets for six images, (7, 6), to be changed in place."""
    values = np.zeros((7, 6))

    def uniform(shape, low, high, seed):
        assert (tuple(shape), low, high) == (values.shape, -1, 1)
        return keras.ops.convert_to_tensor(values, "float32")

    monkeypatch.setattr(keras.random, "uniform", uniform)
    return values


@pytest.mark.parametrize("axis", (*range(6), slice(6)))
def test_layer_does_what_its_ranges_say(nb, drawn, axis):
    """A draw of 1 is the whole range: 10 % of 28 pixels, 20 %, 20 degrees, a slope of .3."""
    images = smooth(6)
    drawn[axis] = np.random.RandomState(3).uniform(-1, 1, drawn[axis].shape)
    layer = nb.RandomDistortion(shift=0.1, zoom=0.2, rotation=20.0, shear=0.3, share=0.75)
    found = np.asarray(layer(images, training=True))
    most = np.array([2.8, 2.8, 0.2, 0.2, math.radians(20), 0.3])[:, None]
    amounts = most * drawn[:6] + np.array(list(STILL.values()))[:, None]
    for output, image, values in zip(found, images, amounts.T, strict=True):
        expected = warp(image[..., 0], nb.affine_rows(*values))[2:-2, 2:-2]
        np.testing.assert_allclose(output[2:-2, 2:-2, 0], expected, atol=1)
    assert np.abs(found - images)[:, 2:-2, 2:-2].max() > 10, "nothing happens"


def test_draws_fill_their_ranges(nb, monkeypatch):
    """In training alone: uniform and independent in three images of four; the fourth stays."""
    rows = Mock(wraps=nb.affine_rows)
    monkeypatch.setattr(nb, "affine_rows", rows)
    layer = nb.RandomDistortion(**nb.AUGMENTATION)
    images = np.tile(smooth(1), (4000, 1, 1, 1))
    found = np.asarray(layer(images, training=True))
    layer(images, training=True)
    for options in ({}, {"training": False}):
        assert (np.asarray(layer(images, **options)) == images).all()
    moved = np.abs(found - images).max((1, 2, 3)) > 0.01
    assert 0.72 < moved.mean() < 0.78
    still = np.array(list(STILL.values()))[:, None]
    most = np.array([2.8, 2.8, 0.2, 0.2, math.radians(20), 0.2])[:, None]
    first, second = ((np.array(call.args[:6]) - still) / most for call in rows.call_args_list)
    assert (first[:, ~moved] == 0).all() and not np.allclose(first, second)
    first = first[:, moved]
    assert np.abs(first).max() <= 1 + 1e-5
    assert (first.min(1) < -0.99).all() and (first.max(1) > 0.99).all()
    assert np.abs(first.mean(1)).max() < 0.06  # five standard errors
    np.testing.assert_allclose((first**2).mean(1), 1 / 3, atol=0.03)
    assert np.abs(np.corrcoef(first) - np.eye(6)).max() < 0.1


@pytest.fixture
def prepare(nb, monkeypatch):
    """A function that returns what a training of 5 epochs of 20 images a batch hands to `fit`."""
    calls = []

    def fit(self, batches, **options):
        calls.append(SimpleNamespace(model=self, batches=batches, **options))

    def prepare(network=TINY, augment=False, **changes):
        nb.run({**nb.provenance("custom", network, 0.01, augment, 5), "batch": 20, **changes})
        return calls.pop()

    monkeypatch.setattr(keras.Model, "fit", fit)
    return prepare


LABELS = {"even": np.arange(470) % 47, "absent": np.arange(100) % 10}
LABELS["uneven"] = np.r_[:47, np.random.RandomState(6).randint(0, 20, 500)]


@pytest.mark.parametrize("kind", LABELS)
def test_loss_of_a_training(nb, prepare, monkeypatch, kind):
    """Smoothed cross-entropy of probabilities times the classes' shares; of even ones, plain."""
    labels, random = LABELS[kind], np.random.RandomState(5)
    truth, outputs = random.randint(0, 47, 60), random.dirichlet(np.full(47, 5), 60)
    monkeypatch.setitem(nb.splits, "train", (np.zeros((len(labels), 28, 28), np.uint8), labels))
    found = prepare().model.loss(truth, outputs.astype(np.float32))
    counts, target = np.bincount(labels, minlength=47), 0.95 * np.eye(47)[truth] + 0.05 / 47
    adjusted = outputs * np.where(counts, counts / len(labels), 1)  # absent classes stay
    adjusted /= adjusted.sum(1, keepdims=True)
    expected, plain = (-(target * np.log(values)).sum(1) for values in (adjusted, outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.allclose(found, plain, rtol=1e-4) == (kind == "even")


@few
@given(st.lists(st.integers(0, 46), min_size=1, max_size=300), st.integers(0, 1000))
def test_accuracy_so_weighted_is_the_mean_recall(nb, labels, seed):
    labels = np.array(labels)
    weights = nb.class_weights(labels)
    right = np.random.RandomState(seed).rand(len(labels)) < 0.6
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    assert weights.dtype == np.float32 and weights.mean() == pytest.approx(1, rel=1e-5)
    assert np.average(right, weights=weights) == pytest.approx(np.mean(recalls), abs=1e-5)


def test_schedule(prepare):
    """From 0 to the rate in a tenth of the 5 * 9 steps, then half a cosine down to 0."""
    call = prepare()
    found = [float(call.model.optimizer._learning_rate(step)) for step in range(46)]
    expected = [0.01 * step / 4 for step in range(4)]
    expected += [0.005 * (1 + math.cos(math.pi * step / 41)) for step in range(42)]
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert (call.epochs, call.initial_epoch) == (5, 0)


def test_decay_spares_biases_and_normalisations(prepare):
    """With gradients of 0, AdamW moves what decays, and nothing else."""
    model = prepare({**TINY, "dense": 5}).model
    assert type(model.optimizer) is keras.optimizers.AdamW and model.optimizer.weight_decay == 0.02
    model.optimizer.iterations.assign(4)  # the rate is at its highest
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    zeros = [keras.ops.zeros(variable.shape) for variable in model.trainable_variables]
    model.optimizer.apply_gradients(zip(zeros, model.trainable_variables, strict=True))
    for variable in model.trainable_variables:
        expected = 1 - 0.02 * 0.01 * variable.path.endswith("kernel")
        np.testing.assert_allclose(variable, expected, rtol=1e-6, err_msg=variable.path)


@pytest.mark.parametrize("augment", (False, True))
def test_augmentation_stands_before_the_network(prepare, augment):
    parts = [type(layer).__name__ for layer in prepare(augment=augment).model.layers]
    assert parts == ["RandomDistortion"] * augment + ["Functional"]


def test_validation_scores(small, monkeypatch):
    """The mean recall of the classes, and the loss so weighted, of the images without padding."""
    images, labels = small.splits["validation"]
    images, labels = np.r_[images, images[:20]], np.r_[labels, np.zeros(20, np.uint8)]
    monkeypatch.setitem(small.splits, "validation", (images, labels))
    net, history = small.run(small.provenance("softmax", {}, 0.02, False, 8))
    found = small.predict(net, images)
    right = found.argmax(1) == labels
    recall = np.mean([right[labels == label].mean() for label in range(47)])
    loss = np.asarray(small.adjusted_loss(small.splits["train"][1])(labels, found))
    assert history[-1]["val_accuracy"] == pytest.approx(recall, abs=1e-4)
    expected = np.mean(loss * small.class_weights(labels))
    assert history[-1]["val_loss"] == pytest.approx(expected, rel=1e-3)
    assert right.mean() < 0.8 < 0.9 < recall, "19 of the 67 labels are wrong"


@few
@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 1000), size=st.integers(1, 60))
def test_every_image_once(nb, seed, epoch, size):
    """In an order that is a function of seed and epoch; the last, partial batch is left out."""
    labels = np.arange(50, dtype=np.uint8)
    images = np.tile(labels[:, None, None], (28, 28))

    def numbers(seed, epoch):
        batches = nb.Batches(images, labels, size, seed)
        batches.begin_epoch(epoch)
        x, y = map(np.stack, zip(*(batches[n] for n in range(len(batches))), strict=True))
        assert (x.dtype, y.dtype, x.shape[1:]) == ("float32", "int32", (min(size, 50), 28, 28, 1))
        assert (x == y[..., None, None, None]).all()
        return y.ravel().tolist()

    found = numbers(seed, epoch)
    assert len(found) == len(set(found)) == 50 // min(size, 50) * min(size, 50)
    assert found == numbers(seed, epoch)
    others = numbers(seed, epoch + 1), numbers(seed + 1, epoch)
    assert found != others[0] != others[1] != found


@pytest.fixture(scope="module")
def whole(nb, tmp_path_factory):
    """A training with dropout and augmentation: 4 epochs of 4 batches; what came of it."""
    path = tmp_path_factory.mktemp("whole") / "run.weights.h5"
    made_from = {**nb.provenance("custom", TINY, 0.03, True, 4), "batch": 46}
    net, history = nb.run(made_from, path)
    return SimpleNamespace(made_from=made_from, path=path, net=net, history=history)


def test_history(nb, whole):
    """The network learns; its epochs differ, and seeds do."""
    keys = {"accuracy", "loss", "val_accuracy", "val_loss", "seconds"}
    assert all(epoch.keys() == keys for epoch in whole.history)
    losses = [epoch["loss"] for epoch in whole.history]
    assert len(set(losses)) == 4 and losses[3] < losses[0] - 0.1
    _, history = nb.run({**whole.made_from, "seed": 1})
    assert not set(losses) & {epoch["loss"] for epoch in history}


def test_no_graph_outlives_its_training(small):
    """A network that is no longer used, and its optimiser, do not stay in memory."""

    def graphs():
        gc.collect()
        return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())

    before = graphs()
    small.run(small.provenance("softmax", {}, 0.02, True, 1))
    keras.utils.clear_session()
    assert graphs() <= before


@pytest.mark.parametrize("epoch, batch", ((1, 0), (2, 3)))
def test_interrupted_run(nb, whole, tmp_path, monkeypatch, epoch, batch):
    """It ends as if it had not been interrupted, to the last bit of weights and history."""
    path, seen = tmp_path / "run.weights.h5", []

    def on_train_batch_begin(self, number, logs=None):
        if number == batch and len(self.history) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nb.Checkpoint, "on_train_batch_begin", on_train_batch_begin, raising=False)
        nb.run(whole.made_from, path)
    begin = nb.Batches.begin_epoch
    monkeypatch.setattr(nb.Batches, "begin_epoch", lambda self, e: (seen.append(e), begin(self, e)))
    for rest in (range(epoch, 4), ()):  # what is finished is not trained again
        del seen[:]
        net, history = nb.run(whole.made_from, path)
        assert seen == [0, *rest]  # 0 when it is made
        assert untimed(history) == untimed(whole.history)
        assert arrays(net) == arrays(whole.net)


def test_run_of_another_configuration_is_not_taken_up(nb, whole, tmp_path):
    """Whatever differs. What another configuration left is replaced after the first epoch."""
    net = nb.make_model("custom", **TINY)
    before = arrays(net)
    for key in whole.made_from:
        assert nb.restore(net, whole.path, {**whole.made_from, key: "another"}) == [], key
    assert arrays(net) == before
    path, other = tmp_path / "run.weights.h5", {**whole.made_from, "epochs": 1, "seed": 2}
    path.write_bytes(whole.path.read_bytes())
    _, history = nb.run(other, path)
    with h5py.File(path) as file:
        assert json.loads(file.attrs["record"]) == {"made_from": other, "history": history}


@pytest.mark.parametrize("damage", ("empty", "text", "cut", "record", "json"))
def test_damaged_checkpoint_is_not_taken_up(nb, whole, tmp_path, damage):
    path, content = tmp_path / "run.weights.h5", whole.path.read_bytes()
    contents = {"empty": b"", "text": b"<html>", "cut": content[: len(content) // 2]}
    path.write_bytes(contents.get(damage, content))
    if damage in ("record", "json"):
        with h5py.File(path, "a") as file:
            del file.attrs["record"]
            if damage == "json":
                file.attrs["record"] = '{"made_from": '
    net = nb.make_model("custom", **TINY)
    before = arrays(net)
    assert nb.restore(net, path, whole.made_from) == [] and arrays(net) == before


def test_validating_seldom_changes_nothing_else(nb, whole):
    net, history = nb.run(whole.made_from, every=4)
    assert ["val_accuracy" in epoch for epoch in history] == [False, False, False, True]
    assert arrays(net) == arrays(whole.net)


def test_run_takes_a_part_of_the_images(prepare):
    """The same part whatever the training's seed."""
    first, second = (prepare(images=47 * 3, seed=seed).batches for seed in (1, 5))
    assert np.bincount(first.labels).tolist() == [3] * 47 and first.batch == 20
    assert (first.images == second.images).all()


@pytest.fixture
def tried(small, monkeypatch):
    """Replace `try_out` by a made-up score; what was tried, and when that is interrupted."""
    tried = SimpleNamespace(calls=[], stop=None)
    made_up_trials(small, monkeypatch.setattr)
    made_up = small.try_out

    def try_out(made_from):
        if len(tried.calls) == tried.stop:
            raise KeyboardInterrupt
        tried.calls.append(made_from)
        return made_up(made_from)

    monkeypatch.setattr(small, "try_out", try_out)
    return tried


def test_try_out(small):
    found = small.try_out(small.provenance("custom", TINY, 0.01, True, 2, 94))
    parameters, multiply_adds = by_hand(**TINY)
    assert (found["parameters"], found["MFLOPs"]) == (parameters, round(2e-6 * multiply_adds, 1))
    assert found["recall"] != found["training accuracy"]
    assert all(0 <= found[name] <= 1 for name in ("recall", "training accuracy"))


def test_compare(small, tried):
    """Each trial is recorded when it ends; recorded ones are skipped, others' forgotten."""
    plans = {f"{rate}": small.provenance("softmax", {}, rate, True, 1) for rate in (0.1, 0.3, 0.2)}
    tried.stop = 2
    with pytest.raises(KeyboardInterrupt):
        small.compare("step", plans)
    assert [trial["name"] for trial in small.recorded_trials("step", bool)] == ["0.1", "0.3"]
    tried.stop = None
    table = small.compare("step", plans)
    assert table["name"].tolist() == ["0.3", "0.2", "0.1"] and len(tried.calls) == 3
    assert table["made_from"].tolist() == [plans[name] for name in table["name"]]
    assert small.compare("step", plans).equals(table) and len(tried.calls) == 3
    others = {"0.2": {**plans["0.2"], "policy": "x"}, "new": {**plans["0.3"], "version": 0}}
    assert small.compare("step", others)["name"].tolist() == ["new", "0.2"]
    assert len(tried.calls) == 4 and len(small.recorded_trials("step", bool)) == 2


def test_only_what_is_wanted_is_computed(small, tried, monkeypatch):
    plans = {"a": small.provenance("softmax", {}, 0.1, True, 1)}
    monkeypatch.setattr(small, "ONLY", {"search", "lenet5_with_da"})
    assert small.wanted("search") and small.wanted("lenet5_with_da") and not small.wanted("step")
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
    assert len(table) == len(tried.calls) == 3 and table["recall"].is_monotonic_decreasing
    for name, made_from in zip(table["name"], table["made_from"], strict=True):
        network, rate = made_from["network"], made_from["learning_rate"]
        assert made_from == small.provenance("custom", network, rate, True, 1, 94)
        assert made_from in tried.calls and "dropout" in network
        assert name.startswith(small.describe(network))
    assert small.search().equals(table) and len(tried.calls) == 3, "a finished search is repeated"
    (small.PUBLISH / "tuning" / "search.json").unlink()
    assert small.search().equals(table) and len(tried.calls) == 3, "its own records are not read"
    monkeypatch.setitem(small.BUDGET, "search", {**small.BUDGET["search"], "epochs": 2})
    assert len(small.search()) == 3 and len(tried.calls) == 6, "another configuration's is taken"


def test_images_that_any_model_was_trained_on_are_listed(small):
    """By an earlier run, too, whose models are scored beside this one's."""
    small.PUBLISH.mkdir(parents=True)
    np.save(small.PUBLISH / "train_images.npy", np.uint64([5, 7]))
    put = {"emnist": small.splits, "ONLY": {"none"}, "networks": {}, "rates": {}}
    with patch.dict(vars(small), put):
        run_cell_with(small, "plan = planned(networks, rates)")
    listed = {5, 7, *small.image_digests(small.splits["train"][0])}
    assert set(np.load(small.PUBLISH / "train_images.npy")) == listed
    put["ONLY"] = {"none", "custom_with_ad"}
    with patch.dict(vars(small), put), pytest.raises(ValueError, match=r"found \['custom_with_ad'"):
        run_cell_with(small, "plan = planned(networks, rates)")


def test_failed_trials_are_an_error_and_run_again(small, tried, monkeypatch):
    with monkeypatch.context() as replaced, pytest.raises(RuntimeError, match="bad luck"):
        replaced.setattr(small, "try_out", Mock(side_effect=MemoryError("bad luck")))
        small.search()
    assert not (small.PUBLISH / "tuning" / "search.json").exists()
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
    assert 40 < len(found) < len(offered)
    assert nb.describe(TINY) == "4-6-8 x 1-1-2, strided, average"
    assert nb.describe({**TINY, "dense": 9, "stride": 1}) == "4-6-8 x 1-1-2, dense 9"


@pytest.mark.parametrize("rate, beyond", ((0.012, 0.018), (0.008, None), (0.004, 0.002)))
def test_step_2(small, tried, rate, beyond):
    """Tried again: the best four, the best of high dropout, and the next rate beyond an edge."""
    trials, step1 = [], [(width, 0.0) for width in (4, 7, 8, 5, 6)] + [(1, 0.2), (2, 0.2)]
    for width, dropout in step1:
        network = {**TINY, "widths": [width, 6, 8], "dropout": dropout}
        plan = small.provenance("custom", network, rate, True, 1, 94)
        entry = {"name": f"{width}, rate {rate}", "recall": width / 10, "parameters": 1}
        trials.append({**entry, "MFLOPs": 0.1, "made_from": plan})
    put = {"found": small.table_of(trials), "networks": {}, "rates": {}, "show": Mock()}
    put |= dict.fromkeys(("finals", "winner", "candidates", "high", "again_at", "both"))
    with patch.dict(vars(small), put):
        run_cell_with(small, "high = [trial")
        best = small.finals["made_from"].iloc[0]
        assert small.rates["custom"] == best["learning_rate"]
        assert small.networks["custom"] == best["network"] == tried.calls[4]["network"]
    found = [(plan["network"]["widths"][0], plan["learning_rate"]) for plan in tried.calls]
    expected = [(width, rate) for width in (8, 7, 6, 5, 2)] + [(2, beyond)] * bool(beyond)
    assert found == expected and {plan["epochs"] for plan in tried.calls} == {2}
    caption = put["show"].call_args[0][1]
    assert caption.startswith(f"Step 2, the best first; {len(expected) - 1} others are within two")


@pytest.mark.parametrize("stride, dense, dropout, depth", ((1, 0, 0.1, 2), (2, 128, 0.0, 1)))
def test_neighbours(nb, stride, dense, dropout, depth):
    """Each differs from the winner in one choice at most, and each choice is looked at."""
    network = {"widths": [24, 48, 96], "depths": [1, depth, depth], "stride": stride}
    network |= {"dense": dense, "dropout": dropout}
    found = nb.neighbours(nb.provenance("custom", network, 0.008, True, 4, 94))
    chosen, seen = found.pop("as chosen"), set()
    assert chosen == nb.provenance("custom", network, 0.008, True, nb.BUDGET["finals"]["epochs"])
    for text, plan in found.items():
        changed = [key for key in network if plan["network"][key] != network[key]]
        changed += [key for key in plan if key != "network" and plan[key] != chosen[key]]
        assert len(changed) <= 1, text
        seen.update(changed)
        for key in {"widths", "depths"} & set(changed):
            assert np.not_equal(plan["network"][key], network[key]).sum() == 1, text
        assert plan["network"]["dropout"] >= 0 and min(plan["network"]["depths"]) >= 1
        nb.make_custom(**plan["network"])
    assert seen >= {"widths", "stride", "dense", "dropout", "learning_rate"}
    assert ("depths" in seen) == (depth > 1)
