"""Several devices that train as one, and a search that a chief and workers share."""

import json
import os
import socket
import time
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import TINY, untimed
from processes import Nursery
from test_survival import lines, loaded_weights, made_up_trials, note, settle

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def jax():
    pytest.importorskip("jax")
    with Nursery("test_distribution", KERAS_BACKEND="jax", JAX_PLATFORMS="cpu") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def nursery():
    with Nursery("test_distribution", CUDA_VISIBLE_DEVICES="") as nursery:
        yield nursery


# ------------------------------------------------------------------------ several devices


def train(nb, folder, batch=46, stop=None):
    """The job: train a small network, in two parts if `stop`, and publish it."""
    settle(nb, folder)
    made_from = nb.provenance("custom", {**TINY, "dropout": 0.0}, 0.02, False, 3)
    made_from["batch"] = batch
    path, begin = nb.RUN / "run.weights.h5", nb.Checkpoint.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == stop:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    if stop:
        nb.Checkpoint.on_epoch_begin = on_epoch_begin
        try:
            nb.run(made_from, path)
        except KeyboardInterrupt:
            nb.Checkpoint.on_epoch_begin = begin
    try:
        net, history = nb.run(made_from, path)
    except ValueError as error:
        return str(error)
    nb.publish("custom_without_da", net, made_from, history)
    device_set = net.trainable_variables[0].value.sharding.device_set
    return {"devices": len(device_set), "history": untimed(history)}


def on_devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def test_two_devices_train_as_one(jax, tmp_path):
    """The same losses as on one device; an interrupted run ends with the same weights."""
    folders = {name: tmp_path / name for name in ("one", "two", "parts")}
    arguments = {"one": (1, None), "two": (2, None), "parts": (2, 2)}
    one, two, parts = (
        jax.start("train", on_devices(count), folder=str(folders[name]), stop=stop).result
        for name, (count, stop) in arguments.items()
    )
    assert (one["devices"], two["devices"]) == (1, 2) and parts == two
    losses = [[epoch["loss"] for epoch in outcome["history"]] for outcome in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][2] < losses[0][0], "nothing is learnt"
    weights = {name: loaded_weights(folder) for name, folder in folders.items()}
    assert weights["two"] == weights["parts"] != {}
    for (place, one), two in zip(weights["one"].items(), weights["two"].values(), strict=True):
        one, two = (np.frombuffer(values, np.float16) for values in (one, two))
        np.testing.assert_allclose(one, two, atol=5e-3, err_msg=str(place))


def test_batch_that_the_devices_cannot_share(jax, tmp_path):
    text = jax.start("train", on_devices(2), folder=str(tmp_path), batch=47).result
    assert text == "expected a batch that 2 devices divide; found 47"


def test_tensorflow_uses_one_of_several_cards(small, monkeypatch):
    """Nothing is distributed there, so any batch will do."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("of TensorFlow")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "gpu:0", "gpu:1"])
    monkeypatch.setattr(small, "precision", lambda architecture: "float32")
    assert small.accelerators() == ["gpu:0", "gpu:1"]
    with small.fresh_start("float32", 1):
        assert keras.distribution.distribution() is None
    _, history = small.run({**small.provenance("softmax", {}, 0.01, False, 1), "batch": 47})
    assert len(history) == 1


# ------------------------------------------------------------------------ several processes


def share_search(nb, folder, log, hang=False):
    """The job of chief and workers: the search; each notes what it tries and that it goes on."""
    settle(nb, folder)
    me = os.environ["KERASTUNER_TUNER_ID"]
    made_up_trials(nb)
    nb.BUDGET["search"] = {**nb.BUDGET["search"], "trials": 6}
    from keras_tuner.src.distribute import oracle_chief

    if me == "chief":  # which looks every 20 seconds whether its workers have ended
        oracle_chief.time = type("Hasty", (), {"sleep": lambda seconds: time.sleep(0.2)})
    try_out, begun = nb.try_out, []

    def noting(made_from):
        begun.append(1)
        network, rate = made_from["network"], made_from["learning_rate"]
        note(log, f"{me} {network['widths'][0]}/{network['dropout']}/{rate}")
        while hang and len(begun) == 2:
            time.sleep(0.1)
        time.sleep(0.5)
        return try_out(made_from)

    nb.try_out = noting
    table = nb.search()
    note(log, f"{me} goes on")
    return table["name"].tolist()


@pytest.fixture
def together(nursery, tmp_path):
    """A function that starts the search under a name; its log."""
    with socket.socket() as place:
        place.bind((LOOPBACK, 0))
        port = str(place.getsockname()[1])

    def start(name, **arguments):
        names = {"TUNER_ID": name, "ORACLE_IP": LOOPBACK, "ORACLE_PORT": port}
        environment = {f"KERASTUNER_{key}": value for key, value in names.items()}
        folder, log = str(tmp_path / "search"), str(start.log)
        return nursery.start("share_search", environment, folder=folder, log=log, **arguments)

    start.log = tmp_path / "log"
    return start


def begun(log):
    return [line.split(" ", 1) for line in lines(log)]


def test_chief_and_workers(together, tmp_path):
    """One worker comes before the chief, the other after it; both work, and none twice."""
    first, chief = together("worker0"), together("chief")
    second = together("worker1")
    assert len(set(chief.result)) == 6
    assert first.wait() == second.wait() == 0, first.output + second.output
    ran = begun(together.log)
    assert ran.pop() == ["chief", "goes on"]
    assert len(ran) == len({trial for _, trial in ran}) == 6 and "goes on" not in dict(ran).values()
    assert {name for name, _ in ran} == {"worker0", "worker1"}, "one of them was idle"
    record = json.loads(next(Path(tmp_path).rglob("search.json")).read_text())
    assert len(record["trials"]) == 6


def test_worker_that_is_killed_and_comes_back(together):
    """Under its name it takes its trial up again."""
    chief, first = together("chief"), together("worker0")
    second, end = together("worker1", hang=True), time.monotonic() + 120
    while [name for name, _ in begun(together.log)].count("worker1") < 2:
        assert time.monotonic() < end, f"worker1 gets no second trial: {begun(together.log)}"
        time.sleep(0.05)
    _, killed = [line for line in begun(together.log) if line[0] == "worker1"][-1]
    second.kill()
    second = together("worker1")
    assert len(set(chief.result)) == 6 and first.wait() == second.wait() == 0
    counts = Counter(trial for _, trial in begun(together.log)[:-1])
    assert counts.pop(killed) == 2 and set(counts.values()) == {1} and len(counts) == 5
