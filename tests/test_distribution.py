"""Several devices that train as one, and a search that a chief and workers share."""

import json
import os
import socket
import time
from collections import Counter
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import TINY, untimed
from keras_tuner.src.distribute import oracle_chief
from processes import Nursery
from test_survival import lines, loaded_weights, made_up_trials, note, settle


@pytest.fixture(scope="module")
def jax():
    pytest.importorskip("jax")
    with Nursery("test_distribution", KERAS_BACKEND="jax", JAX_PLATFORMS="cpu") as nursery:
        yield nursery


@pytest.fixture(scope="module")
def nursery():
    with Nursery("test_distribution", CUDA_VISIBLE_DEVICES="") as nursery:
        yield nursery


def train(nb, folder, stop=None):
    """The job: train a small network, in two parts if `stop`, and publish it."""
    settle(nb, folder)
    made_from = nb.provenance("custom", {**TINY, "dropout": 0.0}, 0.02, False, 3)
    path = nb.RUN / "run.weights.h5"

    def on_train_batch_begin(self, batch, logs=None):
        if len(self.history) == stop:
            raise KeyboardInterrupt

    if stop:
        nb.Checkpoint.on_train_batch_begin = on_train_batch_begin
        with pytest.raises(KeyboardInterrupt):
            nb.run(made_from, path)
        del nb.Checkpoint.on_train_batch_begin
    net, history = nb.run(made_from, path)
    nb.publish("custom_without_da", net, made_from, history)
    device_set = net.trainable_variables[0].value.sharding.device_set
    return {"devices": len(device_set), "history": untimed(history)}


def test_two_devices_train_as_one(jax, tmp_path):
    """The same losses as on one device; an interrupted run ends with the same weights."""
    outcomes = {}
    for name, count, stop in (("one", 1, None), ("two", 2, None), ("parts", 2, 2)):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        outcomes[name] = jax.start("train", flags, folder=str(tmp_path / name), stop=stop).result
    one, two, parts = outcomes.values()
    assert (one["devices"], two["devices"]) == (1, 2) and parts == two
    losses = [[epoch["loss"] for epoch in outcome["history"]] for outcome in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][2] < losses[0][0], "nothing is learnt"
    one, two, parts = (b"".join(loaded_weights(tmp_path / name).values()) for name in outcomes)
    assert two == parts != b""
    weights = (np.frombuffer(each, np.float16) for each in (one, two))
    np.testing.assert_allclose(*weights, atol=5e-3)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")
def test_tensorflow_uses_one_of_several_cards(nb, monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "gpu:0", "gpu:1"])
    assert nb.accelerators() == ["gpu:0", "gpu:1"]
    with nb.fresh_start(1):
        assert keras.distribution.distribution() is None


def begun(log):
    """Return [process, what it began] for every line of the log."""
    return [line.split(" ", 1) for line in lines(log)]


def share_search(nb, folder, log, hang=False):
    """The job of chief and workers: the search; each notes what it tries and that it goes on."""
    settle(nb, folder)
    made_up_trials(nb)
    nb.BUDGET["search"] = {**nb.BUDGET["search"], "trials": 6}
    me, try_out = os.environ["KERASTUNER_TUNER_ID"], nb.try_out
    if me == "chief":  # which looks every 20 seconds whether its workers have ended
        oracle_chief.time = SimpleNamespace(sleep=lambda seconds: time.sleep(0.2))

    def noting(made_from):
        network, rate = made_from["network"], made_from["learning_rate"]
        note(log, f"{me} {network['widths'][0]}/{network['dropout']}/{rate}")
        while hang and [name for name, _ in begun(log)].count(me) == 2:
            time.sleep(0.1)
        time.sleep(0.5)
        return try_out(made_from)

    nb.try_out = noting
    table = nb.search()
    note(log, f"{me} goes on")
    return table["name"].tolist()


@pytest.fixture
def together(nursery, tmp_path):
    """A function that starts the search under a name, with its log in the file `log`."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address, port = place.getsockname()

    def start(name, **arguments):
        names = {"TUNER_ID": name, "ORACLE_IP": address, "ORACLE_PORT": str(port)}
        environment = {f"KERASTUNER_{key}": value for key, value in names.items()}
        arguments |= {"folder": str(tmp_path / "search"), "log": str(tmp_path / "log")}
        return nursery.start("share_search", environment, **arguments)

    return start


def test_chief_and_workers(together, tmp_path):
    """One worker comes before the chief; one is killed, comes back and takes its trial up again."""
    first, chief, second = together("worker0"), together("chief"), together("worker1", hang=True)
    log, end, tried = tmp_path / "log", time.monotonic() + 120, []
    while len(tried) < 2:
        assert time.monotonic() < end, f"worker1 gets no second trial: {begun(log)}"
        time.sleep(0.05)
        tried = [trial for name, trial in begun(log) if name == "worker1"]
    second.kill()
    second = together("worker1")
    assert len(set(chief.result)) == 6 and first.wait() == second.wait() == 0
    *ran, last = begun(log)
    counts = Counter(trial for _, trial in ran)
    assert last == ["chief", "goes on"] and {name for name, _ in ran} == {"worker0", "worker1"}
    assert counts.pop(tried[1]) == 2 and set(counts.values()) == {1} and len(counts) == 5
    assert len(json.loads(next(tmp_path.rglob("search.json")).read_text())["trials"]) == 6
    assert together("worker2").wait() == 0 and begun(log)[-1] == last, "who comes late goes on"
