"""What survives a kill at any moment, a full disk and a folder that cannot be written to."""

import gc
import json
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from conftest import TINY, run_cell_with, shrink, untimed
from processes import Nursery

SEED = 20221203  # of the random moments
LOOP = "plan = planned(networks, rates)"  # the cell that trains and publishes


@pytest.fixture(scope="module")
def nursery():
    with Nursery("test_survival") as nursery:
        yield nursery


def note(path, text):
    """Append a line to a log that several processes write to."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def settle(nb, folder):
    """Go to `folder`, which is made, with a tiny budget and in float32."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    shrink(nb)
    nb.precision = lambda architecture: "float32"


class Killed(BaseException):
    """Stands in for SIGKILL where a process of its own for each kill would take too long."""


def die(error=None):
    if error:
        raise error
    os.kill(os.getpid(), signal.SIGKILL)


class Death:
    """Counts moments, and dies at the `moment`-th (from 0; None: never), by SIGKILL or `error`."""

    def __init__(self, nb, moment, batches=False, error=None, put=setattr):
        self.moment, self.error, self.count, replace = moment, error, 0, os.replace

        def replace_or_die(source, target):
            """Between two moments: the file is half written, or has its name."""
            half = os.path.getsize(source) // 2
            self.pass_by(lambda: os.truncate(source, half))
            replace(source, target)
            self.pass_by()

        put(nb.os, "replace", replace_or_die)
        if batches:
            nb.Checkpoint.on_train_batch_begin = lambda *_, logs: self.pass_by()

    def pass_by(self, last_act=lambda: None):
        self.count += 1
        if self.count - 1 == self.moment:
            last_act()
            die(self.error)


# ---------------------------------------------------------------- training and publishing

KEYS = ("custom_with_da", "softmax_with_da")


def train_and_publish(nb, folder, moment=None, batches=True):
    """The job: the notebook's loop over two small models; it notes every epoch that it begins."""
    settle(nb, folder)
    death, begin = Death(nb, moment, batches), nb.Checkpoint.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        note("log", f"{self.made_from['architecture']}_with_da {epoch}")
        begin(self, epoch, logs)

    nb.Checkpoint.on_epoch_begin = on_epoch_begin
    plans = {"custom": TINY, "softmax": {}}
    plans = {
        f"{name}_with_da": nb.provenance(name, network, 0.02, True, 3)
        for name, network in plans.items()
    }
    nb.emnist, nb.networks, nb.rates = nb.splits, {}, {}
    nb.planned = lambda networks, rates: plans
    run_cell_with(nb, LOOP)
    return death.count


def state(folder):
    """Return {key: epochs in its checkpoint} and what is published; all records have to parse."""
    folder, saved, models = Path(folder) / "runs" / "quick", {}, {}
    for path in folder.glob("checkpoints/[!.]*"):
        with h5py.File(path) as file:
            saved[path.name.split(".")[0]] = len(json.loads(file.attrs["record"])["history"])
    records = folder / "pretrained" / "histories.json"
    for key, entry in json.loads(records.read_text()).items() if records.exists() else ():
        entry = {name: value for name, value in entry.items() if name != "seconds"}
        models[key] = {**entry, "history": untimed(entry["history"])}
    return saved, models


def loaded_weights(folder):
    """Return {file and name in it: bytes} of all published weights."""
    found = {}
    for path in sorted(Path(folder, "runs/quick/pretrained").rglob("[!.]*.weights.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, key=path.name: (
                    found.update({(key, name): item[()].tobytes()})
                    if hasattr(item, "dtype")
                    else None
                )
            )
    return found


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """A run of the loop without interruption: its folder, moments and seconds."""
    folder, begin = tmp_path_factory.mktemp("loop") / "whole", time.monotonic()
    moments = nursery.start("train_and_publish", folder=str(folder)).result
    seconds = time.monotonic() - begin
    assert lines(folder / "log") == [f"{key} {epoch}" for key in KEYS for epoch in range(3)]
    return SimpleNamespace(folder=folder, moments=moments, seconds=seconds)


