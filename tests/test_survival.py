"""What survives a kill at any moment, a full disk, a vanished folder, a server without end."""

import gzip
import json
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import examples, untimed
from processes import Nursery
from servers import Reply, Server

SEED = 20221203  # of the random moments


@pytest.fixture(scope="module")
def nursery():
    with Nursery("test_survival") as nursery:
        yield nursery


def note(path, text):
    """Append a line to a log that several processes write to."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def die_at(nb, write):
    """Kill this process in the middle of its `write`-th write of a file (from 0) by `atomic`.

    The temporary file is left, cut in half.
    """
    count, replace = [0], os.replace

    def replace_or_die(source, target):
        if count[0] == write:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        replace(source, target)
        return count[0]

    nb.os.replace = replace_or_die
    return count


# ----------------------------------------------------------------------------- the search

BUDGET = {"trials": {"small": 5}, "trial_images": {"custom": 470}, "trial_epochs": 2, "batch": 47}


def space(hp, fixed):
    """A small space; one of the widths is over the budget."""
    return {
        "widths": (hp.Choice("width", [6, 300, 12], default=12),) * 3,
        "dropout": hp.Choice("dropout", [0.0, 0.1, 0.2], default=0.1),
        "learning_rate": hp.Choice("learning_rate", [0.01, 0.02, 0.04], default=0.02),
    }


def small_search(nb):
    """Patch the notebook for a search in `space` of networks with one hidden layer."""
    layers = nb.keras.layers

    def make_model(name, widths, dropout):
        return nb.keras.Sequential(
            [nb.keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.AveragePooling2D(4),
             layers.Flatten(), layers.Dense(widths[0], "relu"), layers.Dropout(dropout),
             layers.Dense(47, "softmax")]
        )  # fmt: skip

    nb.make_model, nb.STEPS = make_model, {"small": ("custom", space)}
    nb.MAX_PARAMETERS, nb.MAX_MFLOPS = 10_000, 1000


def made_up_trials(nb):
    """Replace all that takes time by what comes out at once, and depends on the settings alone."""

    def make_model(name, widths, dropout):
        return SimpleNamespace(count_params=lambda: 49 * widths[0], settings=(widths[0], dropout))

    def run_training(net, train, validation, recipe, *arguments, **options):
        score = round(recipe["learning_rate"] + sum(net.settings) / 100, 5)
        return [{"val_mean_recall": score, "seconds": 0.5}]

    nb.make_model, nb.run_training = make_model, run_training
    nb.fresh_network = lambda name, network, seed: make_model(name, **network)
    nb.count_mflops, nb.devices = lambda net: 0.5, lambda: ["one"]
    nb.precision, nb.subset = lambda: "float32", lambda images, labels, count, seed: None


def run_search(nb, folder, real=True, die=None, budget=BUDGET, data="digest"):
    """The job: the search in `folder`, which notes each trial it begins to train in a log."""
    small_search(nb)
    if not real:
        made_up_trials(nb)
    count, train = die_at(nb, die), nb.run_training

    def run_training(net, data, validation, recipe, *arguments, **options):
        running = [path.parent.name for path in Path(folder).glob("small/trial_*/trial.json")
                   if nb.read_json(path)["status"] == "RUNNING"]  # fmt: skip
        note(f"{folder}.log", " ".join(running))
        return train(net, data, validation, recipe, *arguments, **options)

    nb.run_training = run_training
    splits = {"train": examples(10, 0), "validation": examples(1, 1)}
    trials = nb.search("small", {}, splits, data, budget, Path(folder))
    return {"trials": trials, "writes": count[0]}


def told(trials):
    """Return trials without the seconds, which no two runs share."""
    return [{key: value for key, value in trial.items() if key != "seconds"} for trial in trials]


def records(folder):
    """Return {trial: status}; every JSON file in `folder` has to parse."""
    found = {path: json.loads(path.read_text()) for path in folder.rglob("*.json")}
    return {path.parent.name: record["status"] for path, record in found.items()
            if path.name == "trial.json"}  # fmt: skip


class Watch:
    """Checks after every kill that no finished trial is begun again and none is lost."""

    def __init__(self, folder):
        self.folder, self.log = folder, Path(f"{folder}.log")
        self.finished, self.seen = {}, 0

    def check(self):
        begun, now = lines(self.log), records(self.folder)
        for trial in begun[self.seen :]:
            assert len(trial.split()) == 1, f"several trials are running: {trial}"
            assert trial not in self.finished, f"{trial} was finished and is begun again"
        self.seen = len(begun)
        assert self.finished.items() <= now.items(), "a finished trial is lost"
        self.finished = {trial: status for trial, status in now.items() if status != "RUNNING"}


def test_search_killed_at_random_moments(nursery, tmp_path):
    begin = time.monotonic()
    whole = nursery.start("run_search", folder=str(tmp_path / "whole")).result
    duration = time.monotonic() - begin
    scores = [trial["score"] for trial in whole["trials"]]
    assert len(scores) == 5 and 1 <= scores.count(None) <= 2, "of each kind one at least"
    moments = random.Random(SEED)
    watch, killed = Watch(tmp_path / "cut"), []
    while len(killed) < 4:
        child = nursery.start("run_search", folder=str(watch.folder))
        killed.append(round(moments.uniform(0.1, 0.6) * duration, 3))
        time.sleep(killed[-1])
        child.kill()
        watch.check()
    print(f"seed {SEED}: killed after {killed} of {duration:.1f} s; begun {lines(watch.log)}")
    found = nursery.start("run_search", folder=str(watch.folder)).result
    watch.check()
    assert told(found["trials"]) == told(whole["trials"])
    assert len(lines(watch.log)) <= 5 - scores.count(None) + len(killed)


def test_search_killed_in_every_write(nursery, tmp_path):
    """Between a trial's record and the oracle's, too, both when it begins and when it ends."""
    whole = nursery.start("run_search", folder=str(tmp_path / "whole"), real=False).result
    assert whole["writes"] > 30 and len(lines(tmp_path / "whole.log")) > 2
    for write in range(whole["writes"]):
        watch = Watch(tmp_path / str(write))
        child = nursery.start("run_search", folder=str(watch.folder), real=False, die=write)
        assert child.wait() == -signal.SIGKILL, child.output
        watch.check()
        found = nursery.start("run_search", folder=str(watch.folder), real=False).result
        watch.check()
        assert told(found["trials"]) == told(whole["trials"]), f"killed in write {write}"
        again = nursery.start("run_search", folder=str(watch.folder), real=False).result
        assert again == {"trials": found["trials"], "writes": 1}  # made_from.json
        shutil.rmtree(watch.folder)


def test_search_killed_again_and_again(nursery, tmp_path):
    """Each process is killed in its seventh write, a few further on than the one before."""
    whole = nursery.start("run_search", folder=str(tmp_path / "whole"), real=False).result
    watch = Watch(tmp_path / "cut")
    for kills in range(30):  # noqa: B007
        child = nursery.start("run_search", folder=str(watch.folder), real=False, die=7)
        ended = child.wait()
        watch.check()
        if ended == 0:
            break
    assert kills > 3 and told(child.result["trials"]) == told(whole["trials"])


def test_changed_search_that_was_cut_off_is_not_mixed(nursery, tmp_path):
    """Another configuration's records go, also where their removal was cut off half-way."""
    folder = tmp_path / "search"
    nursery.start("run_search", folder=str(folder), real=False, die=20).wait()
    assert records(folder)
    (folder / "small" / "made_from.json").unlink()  # as far as the removal came
    found = nursery.start("run_search", folder=str(folder), real=False, data="new").result
    whole = nursery.start("run_search", folder=str(tmp_path / "whole"), real=False).result
    assert told(found["trials"]) == told(whole["trials"])
    assert Counter(lines(Path(f"{folder}.log")))["trial_0"] == 2, "a record was taken over"
    longer = {**BUDGET, "trials": {"small": 6}}
    found = nursery.start("run_search", folder=str(folder), real=False, budget=longer).result
    assert len(found["trials"]) == 6, "a finished search of another budget was taken"
    assert Counter(lines(Path(f"{folder}.log")))["trial_0"] == 3


