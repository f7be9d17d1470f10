"""What survives a kill at any moment: trainings, searches and files."""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, run_cell_with

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL on Windows", allow_module_level=True)

import h5py
from processes import nursery

KEY = "custom_without_da"
RUNS = Path("runs/quick")


@pytest.fixture(scope="module")
def start():
    """A function that starts a job of this module in a process of its own."""
    with nursery("test_survival", CUDA_VISIBLE_DEVICES="") as start:
        yield start


def log(text):
    with open("log", "a") as file:
        file.write(f"{text}\n")


def read_log(folder):
    return (folder / "log").read_text().split() if (folder / "log").exists() else []


def settle(nb, folder):
    """Go to `folder` and let the notebook be a quick run."""
    os.chdir(folder)
    nb.PROFILE, nb.QUICK = "quick", True
    nb.RUNS, nb.PUBLISHED = RUNS, RUNS / "pretrained"


def kill_at(nb, moment):
    """Let the process be killed at a moment, counted from 0; return what counts them.

    In every file that is written there are two: it is half written, or has its name.
    """
    moments = itertools.count()
    replace = os.replace

    def pass_by(last_act=lambda: None):
        if next(moments) == moment:
            last_act()
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source, target):
        half = os.path.getsize(source) // 2
        pass_by(lambda: os.truncate(source, half))
        replace(source, target)
        pass_by()

    os.replace = replace_or_die
    return pass_by


def train(nb, folder, moment=None):
    """The job: the notebook's own loop over one small model; it notes its epochs."""
    settle(nb, folder)
    pass_by = kill_at(nb, moment)

    class Checkpoint(nb.Checkpoint):
        def on_epoch_begin(self, epoch, logs=None):
            log(epoch)
            super().on_epoch_begin(epoch, logs)

        def on_train_batch_begin(self, batch, logs=None):
            pass_by()

    nb.Checkpoint = Checkpoint
    training = nb.Training("custom", 0.02, 3, augmentation=False, network=TINY)
    nb.TRAININGS = {KEY: training}
    run_cell_with(nb, "def must_train")
    return not nb.must_train(KEY, training)


def saved_epochs(folder):
    """Return how many epochs are saved; every file has to be whole."""
    for path in (folder / RUNS / "pretrained").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in (folder / RUNS / "pretrained").glob("weights/*.h5"):
        h5py.File(path).close()
    path = folder / RUNS / "checkpoints" / f"{KEY}.weights.h5"
    if not path.exists():
        return 0
    with h5py.File(path) as file:
        return len(json.loads(file.attrs["history"]))


def test_killed_training_goes_on(start, tmp_path):
    """Killed at random moments of training, and then in each write of publishing."""
    choose = random.Random(20221203)
    saved, begun, in_publishing = 0, 0, iter((0, 1, 2, 3, 4, 5))
    entries = tmp_path / RUNS / "pretrained" / "histories.json"
    while not entries.exists():
        last = 14 if saved < 2 else 7  # an epoch has 5 batches, and its checkpoint
        moment = choose.randrange(3, last) if saved < 3 else next(in_publishing)
        child = start("train", folder=str(tmp_path), moment=moment)
        assert child.wait() == -signal.SIGKILL, child.output
        epochs = read_log(tmp_path)[begun:]
        begun += len(epochs)
        expected = [str(saved + number) for number in range(len(epochs))]
        assert epochs == expected, f"killed at {moment}: epochs repeated or left out"
        assert saved_epochs(tmp_path) >= saved, "an epoch is lost"
        saved = saved_epochs(tmp_path)
    assert list(in_publishing) == []
    assert start("train", folder=str(tmp_path)).result
    assert len(read_log(tmp_path)) == begun, "it is trained again"


def search(nb, folder, moment=None):
    """The job: the search, with trials that take no time and are noted."""
    settle(nb, folder)
    kill_at(nb, moment)

    def score_training(training, name):
        log(name)
        return 0.5 + training.learning_rate

    nb.score_training = score_training
    nb.small_networks = lambda: [TINY, {**TINY, "stride": 1}]
    nb.SEARCH_TRIALS = 4
    return [record["score"] for record in nb.run_search()]


def finished_trials(folder):
    """Return the names of trials that have a score; every record has to be whole."""
    for path in (folder / RUNS / "search").glob("*.json"):
        json.loads(path.read_text())
    paths = (folder / RUNS / "search").glob("trial_*/trial.json")
    trials = [json.loads(path.read_text()) for path in paths]
    completed = [trial for trial in trials if trial["status"] == "COMPLETED"]
    return {f"search-{trial['trial_id']}" for trial in completed}


def test_killed_search_goes_on(start, tmp_path):
    """A trial after which another one had begun is neither lost nor run again."""
    choose = random.Random(7850)
    over, kills, seen = set(), 0, 0
    while True:
        moment = choose.randrange(14)
        child = start("search", folder=str(tmp_path), moment=moment)
        code = child.wait()
        begun = read_log(tmp_path)
        assert not over & set(begun[seen:]), "a finished trial is run again"
        assert over <= finished_trials(tmp_path), "a finished trial is lost"
        if code == 0:
            break
        assert code == -signal.SIGKILL and kills < 30, child.output
        over, seen, kills = set(begun[:-1]) - set(begun[-1:]), len(begun), kills + 1
    assert kills > 2 and len(child.result) == len(set(begun)) == 4
    assert len(begun) <= 4 + kills


def write_for_ever(nb, folder):
    """The job: replace one file by other contents, until it is killed."""
    os.chdir(folder)
    for number in itertools.count():
        with nb.whole_file("file") as temporary:
            temporary.write_bytes(bytes([number % 256]) * 5_000_000)


def test_file_is_never_half_written(start, tmp_path):
    for number in range(10):
        child = start("write_for_ever", folder=str(tmp_path))
        while not (tmp_path / "file").exists():
            time.sleep(0.01)
        time.sleep(random.Random(number).uniform(0.1, 0.3))
        assert child.kill() == -signal.SIGKILL, child.output
        content = (tmp_path / "file").read_bytes()
        assert len(content) == 5_000_000 and len(set(content)) == 1
