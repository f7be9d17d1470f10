"""Several devices that train as one, and several processes that share a search."""

import json
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import RECONSTRUCTED, TINY, cells_until, run_python
from processes import nursery
from test_survival import settle
from test_training import cut_off_at

pytestmark = pytest.mark.slow
ONE_DEVICE = "--xla_cpu_multi_thread_eigen=false"
TWO_DEVICES = f"--xla_force_host_platform_device_count=2 {ONE_DEVICE}"


@pytest.fixture(scope="module")
def start():
    """A function that starts a job of this module on JAX."""
    pytest.importorskip("jax")
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    with nursery("test_distribution", **environment) as start:
        yield start


def train(nb, folder, stop=None):
    """The job: train a small network, in two parts if `stop`, and publish it."""
    Path(folder).mkdir(exist_ok=True)
    settle(nb, folder)
    training = nb.Training("custom", 0.02, 4, augmentation=False, network=TINY)
    path = nb.RUNS / "run.weights.h5"
    if stop:
        cut_off_at(nb, stop, training, path)
    network, history = nb.train(training, path)
    devices = len(network.trainable_variables[0].value.sharding.device_set)
    nb.publish("custom_without_da", network, training, history)
    answers = nb.predict(nb.load_model("custom_without_da"), nb.test_images)
    return {"devices": devices, "history": history, "answers": answers.tolist()}


def test_two_devices_train_as_one(start, tmp_path):
    """The same losses and answers as on one device; what was cut off goes on."""
    outcomes = []
    for flags, stop in ((ONE_DEVICE, None), (TWO_DEVICES, None), (TWO_DEVICES, 2)):
        folder = str(tmp_path / f"{len(outcomes)}")
        child = start("train", {"XLA_FLAGS": flags}, folder=folder, stop=stop)
        outcomes.append(child.result)
    assert [outcome["devices"] for outcome in outcomes] == [1, 2, 2]
    losses = [[epoch["loss"] for epoch in each["history"]] for each in outcomes]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[0][-1] < losses[0][0], "nothing is learnt"
    np.testing.assert_allclose(*[each["answers"] for each in outcomes[:2]], atol=5e-3)
    assert losses[2][:2] == losses[1][:2] and len(losses[2]) == 4


def test_chief_and_workers(tmp_path):
    """Two workers do the trials of a search; the chief alone goes on after it."""
    sources = [*cells_until("run_search()})"), 'print("it goes on")']
    (tmp_path / "script.py").write_text("\n\n".join(sources), encoding="utf-8")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address, port = place.getsockname()
    environment = {**os.environ, "EMNIST_PROFILE": "quick", "MPLBACKEND": "agg"}
    environment |= {"EMNIST_DIR": str(RECONSTRUCTED), "KERASTUNER_ORACLE_IP": address}
    environment["KERASTUNER_ORACLE_PORT"] = f"{port}"

    def run(name):
        settings = {**environment, "KERASTUNER_TUNER_ID": name}
        return run_python("script.py", cwd=tmp_path, env=settings, timeout=500)

    names = ("worker0", "chief", "worker1")
    with ThreadPoolExecutor() as pool:
        processes = dict(zip(names, pool.map(run, names), strict=True))
    epochs = {}
    for name, process in processes.items():
        assert process.returncode == 0, process.stderr[-3000:]
        assert ("it goes on" in process.stdout) == (name == "chief")
        epochs[name] = len(re.findall("^epoch", process.stdout, re.M))
    assert epochs["chief"] == 0 and epochs["worker0"] + epochs["worker1"] == 2
    record = tmp_path / "runs" / "quick" / "pretrained" / "tuning" / "search.json"
    assert len(json.loads(record.read_text())["trials"]) == 2