# ------------------------------------------------------------------------------- training


def small_network(keras, seed=3):
    """Return a small network with batch normalisation and dropout."""
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.AveragePooling2D(4),
         layers.Conv2D(6, 3, use_bias=False), layers.BatchNormalization(momentum=0.5),
         layers.ReLU(), layers.Flatten(), layers.Dropout(0.2), layers.Dense(47),
         layers.Softmax(dtype="float32")]
    )  # fmt: skip


def run_training(nb, folder, die=None, moment=None, vanish=None):
    """The job: a training in `folder`, which notes its epochs and writes its weights at the end.

    It kills itself in the `die`-th write of the checkpoint: before the file gets its name, or, if
    `moment` is "weights", when the weights are in it and the record is not, or, if it is "after",
    when the file has its name. Before epoch `vanish` the folder is removed.
    """
    path, log, count = Path(folder) / "run.weights.h5", f"{folder}.log", [0]
    replace, save, begin = os.replace, nb.keras.Model.save_weights, nb.Checkpoint.on_epoch_begin

    def save_weights(self, *arguments, **options):
        save(self, *arguments, **options)
        if count[0] == die and moment == "weights":
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source, target):
        count[0] += 1
        if count[0] - 1 == die and moment == "before":
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if count[0] - 1 == die:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        note(log, epoch)
        if epoch == vanish:
            shutil.rmtree(folder)
        begin(self, epoch, logs)

    nb.keras.Model.save_weights, nb.os.replace = save_weights, replace_or_die
    nb.Checkpoint.on_epoch_begin = on_epoch_begin
    net = small_network(nb.keras)
    recipe = {**nb.RECIPE, "learning_rate": 0.02, "averaging_share": 0.2}
    ranges = {"shift": 0.03, "zoom": 0.05, "rotation": 3.0, "shear": 0.0}
    history = nb.run_training(net, examples(6, 0), examples(2, 1), recipe, 6, 47, ranges, 1,
                              path=path, origin="a")  # fmt: skip
    np.savez(f"{folder}.npz", *net.get_weights())
    return history


