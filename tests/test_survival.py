"""What survives a kill at any moment, and a full disk."""

import contextlib
import gc
import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
from conftest import TINY, run_cell_with, shrink, untimed
from idx_files import read
from processes import Nursery

KEYS = ("custom_with_da", "softmax_with_da")
PUBLISHED = Path("runs/quick/pretrained")


@pytest.fixture(scope="module")
def nursery():
    with Nursery("test_survival") as nursery:
        yield nursery


def note(path, text):
    """Append a line to a log, which several processes may write to."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def settle(nb, folder):
    """Go to `folder`, which is made, with a tiny budget."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    shrink(nb)


class Death:
    """Counts moments, and dies at the `moment`-th (from 0; None: never): by SIGKILL, or by `error`
    where a process of its own for each kill would take too long."""

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
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_publish(nb, folder, moment=None, batches=True):
    """The job: the notebook's loop over two small models; it notes every epoch that it begins."""
    settle(nb, folder)
    death, begin = Death(nb, moment, batches), nb.Checkpoint.on_epoch_begin

    def on_epoch_begin(self, epoch, logs=None):
        note("log", f"{self.made_from['architecture']}_with_da {epoch}")
        begin(self, epoch, logs)

    nb.Checkpoint.on_epoch_begin = on_epoch_begin
    nb.emnist, nb.ONLY, nb.networks = nb.splits, set(KEYS), {"custom": TINY}
    nb.rates, nb.BUDGET["epochs"] = {"custom": 0.02, "softmax": 0.02}, {"custom": 3, "softmax": 3}
    run_cell_with(nb, "plan = planned(networks, rates)")
    return death.count


def state(folder):
    """Return {key: epochs in its checkpoint} and what is published; all records have to parse."""
    folder, saved, models = Path(folder) / "runs" / "quick", {}, {}
    for path in folder.glob("checkpoints/[!.]*"):
        with h5py.File(path) as file:
            saved[path.name.split(".")[0]] = len(json.loads(file.attrs["record"])["history"])
    records = folder / "pretrained" / "histories.json"
    for key, entry in json.loads(records.read_text()).items() if records.exists() else ():
        models[key] = {**untimed([entry])[0], "history": untimed(entry["history"])}
    return saved, models


def loaded_weights(folder):
    """Return {(file, name in it): bytes} of all published weights."""
    found = {}
    for path in sorted((folder / PUBLISHED).rglob("[!.]*.weights.h5")):

        def keep(name, item, file=path.name):
            if isinstance(item, h5py.Dataset):
                found[file, name] = item[()].tobytes()

        with h5py.File(path) as weights:
            weights.visititems(keep)
    return found


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """A run of the loop without interruption: its folder, moments and seconds."""
    folder = tmp_path_factory.mktemp("whole")
    child, begin = nursery.start("train_and_publish", folder=str(folder)), time.monotonic()
    moments, seconds = child.result, time.monotonic() - begin
    assert lines(folder / "log") == [f"{key} {epoch}" for key in KEYS for epoch in range(3)]
    return SimpleNamespace(folder=folder, moments=moments, seconds=seconds)


