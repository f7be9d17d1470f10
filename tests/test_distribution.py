"""Several devices in one process, several processes as one, and a search with chief and workers."""

import json
import os
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import examples, untimed
from processes import Nursery
from test_survival import made_up_trials, note, small_search, told

pytest.importorskip("jax")


@pytest.fixture(scope="module")
def tensorflow():
    with Nursery(
        "test_distribution", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES=""
    ) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def jax():
    with Nursery("test_distribution", KERAS_BACKEND="jax", JAX_PLATFORMS="cpu") as nursery:
        yield nursery


@pytest.fixture(params=("tensorflow", "jax"))
def backend(request):
    """The process that loaded the notebook on each of the backends that train on many devices."""
    return request.getfixturevalue(request.param)


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


# ------------------------------------------------------------------------ several devices


def cpu_devices(nb, count):
    """Make `count` devices of this machine's processor, before anything is computed."""
    if nb.keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        logical = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], logical
        )
    else:
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"


NETWORK = {"widths": (4, 4, 4), "depths": (1, 1, 1), "dropout": 0.0}


def fit(nb, path, epochs=3, batch=46, stop=None):
    """Train a small custom network on all devices; return what there is to compare."""
    begin = nb.Checkpoint.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == stop:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    nb.Checkpoint.on_epoch_begin = on_epoch_begin
    train, validation = examples(4, 0), examples(1, 1)  # 188 and 47 images
    recipe = {**nb.RECIPE, "learning_rate": 0.02, "averaging_share": 0.2}
    with nb.all_devices() as count:
        net = nb.fresh_network("custom", NETWORK, 1)
        history = nb.run_training(net, train, validation, recipe, epochs, batch, None, 1,
                                  path=path, origin="a")  # fmt: skip
    return net, history, count


def copies(nb, net):
    """Return on how many devices the network's weights lie."""
    value = net.trainable_variables[0].value
    if nb.keras.backend.backend() == "tensorflow":
        return len(getattr(value, "values", [value]))
    return len(value.sharding.device_set)


def weights_of(net):
    return [np.asarray(weight) for weight in net.get_weights()]


def train_on(nb, count, folder, parts=False):
    """The job: a training on `count` devices, in two parts if `parts`; publish what comes out."""
    cpu_devices(nb, count)
    path = Path(folder) / "run.weights.h5"
    if parts:
        begin = nb.Checkpoint.on_epoch_begin
        try:
            fit(nb, path, stop=2)
        except KeyboardInterrupt:
            assert len(nb.saved_history(path, "a")) == 2
        nb.Checkpoint.on_epoch_begin = begin
    net, history, used = fit(nb, path)
    nb.estimate_statistics = lambda *arguments: None
    images, labels = examples(1, 1)
    plain, temperature, _ = nb.plain_network(net, "custom", NETWORK, images, None, (images, labels))
    normalisations = [layer for layer in plain._flatten_layers()
                      if isinstance(layer, nb.keras.layers.BatchNormalization)]  # fmt: skip
    assert len(normalisations) == 3 and not any(layer.synchronized for layer in normalisations)
    for mine, its in zip(weights_of(net)[:-2], weights_of(plain)[:-2], strict=True):
        assert np.array_equal(mine, its)
    for mine, its in zip(weights_of(net)[-2:], weights_of(plain)[-2:], strict=True):
        np.testing.assert_allclose(mine, its * temperature, rtol=1e-5)
    np.savez(Path(folder) / "weights.npz", *weights_of(net))
    names = nb.write_model(plain, "custom", "with_da", Path(folder))
    published = json.loads((Path(folder) / names[0]).read_text())
    assert '"synchronized": true' not in json.dumps(published)
    nb.keras.models.model_from_json(json.dumps(published)).load_weights(Path(folder) / names[1])
    return {"devices": nb.devices(), "used": used, "copies": copies(nb, net),
            "history": untimed(history)}  # fmt: skip


def close(first, second):
    """Whether two histories are the same within the precision of floats."""
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)