def same_arrays(first, second):
    """Return whether two .npz files hold the same arrays, bit for bit."""
    with np.load(first) as a, np.load(second) as b:
        return a.files == b.files and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.fixture(scope="module")
def trained(nursery, tmp_path_factory):
    """A training without interruption: its folder and history."""
    folder, begin = tmp_path_factory.mktemp("trained") / "whole", time.monotonic()
    history = nursery.start("run_training", folder=str(folder)).result
    return SimpleNamespace(folder=folder, history=history, seconds=time.monotonic() - begin)


def test_training_killed_while_it_saves(nb, nursery, trained, tmp_path):
    folder, epochs = tmp_path / "cut", 0
    path = folder / "run.weights.h5"
    for die, moment, saved in (
        (0, "before", 0),
        (0, "after", 1),
        (1, "weights", 1),
        (2, "before", 2),
    ):
        child = nursery.start("run_training", folder=str(folder), die=die, moment=moment)
        assert child.wait() == -signal.SIGKILL, child.output
        epochs += saved
        assert len(nb.saved_history(path, "a")) == epochs, "neither the old one nor the new one"
    history = nursery.start("run_training", folder=str(folder)).result
    assert untimed(history) == untimed(trained.history)
    assert same_arrays(f"{folder}.npz", f"{trained.folder}.npz")
    assert list(map(int, lines(Path(f"{folder}.log")))) == [0, 0, 1, 2, 2, 3, 4, 4, 5]