def test_loop_killed_at_random_moments(nursery, whole, tmp_path):
    """Killed six times: at four counted moments, and twice from outside; then left in peace."""
    choose, folder, killed = random.Random(SEED), tmp_path / "cut", []
    saved, models, seen = {}, {}, 0
    while len(killed) < 7:
        outside = len(killed) in (1, 4)
        last = len(killed) == 6
        moment = None if outside or last else choose.randrange(5, whole.moments // 2)
        killed.append(moment)
        child = nursery.start("train_and_publish", folder=str(folder), moment=moment)
        if outside:
            killed[-1] = round(choose.uniform(0.3, 0.9) * whole.seconds, 2)
            time.sleep(killed[-1])
            child.kill()
        child.wait()
        assert not last or child.code == 0, child.output
        begun = [line.split() for line in lines(folder / "log")[seen:]]
        seen += len(begun)
        for key in KEYS:
            epochs = [int(epoch) for name, epoch in begun if name == key]
            assert not (epochs and key in models), "a finished model is trained again"
            first = saved.get(key, 0)
            assert epochs == list(range(first, first + len(epochs))), "repeated or left out"
        after, found = state(folder)
        assert all(after[key] >= epochs for key, epochs in saved.items()), "an epoch is lost"
        assert models.items() <= found.items(), "a model is lost"
        saved, models = after, found
    print(f"killed at {killed}; begun {lines(folder / 'log')}")
    assert (saved, models) == state(whole.folder)
    assert loaded_weights(folder) == loaded_weights(whole.folder) != {}
    sums = Path("runs/quick/pretrained/SHA256SUMS")
    assert len(lines(folder / sums)) == len(lines(whole.folder / sums))


def test_killed_in_every_write_of_publishing(nursery, whole, tmp_path):
    """The training is not repeated, and the model is published, or not, as a whole."""
    folder, moments = tmp_path / "cut", 0
    checkpoints = folder / "runs/quick/checkpoints"
    checkpoints.mkdir(parents=True)
    for key in KEYS:
        file = f"runs/quick/checkpoints/{key}.weights.h5"
        (folder / file).write_bytes((whole.folder / file).read_bytes())
    while True:
        options = {"folder": str(folder), "moment": moments, "batches": False}
        child = nursery.start("train_and_publish", **options)
        if child.wait() == 0:
            break
        assert child.code == -signal.SIGKILL, child.output
        models, published = state(folder)[1], folder / "runs/quick/pretrained"
        for entry in models.values():
            assert all((published / name).is_file() for name in entry["files"])
        moments += 1
        assert moments < 40
    assert moments > 4 and lines(folder / "log") == []
    assert state(folder) == state(whole.folder)
    assert loaded_weights(folder) == loaded_weights(whole.folder)


# ----------------------------------------------------------------------------- the search


def made_up_trials(nb, put=setattr):
    """Replace what takes time in a trial by what comes out at once, and notes that it ran."""

    def try_out(made_from):
        network, rate = made_from["network"], made_from["learning_rate"]
        note("log", json.dumps([network["widths"][0], network["dropout"], rate]))
        recall = 0.5 + rate + network["dropout"] / 7 + network["widths"][0] / 1000
        return {"recall": round(recall, 5), "parameters": 1, "MFLOPs": 0.1, "seconds": 2}

    shape = {"depths": (1, 1, 1), "stride": 1, "dense": 0}
    networks = [{"widths": (width, 4, 4), **shape} for width in (1, 2, 3)]
    offered = {nb.describe(network): network for network in networks}
    put(nb, "affordable_networks", lambda: offered)
    put(nb, "make_custom", lambda **network: nb.keras.Sequential([nb.keras.Input((1,))]))
    put(nb, "try_out", try_out)
    put(gc, "collect", lambda: 0)  # most of the time that is left


def run_search(nb, folder, moment=None):
    """The job: the search with made-up trials."""
    settle(nb, folder)
    made_up_trials(nb)
    Death(nb, moment)
    return json.loads(nb.search().to_json(orient="records"))


def finished(folder):
    """Return the trials that have a score; every record has to parse."""
    records = {path: json.loads(path.read_text()) for path in Path(folder).rglob("[!.]*.json")}
    return {
        record["trial_id"]: record["hyperparameters"]["values"]
        for path, record in records.items()
        if path.name == "trial.json" and record["status"] == "COMPLETED"
    }


def check_search(folder, before, table):
    """Three different trials, those that were finished among them, and one run twice at most."""
    ran = [tuple(json.loads(line)) for line in lines(folder / "log")]
    assert before.items() <= finished(folder).items(), "a finished trial is lost"
    assert len(table) == 3 and len(set(ran)) == 3 and len(ran) <= 4, ran


def test_search_killed_in_every_write(small, tmp_path, monkeypatch):
    """No record is broken, no finished trial is lost, and one at most is run again."""
    made_up_trials(small, monkeypatch.setattr)
    monkeypatch.setattr(small, "precision", lambda architecture: "float32")
    broken, moments = {}, 1000
    for moment in range(1000):
        if moment > moments:
            break
        folder = tmp_path / str(moment)
        folder.mkdir()
        monkeypatch.chdir(folder)
        with monkeypatch.context() as patch:
            death = Death(small, moment, error=Killed, put=patch.setattr)
            try:
                small.search()
                moments = death.count
            except Killed:
                before = finished(folder)
            else:
                before = {}
        try:
            check_search(folder, before, small.search())
        except (RuntimeError, AssertionError) as error:
            broken[moment] = str(error)
    assert 20 < moments < 1000 and not broken


@pytest.mark.parametrize("moment", (7, 20))
def test_killed_search(nursery, tmp_path, moment):
    """The same by SIGKILL, which leaves temporary files behind."""
    child = nursery.start("run_search", folder=str(tmp_path), moment=moment)
    assert child.wait() == -signal.SIGKILL, child.output
    before = finished(tmp_path)
    assert len(before) == (moment == 20)
    check_search(tmp_path, before, nursery.start("run_search", folder=str(tmp_path)).result)


# ----------------------------------------------------------------------------- a full disk


def fill_disk(nb, folder, room):
    """The job: write each kind of file three times, the second time with room for `room` bytes."""
    settle(nb, folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    nb.MAKERS["mobilenetv2"] = nb.make_softmax
    made_from = nb.provenance("softmax", {}, 0.1, True, 1)
    nets = [nb.make_model("softmax") for _ in range(3)]
    checkpoint = nb.Checkpoint(None, nb.RUN / "run.weights.h5", [], made_from)
    checkpoint.begin = 0

    def save(net):
        checkpoint.set_model(net)
        checkpoint.on_epoch_end(0, {"loss": 1.0})

    whole = {**made_from, "architecture": "mobilenetv2"}
    writers = {
        nb.RUN / "list.json": lambda net: nb.write_json(nb.RUN / "list.json", [id(net)] * 5000),
        nb.RUN / "run.weights.h5": save,
        nb.PUBLISH / "custom_with_da.weights.h5": lambda net: nb.write_model(
            net, "custom_with_da", made_from
        ),
        nb.PUBLISH / "mobilenetv2_with_da.keras": lambda net: nb.write_model(
            net, "mobilenetv2_with_da", whole
        ),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = {}
    for path, write in writers.items():
        write(nets[0])
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        error = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            write(nets[1])
        except Exception as raised:
            error = raised
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        text = f"{type(error).__name__}: {error}"
        found[str(path)] = isinstance(error, OSError), text, before == after
        write(nets[2])  # with room again
        assert path.read_bytes() != before[path]
    return found


@pytest.mark.parametrize("room", (3_000, 20_000))
def test_full_disk(nursery, tmp_path, room):
    found = nursery.start("fill_disk", folder=str(tmp_path), room=room).result
    assert len(found) == 4
    for path, (is_os_error, text, intact) in found.items():
        assert is_os_error and f"{path}: could not be written" in text, text
        assert intact, f"{path}: half written, or the old one is gone"


def test_folder_that_cannot_be_written_to(small):
    """A file stands where the folder should be: the error names what could not be written."""
    net, made_from = small.make_model("softmax"), {"architecture": "softmax", "network": {}}
    small.PUBLISH.parent.mkdir(parents=True)
    small.PUBLISH.write_text("mine")
    with pytest.raises(OSError, match=r"custom_with_da.weights.h5: could not be written"):
        small.write_model(net, "custom_with_da", made_from)
    checkpoint = small.Checkpoint(None, small.PUBLISH / "run.weights.h5", [], made_from)
    checkpoint.set_model(net)
    checkpoint.begin = 0
    with pytest.raises(OSError, match=r"run.weights.h5: could not be written"):
        checkpoint.on_epoch_end(0, {"loss": 1.0})
    assert small.PUBLISH.read_text() == "mine"
    assert [path.name for path in small.PUBLISH.parent.iterdir()] == ["pretrained"]