def test_loop_killed_at_random_moments(nursery, whole, tmp_path):
    """Killed six times: at four counted moments, and twice from outside; then left in peace."""
    choose, folder = random.Random(20221203), tmp_path / "cut"
    saved, models, seen = {}, {}, 0
    for how in ("inside", "outside", "inside", "inside", "outside", "inside", "not"):
        moment = choose.randrange(5, whole.moments // 2) if how == "inside" else None
        child = nursery.start("train_and_publish", folder=str(folder), moment=moment)
        if how == "outside":
            moment = choose.uniform(0.3, 0.9) * whole.seconds
            time.sleep(moment)
            child.kill()
        print(f"killed {how}, {moment}")
        codes = (0,) if how == "not" else (0, -signal.SIGKILL)  # it may end before its moment
        assert child.wait() in codes, child.output
        begun = [line.split() for line in lines(folder / "log")[seen:]]
        seen += len(begun)
        for key in KEYS:
            epochs = [int(epoch) for name, epoch in begun if name == key]
            assert not (epochs and key in models), "a finished model is trained again"
            expected = [saved.get(key, 0) + number for number in range(len(epochs))]
            assert epochs == expected, "an epoch is repeated or left out"
        after, found = state(folder)
        assert all(after[key] >= epochs for key, epochs in saved.items()), "an epoch is lost"
        assert models.items() <= found.items(), "a model is lost"
        saved, models = after, found
    assert (saved, models) == state(whole.folder)
    assert loaded_weights(folder) == loaded_weights(whole.folder) != {}
    sums = PUBLISHED / "SHA256SUMS"
    assert len(lines(folder / sums)) == len(lines(whole.folder / sums))


def test_killed_in_every_write_of_publishing(nursery, whole, tmp_path):
    """The training is not repeated, and the model is published, or not, as a whole."""
    folder, checkpoints = str(tmp_path), "runs/quick/checkpoints"
    shutil.copytree(whole.folder / checkpoints, tmp_path / checkpoints)
    for moment in range(40):
        child = nursery.start("train_and_publish", folder=folder, moment=moment, batches=False)
        if child.wait() == 0:
            break
        assert child.code == -signal.SIGKILL, child.output
        for entry in state(tmp_path)[1].values():
            assert all((tmp_path / PUBLISHED / name).is_file() for name in entry["files"])
    assert 4 < moment < 39 and lines(tmp_path / "log") == []
    assert state(tmp_path) == state(whole.folder)
    assert loaded_weights(tmp_path) == loaded_weights(whole.folder)


def made_up_trials(nb, put=setattr):
    """Replace what takes time in a trial by what comes out at once, and notes that it ran."""

    def try_out(made_from):
        network, rate = made_from["network"], made_from["learning_rate"]
        width, dropout = network.get("widths", [0])[0], network.get("dropout", 0)
        note("log", json.dumps([width, dropout, rate]))
        recall = 0.5 + rate + dropout / 7 + width / 1000
        return {"recall": round(recall, 5), "parameters": 1, "MFLOPs": 0.1}

    shape = {"depths": (1, 1, 1), "stride": 1, "dense": 0}
    networks = [{"widths": (width, 4, 4), **shape} for width in (1, 2, 3)]
    offered = {nb.describe(network): network for network in networks}
    put(nb, "affordable_networks", lambda: offered)
    put(nb, "make_custom", lambda **network: nb.keras.Sequential([nb.keras.Input((1,))]))
    put(nb, "try_out", try_out)
    put(gc, "collect", lambda: 0)  # most of the time that is left


def finished(folder):
    """Return the trials that have a score; every record has to parse."""
    records = [(path, json.loads(path.read_text())) for path in folder.rglob("[!.]*.json")]
    trials = [record for path, record in records if path.name == "trial.json"]
    return {each["trial_id"]: each["score"] for each in trials if each["status"] == "COMPLETED"}


def test_search_killed_in_every_write(small, tmp_path, monkeypatch):
    """No record is broken, no finished trial is lost, and one at most is run again."""
    made_up_trials(small, monkeypatch.setattr)
    for moment in itertools.count():
        print(f"killed at moment {moment}")
        folder = tmp_path / str(moment)
        folder.mkdir()
        monkeypatch.chdir(folder)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            Death(small, moment, error=KeyboardInterrupt, put=patch.setattr)
            patch.setattr(Path, "unlink", lambda *_: None)  # as SIGKILL: half of a file is left
            small.search()
            break
        before, table = finished(folder), small.search()
        ran = [tuple(json.loads(line)) for line in lines(folder / "log")]
        assert before.items() <= finished(folder).items(), "a finished trial is lost"
        assert len(table) == 3 and len(set(ran)) == 3 and len(ran) <= 4, ran
    assert moment > 20


def fill_disk(nb, folder, room):
    """The job: write each kind of file three times, the second time with room for `room` bytes."""
    settle(nb, folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    nets = [nb.make_model("softmax") for _ in range(3)]
    checkpoint = nb.Checkpoint(None, nb.RUN / "run.weights.h5", [], {})
    checkpoint.begin = 0

    def save(net):
        checkpoint.set_model(net)
        checkpoint.on_epoch_end(0, {"loss": 1.0})

    weights, whole = nb.PUBLISH / "weights/custom_with_da.weights.h5", "mobilenetv2_with_da"
    writers = {
        nb.RUN / "list.json": lambda net: nb.write_json(nb.RUN / "list.json", [id(net)] * 5000),
        nb.RUN / "run.weights.h5": save,
        weights: lambda net: nb.write_model(net, "custom_with_da"),
        nb.PUBLISH / f"{whole}.keras": lambda net: nb.write_model(net, whole),
    }
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for path, write in writers.items():
        write(nets[0])
        before = read(Path())
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OSError, match=f"{path}: could not be written"):
            write(nets[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert read(Path()) == before, f"{path}: half written, or the old one is gone"
        write(nets[2])  # with room again
        assert path.read_bytes() != before[str(path)]


@pytest.mark.parametrize("room", (3_000, 20_000))
def test_full_disk(nursery, tmp_path, room):
    """Each writer says what could not be written, and what stood there before stays whole."""
    child = nursery.start("fill_disk", folder=str(tmp_path), room=room)
    assert child.wait() == 0, child.output