def test_training_killed_at_random_moments(nb, nursery, trained, tmp_path):
    folder, moments, killed, most = tmp_path / "cut", random.Random(SEED + 1), [], 0
    while len(killed) < 4:
        child = nursery.start("run_training", folder=str(folder))
        killed.append(round(moments.uniform(0.5, 1) * trained.seconds, 3))
        time.sleep(killed[-1])
        child.kill()
        saved = nb.saved_history(folder / "run.weights.h5", "a")
        assert bool(saved) == (folder / "run.weights.h5").exists() and len(saved) >= most
        most = len(saved)
    print(f"seed {SEED + 1}: killed after {killed} of {trained.seconds:.1f} s; "
          f"epochs begun {lines(Path(f'{folder}.log'))}")  # fmt: skip
    history = nursery.start("run_training", folder=str(folder)).result
    assert untimed(history) == untimed(trained.history)
    assert same_arrays(f"{folder}.npz", f"{trained.folder}.npz")


def test_folder_that_vanishes_between_epochs(nb, nursery, trained, tmp_path):
    folder = tmp_path / "gone"
    history = nursery.start("run_training", folder=str(folder), vanish=3).result
    assert untimed(history) == untimed(trained.history)
    assert nb.saved_history(folder / "run.weights.h5", "a") == history
    assert [path.name for path in folder.iterdir()] == ["run.weights.h5"]


def test_folder_that_vanishes_during_a_write(nb, tmp_path):
    path = tmp_path / "folder" / "file"
    with pytest.raises(FileNotFoundError) as error, nb.atomic(path) as temporary:
        temporary.write_text("new")
        shutil.rmtree(path.parent)
    assert f"{path}: could not be written" in str(error.value)
    nb.write_json(path, 1)
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_file_in_the_place_of_a_folder(nb, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "below" / "new"):
        with pytest.raises((NotADirectoryError, FileExistsError)) as error:
            nb.write_json(path, 1)
        assert f"{path}: expected a folder" in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


# ----------------------------------------------------------------------------- publishing


def softmax(nb, value):
    """Return softmax regression whose weights all have one value."""
    model = nb.make_softmax()
    model.set_weights([np.full_like(weight, value) for weight in model.get_weights()])
    return model


def publish(nb, folder, name, value, die=None):
    """The job: publish a small network as `name`, with weights that all have one value."""
    count = die_at(nb, die)
    return [nb.write_model(softmax(nb, value), name, "with_da", Path(folder)), count[0]]


@pytest.mark.parametrize("name, writes", (("resnet50v2", 2), ("mobilenetv2", 1)))
def test_killed_while_publishing(nb, nursery, tmp_path, name, writes):
    folder = tmp_path / "published"
    names, count = nursery.start("publish", folder=str(folder), name=name, value=1.0).result
    assert count == writes == len(names)
    before = {file: (folder / file).read_bytes() for file in names}
    for write in range(writes):
        child = nursery.start("publish", folder=str(folder), name=name, value=2.0, die=write)
        assert child.wait() == -signal.SIGKILL, child.output
        assert {file: (folder / file).read_bytes() for file in names} == before  # same architecture
    digest = nb.write_sums(folder)
    listed = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert listed == sorted(names), "what a kill left is published"
    nursery.start("publish", folder=str(folder), name=name, value=2.0).result  # noqa: B018
    if name == "mobilenetv2":
        model = nb.keras.models.load_model(folder / names[0])
    else:
        model = nb.keras.models.model_from_json((folder / names[0]).read_text())
        model.load_weights(folder / names[1])
    assert all((weight == 2).all() for weight in model.get_weights())
    assert nb.write_sums(folder) != digest


# ----------------------------------------------------------------------------- a full disk


