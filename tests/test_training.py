"""The recipe, trainings that are taken up again, publishing, and the search."""

import dataclasses
import gc
from types import SimpleNamespace
from unittest.mock import Mock, patch

import keras
import numpy as np
import pytest
from conftest import TINY, run_cell_with
from idx_files import write
from scipy.special import log_softmax, softmax
from test_models import count_by_hand

HISTORY = [{"loss": 1.0, "accuracy": 0.5, "val_accuracy": 0.4, "seconds": 2.0}]


def tiny_training(nb, **changes):
    """Return the Training of a tiny custom network, with some fields changed."""
    fields = {"epochs": 3, "augmentation": False, "network": TINY, **changes}
    return nb.Training("custom", 0.02, **fields)


def train(nb, training, path="runs/checkpoint.weights.h5"):
    """Train on the made-up images; return the network, its history and the path."""
    return *nb.train(training, nb.Path(path)), nb.Path(path)


@pytest.mark.parametrize("even", (True, False))
def test_loss(nb, even):
    """Smoothed cross-entropy of the probabilities times the classes' shares."""
    random = np.random.RandomState(0)
    shares = np.full(47, 1 / 47) if even else random.dirichlet(np.full(47, 3))
    outputs = random.dirichlet(np.full(47, 5), 60)
    targets = np.eye(47)[random.randint(0, 47, 60)]
    loss = nb.adjusted_loss(shares.astype("float32"))
    found = loss(targets.astype("float32"), outputs.astype("float32"))
    adjusted = outputs * shares
    adjusted /= adjusted.sum(axis=1, keepdims=True)
    smooth = 0.95 * targets + 0.05 / 47
    expected, plain = (-(smooth * np.log(p)).sum(1) for p in (adjusted, outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.allclose(found, plain, rtol=1e-4) == even


def prepared(nb, batch_size=20, **changes):
    """Return a tiny network, prepared for 5 epochs on 360 images of uneven classes."""
    training = tiny_training(nb, epochs=5, **changes)
    labels = np.r_[:47, np.random.RandomState(6).randint(0, 20, 313)]
    network = nb.make_model("custom", **training.network)
    targets = np.eye(47, dtype="float32")[labels]
    return nb.prepare(network, training, targets, batch_size), labels


def test_learning_rate(nb):
    """From 0 to the peak in a tenth of 5 x 18 steps, then half a cosine down to 0."""
    model, _ = prepared(nb)
    found = [float(model.optimizer._learning_rate(step)) for step in range(91)]
    cosine = (1 + np.cos(np.pi * np.arange(82) / 81)) / 2
    expected = 0.02 * np.r_[np.arange(9) / 9, cosine]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_weight_decay(nb):
    """With gradients of 0 AdamW moves kernels alone."""
    model, _ = prepared(nb, network={**TINY, "dense": 5})
    assert type(model.optimizer) is keras.optimizers.AdamW
    model.optimizer.iterations.assign(9)  # the rate is at its peak
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    zeros = [keras.ops.zeros(variable.shape) for variable in variables]
    model.optimizer.apply_gradients(zip(zeros, variables, strict=True))
    for variable in variables:
        expected = 1 - 0.02 * 0.02 * variable.path.endswith("kernel")
        np.testing.assert_allclose(variable, expected, rtol=1e-6, err_msg=variable.path)


@pytest.mark.parametrize("augmentation", (True, False))
@pytest.mark.parametrize("corruption", (True, False))
def test_layers_in_front_of_the_network(nb, augmentation, corruption):
    model, _ = prepared(nb, augmentation=augmentation, corruption=corruption)
    parts = [type(layer).__name__ for layer in model.layers]
    expected = ["RandomDistortion"] * augmentation + ["RandomCorruption"] * corruption
    assert parts == [*expected, "Functional"]
    seeds = {int(layer.seed.state[0]) for layer in model.layers[:-1]}
    assert len(seeds) == len(expected), "one change may not depend on the other"


def test_prepared_loss(nb):
    """It knows the classes' shares."""
    model, labels = prepared(nb)
    outputs = np.random.RandomState(5).dirichlet(np.full(47, 5), 9).astype("float32")
    targets = np.eye(47, dtype="float32")[:9]
    shares = (np.bincount(labels, minlength=47) / 360).astype("float32")
    expected = nb.adjusted_loss(shares)(targets, outputs)
    np.testing.assert_allclose(model.loss(targets, outputs), expected, rtol=1e-5)


def test_training_learns(small):
    """The made-up images are learnt, and unseen copies of them are recognised."""
    network = {**TINY, "widths": [8, 16, 32]}
    _, history, _ = train(small, tiny_training(small, epochs=20, network=network))
    assert history[-1]["loss"] < history[0]["loss"] - 1.5
    assert history[-1]["val_accuracy"] > 0.9


def test_no_graph_outlives_its_training(small):
    """A network that is no longer used, and its optimizer, do not stay in memory."""

    def count_graphs():
        gc.collect()
        return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())

    train(small, tiny_training(small, epochs=1))
    keras.utils.clear_session()
    before = count_graphs()
    for number in range(2):
        training = tiny_training(small, epochs=1, augmentation=True, seed=number)
        train(small, training, f"runs/{number}.weights.h5")
    keras.utils.clear_session()
    assert count_graphs() <= before


def cut_off_at(nb, last, training, path):
    """Train until an epoch begins, and stop there."""

    def begin(self, epoch, logs=None):
        self.start = 0
        if epoch == last:
            raise KeyboardInterrupt

    stopped = patch.object(nb.Checkpoint, "on_epoch_begin", begin)
    with stopped, pytest.raises(KeyboardInterrupt):
        nb.train(training, path)


@pytest.fixture(scope="module")
def cut_off(nb, tmp_path_factory):
    """A training of 8 epochs that was cut off in the fifth: its path and the rest."""
    path = tmp_path_factory.mktemp("cut") / "cut.weights.h5"
    training = tiny_training(nb, epochs=8)
    with patch.object(nb, "QUICK", True):
        cut_off_at(nb, 4, training, path)
    return SimpleNamespace(path=path, training=training, content=path.read_bytes())


def restored(nb, path, training):
    """Return the history that is restored, and the model with its optimizer."""
    network = nb.make_model("custom", **training.network)
    model = nb.prepare(network, training, nb.training_data(training)[1], 32)
    return nb.restore(model, path, training), model


def test_training_that_was_cut_off_goes_on(small, cut_off):
    """With its epochs, its optimizer and its history."""
    history, model = restored(small, cut_off.path, cut_off.training)
    assert len(history) == 4 and int(model.optimizer.iterations) == 4 * (188 // 32)
    network, longer, path = train(small, cut_off.training, cut_off.path)
    assert longer[:4] == history and len(longer) == 8
    assert longer[-1]["loss"] < history[-1]["loss"]
    assert longer[-1]["val_accuracy"] == round(small.validation_score(network), 5)
    again, same, _ = train(small, cut_off.training, path)
    assert same == longer, "a finished training is trained again"
    for weights, others in zip(network.weights, again.weights, strict=True):
        np.testing.assert_array_equal(weights, others)
    path.write_bytes(cut_off.content)


def test_checkpoint_of_another_training_is_ignored(small, cut_off):
    """And one of other data, and one that is not there."""
    for change in ({"seed": 1}, {"learning_rate": 0.002}):
        other = dataclasses.replace(cut_off.training, **change)
        history, model = restored(small, cut_off.path, other)
        assert history == [] and int(model.optimizer.iterations) == 0
    assert restored(small, small.Path("none"), cut_off.training)[0] == []
    with patch.object(small, "DATA_DIGEST", "other data"):
        assert restored(small, cut_off.path, cut_off.training)[0] == []


def test_unreadable_checkpoint(small, cut_off):
    """Such as an empty file, a web page, half a checkpoint, or a folder."""
    half = cut_off.content[: len(cut_off.content) // 2]
    broken = {"empty": b"", "page": b"<html>", "half": half, "folder/file": b""}
    for path in write(small.Path("broken"), broken).iterdir():
        with pytest.raises(OSError):
            restored(small, path, cut_off.training)


@pytest.mark.parametrize("sharpness", (0.7, 1, 2.5))
def test_temperature(nb, sharpness):
    """The best of a fine grid, where each class weighs the same."""
    random = np.random.RandomState(0)
    labels = np.minimum(random.geometric(0.1, 2000) - 1, 46)
    labels[:47] = range(47)
    logits = sharpness * (random.normal(size=(2000, 47)) + 3 * np.eye(47)[labels])

    def loss(temperature):
        nll = -log_softmax(logits / temperature, axis=1)[np.arange(2000), labels]
        return np.mean([nll[labels == label].mean() for label in range(47)])

    best = min(np.linspace(0.25, 4, 751), key=loss)
    probabilities = softmax(logits, axis=1)
    assert nb.fit_temperature(probabilities, labels) == pytest.approx(best, abs=0.01)


def test_validation_score_and_padding(nb, monkeypatch):
    """The mean recall of the classes; batches are filled up, and nothing leaks."""
    network = nb.make_model("custom", **TINY)
    images = np.concatenate([nb.train_images, nb.train_images])[:300]
    found = nb.predict(network, images)
    assert found.shape == (300, 47) and found.dtype == np.float32
    alone = [nb.predict(network, image[None])[0] for image in images[250:260]]
    np.testing.assert_allclose(found[250:260], alone, atol=1e-6)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    answers = np.array([0, 0, 0, 1, 1, 1, 1, 1, 2, 0])
    monkeypatch.setattr(nb, "val_labels", labels)
    monkeypatch.setattr(nb, "predict", lambda *_: np.eye(47)[answers])
    assert nb.validation_score(None) == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_publish(small, monkeypatch):
    """A model has an entry when it is complete; another training or data are told."""
    key, training = "custom_with_da", tiny_training(small, corruption=True)
    network = small.make_model("custom", **TINY)
    before = small.predict(network, small.val_images)
    assert small.must_train(key, training)
    small.publish(key, network, training, HISTORY * 3)
    assert not small.must_train(key, training)
    entry = small.read_record("histories.json")[key]
    assert entry["history"] == HISTORY * 3
    assert entry["training"]["network"] == TINY and entry["data"] == small.DATA_DIGEST
    after = small.predict(small.load_model(key), small.val_images)
    sharpened = before ** (1 / entry["temperature"])
    sharpened /= sharpened.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(after, sharpened, atol=1e-3)
    assert small.must_train(key, dataclasses.replace(training, seed=1))
    small.publish("custom_robust", network, training, HISTORY)
    assert list(small.read_record("histories.json")) == [key, "custom_robust"]
    with patch.object(small, "DATA_DIGEST", "other data"):
        assert small.must_train(key, training)
    (small.PUBLISHED / small.model_files(key)[1]).unlink()
    for only, expected in (("", True), ("custom_robust,x", False), (f"x,{key}", True)):
        monkeypatch.setattr(small, "TRAIN_ONLY", only)
        assert small.must_train(key, training) == expected


def test_unknown_model_to_train_is_named(small, monkeypatch):
    monkeypatch.setattr(small, "TRAININGS", {"custom_robust": None}, raising=False)
    monkeypatch.setattr(small, "TRAIN_ONLY", "custom_robust,costum")
    with pytest.raises(ValueError, match=r"EMNIST_TRAIN: expected .*costum"):
        run_cell_with(small, "def must_train")


@pytest.mark.parametrize("images, expected", ((None, 188), (94, 94)))
def test_training_data(small, images, expected):
    """All images, or as many of each class as make about the number asked for."""
    chosen, targets = small.training_data(tiny_training(small, images=images))
    assert len(chosen) == len(targets) == expected
    assert targets.dtype == np.float32 and (targets.sum(axis=1) == 1).all()
    assert (targets.sum(axis=0) == expected / 47).all()
    for image, target in zip(chosen, targets, strict=True):
        (number,) = np.flatnonzero((small.train_images == image).all(axis=(1, 2)))
        assert target.argmax() == small.train_labels[number]


def test_record(small):
    parameters, mflops = count_by_hand(**TINY)
    record = small.make_record("x", tiny_training(small), 0.4)
    costs = {"parameters": parameters, "MFLOPs": round(mflops, 1)}
    rest = {"network": TINY, "learning_rate": 0.02, "score": 0.4}
    assert record == {"name": "x", **rest, **costs}


@pytest.mark.parametrize("rates, halved", (([8, 4, 12], True), ([4, 8, 4], False)))
def test_finals(small, monkeypatch, rates, halved):
    """The best four and the best with dropout; half of the rate if the lowest wins."""
    trials = []
    for name, dropout in zip("abcdef", (0, 0, 0, 0, 0.1, 0.2), strict=True):
        rate = rates["abc".find(name)] / 1000
        network = {**TINY, "dropout": dropout}
        trials.append({"name": name, "network": network, "learning_rate": rate})
    score = Mock(side_effect=lambda training, name: 0.9 if name == "final-b" else 0.5)
    monkeypatch.setattr(small, "score_training", score)
    records = small.run_finals(trials)
    seen = [call.args[0] for call in score.call_args_list]
    names = [record["name"] for record in records]
    assert names == ["a", "b", "c", "d", "f"] + ["b, half rate"] * halved
    assert {training.epochs for training in seen} == {small.FINAL_EPOCHS}
    assert {training.images for training in seen} == {None}
    if halved:
        assert seen[-1].learning_rate == 0.002 and seen[-1].network == seen[1].network


@pytest.fixture
def tiny_search(small):
    """The notebook with a search of two trials among two tiny networks."""
    networks = [TINY, {**TINY, "widths": [8, 16, 32]}]
    values = {"SEARCH_TRIALS": 2, "SEARCH_EPOCHS": 8}
    with patch.multiple(small, small_networks=lambda: networks, **values):
        yield small


def test_search(tiny_search, monkeypatch):
    """Two trials by the recipe; a search that has ended is not repeated."""
    records = tiny_search.run_search()
    assert len(records) == 2 and records[0]["score"] >= records[1]["score"]
    assert {record["learning_rate"] for record in records} <= {0.004, 0.008, 0.012}
    monkeypatch.setattr(tiny_search, "score_training", Mock(side_effect=AssertionError))
    assert tiny_search.run_search() == records
    run_cell_with(tiny_search, 'write_record("tuning/search.json"')
    assert [trial["name"] for trial in tiny_search.trials] == ["no. 1", "no. 2"]
    assert tiny_search.read_record("tuning/search.json") == {"trials": records}
    run_cell_with(tiny_search, 'write_record("tuning/search.json"')  # not repeated


def test_failed_trial(tiny_search, monkeypatch):
    """It is an error. The next run takes it up again, and repeats no other trial."""
    scores = Mock(side_effect=[0.5, MemoryError("bad luck"), 0.7, 0.6])
    monkeypatch.setattr(tiny_search, "score_training", scores)
    with pytest.raises(RuntimeError, match="search: "):
        tiny_search.run_search()
    assert [record["score"] for record in tiny_search.run_search()] == [0.7, 0.5]


def test_small_networks(nb, monkeypatch):
    """All that cost at most 600,000 parameters and 40 MFLOPs, counted by hand."""
    offered = []

    def make_model(architecture, **network):
        assert architecture == "custom"
        offered.append(network)
        parameters, mflops = count_by_hand(**network)
        return SimpleNamespace(count_params=lambda: parameters, mflops=mflops)

    monkeypatch.setattr(nb, "make_model", make_model)
    monkeypatch.setattr(nb, "count_mflops", lambda model: model.mflops)
    found = nb.small_networks()
    costs = np.array([count_by_hand(**each) for each in offered])
    small = np.flatnonzero((costs <= (600_000, 40)).all(axis=1))
    assert found == [offered[number] for number in small]
    assert 40 < len(found) < len(offered) == len(nb.WIDTHS) * len(nb.DEPTHS) * 6