def test_two_devices_train_as_one(backend, tmp_path):
    """The same losses, also if the run was cut off; what is published is a plain network."""
    found = {}
    for name, count, parts in (("one", 1, False), ("two", 2, False), ("parts", 2, True)):
        child = backend.start("train_on", count=count, folder=str(tmp_path / name), parts=parts)
        found[name] = child.result
    for name, count in (("one", 1), ("two", 2)):
        outcome = found[name]
        assert len(outcome["devices"]) == outcome["used"] == outcome["copies"] == count, name
    losses = [epoch["loss"] for epoch in found["one"]["history"]]
    assert losses[2] < losses[0], "nothing is learnt"
    close(found["one"]["history"], found["two"]["history"])
    assert found["two"]["history"] == found["parts"]["history"]
    with np.load(tmp_path / "two/weights.npz") as a, np.load(tmp_path / "parts/weights.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def odd_batch(nb):
    """The job: batches of 47 on two devices; the message of the error."""
    cpu_devices(nb, 2)
    try:
        fit(nb, None, batch=47)
    except ValueError as error:
        return str(error)


def test_batch_that_the_devices_cannot_share(backend):
    text = backend.start("odd_batch").result
    assert text == "batch: expected a multiple of the 2 devices; found 47"


# ----------------------------------------------------------------------- several processes


def train_together(nb, folder):
    """The job of each of several processes, which are one: train, part, and go on alone."""
    nb.join_machines()
    assert len(nb.devices()) == nb.PROCESSES
    saves, save = [], nb.save_weights

    def save_weights(*arguments):
        saves.append(1)
        save(*arguments)

    nb.save_weights = save_weights
    path = Path(folder) / "run.weights.h5"
    net, history, used = fit(nb, path)
    while len(nb.saved_history(path, "a")) < 3:  # the first process is still writing it
        time.sleep(0.02)
    again = fit(nb, path)[1]  # it is finished, so each takes it from the checkpoint
    assert again == nb.saved_history(path, "a") and untimed(again) == untimed(history)
    images, labels = examples(1, 1)
    plain, _, _ = nb.plain_network(net, "custom", NETWORK, images, None, (images, labels))
    found = {"history": untimed(history), "used": used, "copies": copies(nb, net)}
    nb.leave_machines()
    if nb.PROCESS > 0:
        note(Path(folder) / "saves", len(saves))
        raise SystemExit
    while not (Path(folder) / "over").exists():  # the other one has ended
        time.sleep(0.02)
    probabilities = nb.predict(plain, examples(1, 1)[0])
    assert probabilities.shape == (47, 47) and np.allclose(probabilities.sum(1), 1, atol=1e-4)
    return {**found, "saves": len(saves)}


def test_two_processes_train_as_one(jax, tmp_path):
    whole = jax.start("train_on", count=1, folder=str(tmp_path / "whole")).result
    folder = tmp_path / "together"
    folder.mkdir()
    environment = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{free_port()}",
                   "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}  # fmt: skip
    first, second = (
        jax.start("train_together", {**environment, "KERAS_DISTRIBUTION_PROCESS_ID": str(number)},
                  folder=str(folder)) for number in range(2)
    )  # fmt: skip
    assert second.wait() == 0, second.output
    (folder / "over").touch()
    found = first.result
    assert found["used"] == found["copies"] == 2 and found["saves"] == 3
    assert (folder / "saves").read_text() == "0\n", "the second process wrote a checkpoint"
    close(found["history"], whole["history"])


def join(nb):
    """The job: the message with which joining other machines is refused."""
    try:
        nb.join_machines()
    except ValueError as error:
        return str(error)


ALONE = {"KERAS_DISTRIBUTION_NUM_PROCESSES": "1"}
CLUSTER = json.dumps({"cluster": {"worker": ["10.0.0.1:80", "10.0.0.2:80"]},
                      "task": {"type": "worker", "index": 0}})  # fmt: skip


def test_tensorflow_does_not_join(tensorflow, jax):
    for environment in ({"TF_CONFIG": CLUSTER}, {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}):
        text = tensorflow.start("join", environment).result
        assert "expected KERAS_BACKEND=jax and KERAS_DISTRIBUTION_*" in text
        assert "found KERAS_BACKEND=tensorflow" in text and "README" in text
    assert tensorflow.start("join", ALONE).result is None
    assert jax.start("join", {"TF_CONFIG": CLUSTER}).result is None, "that is TensorFlow's"


# ----------------------------------------------------------------- a search on several machines

STEPS = ("first", "second")
BUDGET = {"trials": {"first": 6, "second": 5}, "trial_images": {"custom": 94}, "trial_epochs": 1,
          "batch": 47}  # fmt: skip


def share_search(nb, folder, log, hang=None, error=None):
    """The job of the chief, of a worker, or of a process alone: both steps of a small search.

    Each trial begun is noted in `log`, takes a moment, and raises `error` if that is given. A
    process whose name is `hang` stays in its second trial.
    """
    from keras_tuner.src.distribute import oracle_chief

    class Clock:  # the chief looks after 20 s whether all have ended
        sleep = staticmethod(lambda seconds: time.sleep(min(seconds, 0.1)))

    oracle_chief.time = Clock
    small_search(nb)
    made_up_trials(nb)
    space = nb.STEPS["small"][1]
    nb.STEPS = dict.fromkeys(STEPS, ("custom", space))
    me, run_trial, begun = os.environ.get("KERASTUNER_TUNER_ID", "alone"), nb.Search.run_trial, []

    def noting(self, trial, *arguments, **options):
        note(log, f"{self.project_name} {trial.trial_id} {me}")
        begun.append(1)
        assert trial.hyperparameters.values["learning_rate"] in (0.01, 0.02, 0.04)
        while me == hang and len(begun) == 2:
            time.sleep(0.1)
        time.sleep(0.3)
        if error:
            raise MemoryError(error)
        return run_trial(self, trial, *arguments, **options)

    nb.Search.run_trial = noting
    splits, found, fixed = {"train": examples(2, 0), "validation": examples(1, 1)}, {}, {}
    for step in STEPS:
        found[step] = nb.search(step, fixed, splits, "digest", BUDGET, Path(folder))
        fixed = {"label_smoothing": 0.1, "dropout": 0.1}
    return found


@pytest.fixture
def together(tensorflow, tmp_path):
    """A function that starts the search under a name; and its folder and log."""
    port, folder, log = str(free_port()), tmp_path / "search", tmp_path / "log"

    def start(name, **arguments):
        environment = {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1",
                       "KERASTUNER_ORACLE_PORT": port}  # fmt: skip
        return tensorflow.start(
            "share_search", environment, folder=str(folder), log=str(log), **arguments
        )

    start.log = log
    return start


def alone(tensorflow, folder):
    child = tensorflow.start("share_search", folder=str(folder / "alone"), log=str(folder / "lone"))
    return child.result


def same_trials(found, expected):
    """Whether two searches of both steps found the same, in the same order."""
    for step in STEPS:
        assert told(found[step]) == told(expected[step])
        names = {tuple(trial["settings"]) for trial in found[step] + expected[step]}
        assert len(names) == 1, f"the settings come in several orders: {names}"


def test_chief_and_workers(tensorflow, together, tmp_path):
    """One worker comes before the chief, the other after it; both work, and none twice."""
    first, chief = together("worker0"), together("chief")
    second = together("worker1")
    found = [child.result for child in (chief, first, second)]
    assert found[0] == found[1] == found[2]
    expected = alone(tensorflow, tmp_path)
    assert [len(expected[step]) for step in STEPS] == [6, 5]
    assert any(trial["score"] is None for trial in expected["first"]), "none over the budget"
    same_trials(found[0], expected)
    begun = [line.split() for line in together.log.read_text().splitlines()]
    assert Counter((step, trial) for step, trial, _ in begun) == {
        **{("first", str(number)): 1 for number in range(6)},
        **{("second", str(number)): 1 for number in range(5)},
    }
    assert {name for _, _, name in begun} == {"worker0", "worker1"}, "one of them was idle"


def test_worker_that_is_killed_and_comes_back(tensorflow, together, tmp_path):
    chief, first = together("chief"), together("worker0")
    second = together("worker1", hang="worker1")

    def begun():
        text = together.log.read_text() if together.log.exists() else ""
        return [line.split() for line in text.splitlines()]

    end = time.monotonic() + 120
    while [name for _, _, name in begun()].count("worker1") < 2:
        assert time.monotonic() < end, f"worker1 gets no second trial: {begun()}"
        time.sleep(0.05)
    step, killed, _ = [line for line in begun() if line[2] == "worker1"][-1]
    second.kill()
    second = together("worker1")
    found = [child.result for child in (chief, first, second)]
    assert found[0] == found[1] == found[2]
    same_trials(found[0], alone(tensorflow, tmp_path))
    counts = Counter((step, trial) for step, trial, _ in begun())
    assert counts.pop((step, killed)) == 2 and set(counts.values()) == {1} and len(counts) == 10


def failing_search(nb, folder, log):
    """The job: the search with an error in every trial; the message of the search's error."""
    try:
        share_search(nb, folder, log, error="bad luck")
    except RuntimeError as error:
        return str(error)


def test_error_in_a_worker_is_told(tensorflow, tmp_path):
    environment = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    chief, worker = (
        tensorflow.start("failing_search", {**environment, "KERASTUNER_TUNER_ID": name},
                         folder=str(tmp_path / "search"), log=str(tmp_path / "log"))
        for name in ("chief", "worker0")
    )  # fmt: skip
    for child in (chief, worker):
        assert "MemoryError: bad luck" in child.result