def writers(nb, folder, url):
    """Return {name of a file in `folder`: what writes it}, more than 20,000 bytes each time."""
    net = softmax(nb, 0)
    net.set_weights([np.random.RandomState(0).normal(size=w.shape) for w in net.get_weights()])
    array = np.random.RandomState(0).randint(0, 256, 47 * 784).astype(np.uint8)

    def save_array():
        with nb.atomic(folder / "array.npy", ".npy") as temporary:
            np.save(temporary, array)

    return {
        "list.json": lambda: nb.write_json(folder / "list.json", list(range(20_000))),
        "net.weights.h5": lambda: nb.save_weights(net, folder / "net.weights.h5", "a", []),
        "array.npy": save_array,
        "idx": lambda: nb.write_idx(folder / "idx", array.reshape(-1, 28, 28)),
        "resnet50v2_with_da.weights.h5": lambda: nb.write_model(
            net, "resnet50v2", "with_da", folder
        ),
        "mobilenetv2_with_da.keras": lambda: nb.write_model(net, "mobilenetv2", "with_da", folder),
        "fetched": lambda: nb.fetch(url, folder / "fetched"),
    }


def fill_disk(nb, folder, url, room):
    """The job: write each file three times, the second time with room for `room` bytes."""
    folder, soft, hard = Path(folder), *resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    found, fetch = {}, nb.run_fetcher

    def run_fetcher(*arguments):  # if the disk fills, then when the download is over
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        seconds = fetch(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return seconds

    nb.run_fetcher = run_fetcher
    for name, write in writers(nb, folder, url).items():
        write()
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        error = None
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            write()
        except Exception as raised:
            error = raised
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        found[name] = {
            "error": f"{type(error).__name__}: {error}", "is_os_error": isinstance(error, OSError),
            "intact": files == {path.name: path.read_bytes() for path in folder.iterdir()},
            "files": sorted(path.name for path in folder.iterdir()),
        }  # fmt: skip
        write()  # with room again
    return found


@pytest.mark.parametrize("room", (5_000, 20_000))
def test_full_disk(nursery, tmp_path, room):
    with Server({"file": bytes(30_000)}) as server:
        arguments = {"folder": str(tmp_path), "url": server.url + "file", "room": room}
        found = nursery.start("fill_disk", **arguments).result
    assert len(found) == 7
    for name, outcome in found.items():
        path = tmp_path / name
        assert outcome["is_os_error"] and str(path) in outcome["error"], (name, outcome["error"])
        assert outcome["intact"], f"{name}: {outcome['files']}"


def download_on_a_full_disk(nb, folder, url):
    """The job: a download for whose temporary file there is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        nb.fetch(url, Path(folder) / "file")
    except ConnectionError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_download_on_a_full_disk(nursery, tmp_path):
    with Server({"file": bytes(30_000)}) as server:
        url = server.url + "file"
        text = nursery.start("download_on_a_full_disk", folder=str(tmp_path), url=url).result
    assert text.startswith(f"{url}: could not be downloaded") and "File too large" in text
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- more than there can be


@pytest.mark.parametrize("length", (None, "none"))
def test_server_that_sends_too_much(nb, tmp_path, monkeypatch, length):
    monkeypatch.setattr(nb, "MOST_BYTES", 300_000)
    replies = {"right": Reply(bytes(300_000), length=length),
               "wrong": Reply(bytes(20_000_000), length=length)}  # fmt: skip
    with Server(replies) as server:
        nb.fetch(server.url + "right", tmp_path / "right")
        with pytest.raises(ConnectionError, match="expected at most 300,000 bytes") as error:
            nb.fetch(server.url + "wrong", tmp_path / "wrong")
    assert server.url + "wrong" in str(error.value)
    assert server.sent["wrong"] < 15_000_000, "all of it was fetched"
    assert [path.name for path in tmp_path.iterdir()] == ["right"]
    assert (tmp_path / "right").stat().st_size == 300_000


def test_gzip_that_unpacks_to_too_much(nb, tmp_path, monkeypatch):
    monkeypatch.setattr(nb, "MOST_BYTES", 100_000)
    path = tmp_path / "bomb.gz"
    for size in (100_000, 100_001, 50_000_000):
        path.write_bytes(gzip.compress(bytes(size)))
        assert path.stat().st_size < 100_000
        if size == 100_000:
            assert nb.read_bytes(path) == bytes(size)
        else:
            with pytest.raises(ValueError, match="expected at most 100,000 bytes") as error:
                nb.read_bytes(path)
            assert str(path) in str(error.value)
