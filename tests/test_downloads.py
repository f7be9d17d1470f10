"""Downloads from a server that misbehaves, and the chain of sources that the data come from."""

import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from idx_files import (
    MAPPING,
    NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    complaint,
    declare_official,
    idx,
    make_arrays,
    make_files,
    make_zip,
    mapping,
    pack,
    read,
    write,
)
from servers import Reply, Server

FILES = make_files()
ZIP = "gzip.zip"
HTML_PAGE = b"<!DOCTYPE html><html><h1>Sorry</h1></html>"
SPACE, NIST = "the project's space", "NIST"


@pytest.fixture(scope="session")
def closed():
    """The URL of a port that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


@pytest.fixture
def place(nb, tmp_path, monkeypatch, closed):
    """A home for downloads: `cwd`, `cache` in it, `tmp`; `started` lists the processes started.

    Every source is out of reach until a test sets it.
    """
    cwd, tmp = tmp_path / "cwd", tmp_path / "tmp"
    cwd.mkdir()
    tmp.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp))
    monkeypatch.setenv("TMPDIR", str(tmp))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(nb, "EMNIST_DIR", None)
    monkeypatch.setattr(nb, "CACHE", Path("data"))
    monkeypatch.setattr(nb, "DATA_URL", closed)
    monkeypatch.setattr(nb, "NIST_URL", closed + ZIP)
    monkeypatch.setattr(nb, "ALLOW_UNOFFICIAL", False)
    yield SimpleNamespace(home=tmp_path, cwd=cwd, tmp=tmp, cache=cwd / "data", started=started)
    assert all(process.poll() is not None for process in started), "a process is left running"
    assert not list(tmp.iterdir()), "temporary files are left"


@pytest.fixture
def official(nb, monkeypatch):
    """`FILES` are the official ones."""
    declare_official(nb, monkeypatch, FILES)


@pytest.fixture
def stand_in(nb, monkeypatch):
    """The stand-in, quickly: made-up files; a list of the folders and seeds it was asked for."""
    calls = []

    def write_stand_in(folder, seed):
        calls.append((str(folder), seed))
        write(Path(folder), make_files(make_arrays(seed=9)))

    monkeypatch.setattr(nb, "write_stand_in", write_stand_in, raising=False)
    return calls


@contextlib.contextmanager
def sources(nb, monkeypatch, space=(), nist=()):
    """Serve the project's space and NIST; what is not in the two dictionaries is a 404."""
    with Server(space) as first, Server(nist) as second:
        monkeypatch.setattr(nb, "DATA_URL", first.url)
        monkeypatch.setattr(nb, "NIST_URL", second.url + ZIP)
        yield first, second


# ------------------------------------------------------------------------- one file


def test_good_file(nb, place):
    with Server({"file": bytes(range(256)) * 1000}) as server:
        seconds = nb.fetch(server.url + "file", "data/deep/file")
    assert read(place.home) == {"cwd/data/deep/file": bytes(range(256)) * 1000}
    assert 0 < seconds < 60
    assert server.paths == ["file"]


def test_check_sees_the_content_before_the_place_does(nb, place):
    seen = []

    def check(path):
        seen.append((path.read_bytes(), Path("data/file").exists()))

    with Server({"file": b"content"}) as server:
        nb.fetch(server.url + "file", Path("data/file"), check)
    assert seen == [(b"content", False)]


def test_server_names_another_file(nb, place):
    reply = Reply(b"content", headers={"Content-Disposition": 'attachment; filename="../evil"'})
    with Server({"file": reply}) as server:
        nb.fetch(server.url + "file", "data/file")
    assert read(place.home) == {"cwd/data/file": b"content"}


def test_modules_of_the_same_name_in_the_current_folder(nb, place):
    write(place.cwd, {"wget.py": b"raise SystemExit('mine')", "random.py": b"1 / 0"})
    with Server({"file": b"content"}) as server:
        nb.fetch(server.url + "file", "data/file")
    assert read(place.cache) == {"file": b"content"}


def test_no_length_is_sent(nb, place):
    with Server({"file": Reply(b"content" * 9999, length="none")}) as server:
        nb.fetch(server.url + "file", "data/file")
    assert read(place.home) == {"cwd/data/file": b"content" * 9999}


GOOD = FILES[TEST_IMAGES]  # 36,864 bytes
FAULTS = {  # the reply, the kind of error, words of the reason
    "404": (Reply(HTML_PAGE, status=404), ConnectionError, "404"),
    "500": (Reply(HTML_PAGE, status=500), ConnectionError, "500"),
    "silent": (Reply(stall=True), ConnectionError, "timed out"),
    "silent half-way": (Reply(GOOD, hang=len(GOOD) // 2), ConnectionError, "timed out"),
    "drip": (Reply(GOOD, drip=0.2), ConnectionError, "within 1.5 s"),
    "cut half-way": (Reply(GOOD, cut=len(GOOD) // 2), ConnectionError, "got only 18432 out of"),
    "cut at once": (Reply(GOOD, cut=0), ConnectionError, "got only 0 out of"),
    "cut, no length": (Reply(GOOD, cut=18432, length="none"), ValueError, "found 18416"),
    "length too large": (Reply(GOOD, length=len(GOOD) + 9), ConnectionError, "got only 36864"),
    "length too small": (Reply(GOOD, length=len(GOOD) - 9), ValueError, "found 36839"),
    "length no number": (Reply(GOOD, length="much"), ConnectionError, "much"),
    "HTML with 200": (Reply(HTML_PAGE), ValueError, "an HTML page"),
    "nothing with 200": (Reply(b""), ValueError, "b''"),
    "gzip cut": (Reply(gzip.compress(GOOD)[:-9]), ValueError, "whole gzip file"),
    "other digest": (Reply(idx(make_arrays(seed=3)["test", "images"])), ValueError, "SHA-256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_download(nb, place, official, monkeypatch, fault):
    reply, kind, reason = FAULTS[fault]
    if "silent" in fault:
        monkeypatch.setattr(nb, "STALL", 1)
    check = nb.check_idx_file(("test", "images"), official=True)
    deadline = 1.5 if fault == "drip" else 60
    begin = time.perf_counter()
    with Server({"file": reply}) as server, pytest.raises(kind) as error:
        nb.fetch(server.url + "file", "data/file", check, deadline=deadline)
    assert time.perf_counter() - begin < 20
    assert type(error.value) is kind
    assert server.url + "file" in str(error.value) and reason in str(error.value)
    if kind is ValueError:
        assert ".file." not in complaint(error, "file: expected")  # not the temporary name
    assert read(place.home) == {} and len(place.started) == 1
    assert server.paths == ["file"] or fault == "drip"  # the deadline may come first


def test_good_counterpart_of_the_bad_downloads(nb, place, official):
    with Server({"file": GOOD}) as server:
        nb.fetch(server.url + "file", "data/file", nb.check_idx_file(("test", "images"), True))
    assert read(place.cache) == {"file": GOOD}


def test_refused(nb, place, closed):
    with pytest.raises(ConnectionError, match="refused") as error:
        nb.fetch(closed + "file", "data/file")
    assert closed + "file" in str(error.value) and read(place.home) == {}


@pytest.mark.parametrize("fault", ["404", "cut half-way", "other digest"])
def test_bad_download_leaves_the_old_file(nb, place, official, fault):
    write(place.cache, {"file": b"old"})
    check = nb.check_idx_file(("test", "images"), official=True)
    with Server({"file": FAULTS[fault][0]}) as server, pytest.raises(FAULTS[fault][1]):
        nb.fetch(server.url + "file", "data/file", check)
    assert read(place.home) == {"cwd/data/file": b"old"}


def test_deadline_is_read_when_needed(nb, place, monkeypatch):
    monkeypatch.setattr(nb, "DEADLINE", 1)
    slow = Server({"file": Reply(GOOD, drip=0.2)})
    with slow, pytest.raises(ConnectionError, match="within 1 s"):
        nb.fetch(slow.url + "file", "data/file")


def test_interrupt(nb, place, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(nb, "show_download", interrupt)
    with Server({"file": Reply(stall=True)}) as server, pytest.raises(KeyboardInterrupt):
        nb.fetch(server.url + "file", "data/file")
    assert read(place.home) == {}
    assert place.started[0].poll() is not None


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        (b"", None),
        (b"8192 700", None),
        (b"8192 70000\n", (8192, 70000)),
        (b"8192 70000\n16384 70000\n245", (16384, 70000)),
        (b"0 0\n", None),
        (b"-1 -1\n", None),  # the server did not say how much there is
        (b"12345678 88435216\n" * 5000, (12345678, 88435216)),
    ],
)
def test_progress_of_a_download(nb, tmp_path, log, shown):
    (tmp_path / "log").write_bytes(log)
    progress = SimpleNamespace(total=1, seen=None)
    progress.update = lambda done, note: setattr(progress, "seen", (done, progress.total))
    nb.show_download(progress, tmp_path / "log")
    assert progress.seen == shown


# ----------------------------------------------------------------- one file inside a zip


def other_members():
    """Four members of 200 kB that nobody asked for."""
    return {f"gzip/emnist-{name}.gz": os.urandom(200_000) for name in ("a", "b", "letters", "c")}


def test_member_of_a_zip(nb, place):
    archive = make_zip(FILES, other_members())
    with Server({ZIP: archive}) as server:
        nb.fetch(server.url + ZIP, "data/file", member=f"gzip/{TEST_IMAGES}.gz")
    assert read(place.home) == {"cwd/data/file": pack(FILES)[TEST_IMAGES + ".gz"]}
    assert server.sent[ZIP] < 65536 + len(gzip.compress(GOOD)) + 1000 < len(archive) / 5


def zip_faults():
    archive = make_zip(FILES, other_members())
    member = pack(FILES)[TEST_LABELS + ".gz"]
    place = archive.index(member) + 12
    broken = archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :]
    return {  # the reply, words of the reason
        "404": (Reply(HTML_PAGE, status=404), "404"),
        "no ranges": (Reply(archive, ranges=False), "RangeNotSupported"),
        "no such member": (make_zip({}, other_members()), "no item named"),
        "no zip": (HTML_PAGE, "not a zip file"),
        "broken member": (broken, "CRC"),
        "cut": (Reply(archive, cut=30), ""),
        "silent": (Reply(stall=True), "timed out"),
        "drip": (Reply(archive, drip=0.2), "within 2 s"),
    }


@pytest.mark.parametrize("fault", zip_faults())
def test_bad_zip(nb, place, monkeypatch, fault):
    reply, reason = zip_faults()[fault]
    if fault == "silent":
        monkeypatch.setattr(nb, "STALL", 1)
    with Server({ZIP: reply}) as server, pytest.raises(ConnectionError) as error:
        nb.fetch(
            server.url + ZIP,
            "data/file",
            member=f"gzip/{TEST_LABELS}.gz",
            deadline=2 if fault == "drip" else 60,
        )
    assert server.url + ZIP in str(error.value) and reason in str(error.value)
    assert read(place.home) == {}
    assert server.sent[ZIP] < 70_000 or fault == "no ranges"  # one that cannot serve a part


def test_zip_with_hostile_names(nb, place):
    evil = {"../../evil": b"1", "/tmp/evil-emnist": b"2", "gzip/../evil": b"3", "evil\\..": b"4"}
    with Server({ZIP: make_zip(FILES, evil)}) as server:
        nb.fetch(server.url + ZIP, "data/file", member=f"gzip/{TEST_LABELS}.gz")
        nb.fetch(server.url + ZIP, "data/other", member="../../evil")
    assert set(read(place.home)) == {"cwd/data/file", "cwd/data/other"}
    assert not Path("/tmp/evil-emnist").exists()


# --------------------------------------------------------------------------- two at once


def test_fetches_at_once_in_threads(nb, place, official):
    target, errors, seen = place.cache / "file", [], set()
    check = nb.check_idx_file(("test", "images"), official=True)

    def work(url):
        try:
            nb.fetch(url, target, check)
        except BaseException as error:
            errors.append(error)

    with Server({"file": GOOD, "cut": Reply(GOOD, cut=9)}) as server:
        paths = ["file", "file", "cut", "file"]
        threads = [threading.Thread(target=work, args=(server.url + path,)) for path in paths]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if target.exists():
                seen.add(target.read_bytes())
            time.sleep(0.001)
    assert [type(error) for error in errors] == [ConnectionError]
    assert seen <= {GOOD} and read(place.home) == {"cwd/data/file": GOOD}


LOADER = """
import os, sys, types
for name in ("keras", "keras_tuner"):  # not needed to load data, and slow to import
    sys.modules[name] = types.SimpleNamespace(version=lambda: "3.0")
sys.path.insert(0, sys.argv[1])
from conftest import definition_cells
names = {}
for source in definition_cells():
    exec(source, names)
    if "load_emnist" in names:
        break
for number in range(2):
    if os.fork() == 0:
        try:
            data = names["load_emnist"]()
            digest = names["sha256"](data["train"]["images"])
            with open(f"{sys.argv[2]}/{number}", "w") as file:
                print(data["source"], digest, *data["notes"], sep="\\n", file=file)
        finally:
            os._exit(0)
os.wait(), os.wait()
"""


def test_loads_at_once_in_processes(place):
    """Two processes fill one cache, in which one file is bad already; both get the same data."""
    write(place.cache, {TRAIN_LABELS: FILES[TRAIN_LABELS][:-1]})
    together = Reply(FILES[MAPPING], gate=threading.Barrier(2))
    with Server({**FILES, MAPPING: together}) as server:
        environment = {**os.environ, "EMNIST_DATA_URL": server.url, "EMNIST_CACHE": "data",
                       "EMNIST_ALLOW_UNOFFICIAL": "1", "EMNIST_PROFILE": "quick"}  # fmt: skip
        environment.pop("EMNIST_DIR", None)
        reports = place.home / "reports"
        reports.mkdir()
        command = [sys.executable, "-c", LOADER, str(Path(__file__).parent), str(reports)]
        subprocess.run(command, env=environment, timeout=100, check=True)
    upright = make_arrays()["train", "images"].swapaxes(1, 2).tobytes()
    for number in range(2):
        source, digest, *_ = (reports / str(number)).read_text().splitlines()
        assert source == SPACE and digest == hashlib.sha256(upright).hexdigest()
    assert server.paths.count(MAPPING) == 2  # both were at it
    shutil.rmtree(reports)
    assert read(place.home) == {f"cwd/data/{name}": content for name, content in FILES.items()}


# ------------------------------------------------------------------- one source after another


def same_data(data):
    """Whether `data` is what is in FILES, upright."""
    arrays = make_arrays()
    return all(
        (data[split]["images"] == arrays[split, "images"].swapaxes(1, 2)).all()
        and (data[split]["labels"] == arrays[split, "labels"]).all()
        for split in ("train", "test")
    )


def test_chain_own_folder_comes_first(nb, place, official, stand_in, monkeypatch):
    write(place.cache, make_files(make_arrays(seed=4)))
    mine = write(place.home / "mine", FILES)
    before = read(place.home)
    monkeypatch.setattr(nb, "EMNIST_DIR", str(mine))
    with sources(nb, monkeypatch, FILES, {ZIP: make_zip(FILES)}) as (space, nist):
        data = nb.load_emnist()
    assert data["source"] == "your folder (EMNIST_DIR)" and same_data(data)
    assert data["stand_in"] is False and data["notes"] == []
    assert not space.requests and not nist.requests and not stand_in
    assert read(place.home) == before


@pytest.mark.parametrize("files", [FILES, pack(FILES)], ids=["plain", "gz"])
def test_chain_cache_comes_second(nb, place, official, stand_in, monkeypatch, files):
    write(place.cache, files)
    with sources(nb, monkeypatch, FILES, {ZIP: make_zip(FILES)}) as (space, nist):
        data = nb.load_emnist()
    assert data["source"] == "the cache" and same_data(data)
    assert data["train"]["official"] and data["test"]["official"] and data["stand_in"] is False
    assert not space.requests and not nist.requests and not stand_in
    assert read(place.cache) == files


def test_chain_space_comes_third_and_fills_the_cache(nb, place, official, stand_in, monkeypatch):
    with sources(nb, monkeypatch, FILES, {ZIP: make_zip(FILES)}) as (space, nist):
        data = nb.load_emnist()
        assert data["source"] == SPACE and same_data(data)
        assert sorted(space.paths) == sorted(FILES)
        assert data["train"]["official"] and data["test"]["official"] and data["stand_in"] is False
        assert nb.load_emnist()["source"] == "the cache" and len(space.paths) == 5
    assert not nist.requests and not stand_in
    assert read(place.home) == {f"cwd/data/{name}": content for name, content in FILES.items()}


def test_chain_nist_comes_fourth_by_ranges(nb, place, official, stand_in, monkeypatch):
    archive = make_zip(FILES, other_members())
    with sources(nb, monkeypatch, {}, {ZIP: archive}) as (space, nist):
        data = nb.load_emnist()
    assert data["source"] == NIST and same_data(data) and data["stand_in"] is False
    assert data["train"]["official"] and data["test"]["official"]
    assert len(data["notes"]) == 1 and space.url in data["notes"][0] and "404" in data["notes"][0]
    assert read(place.cache) == pack(FILES) and not stand_in
    with zipfile.ZipFile(io.BytesIO(archive)) as contents:
        infos = sorted(contents.infolist(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in infos[1:]] + [contents.start_dir]
    wanted = {f"gzip/{name}" for name in pack(FILES)}
    extents = [(info.header_offset, end) for info, end in zip(infos, ends, strict=True)
               if info.filename in wanted]  # fmt: skip
    assert len(extents) == 5
    for path, text in nist.requests:
        assert path == ZIP and text, "the whole archive was asked for"
        first, last = re.fullmatch(r"bytes=(\d*)-(\d+)", text).groups()
        if first:  # part of a member that is needed
            assert any(a <= int(first) and int(last) < b for a, b in extents), text
        else:  # the end, where the table of contents is
            assert int(last) <= 65536
    needed = sum(end - start for start, end in extents)
    assert needed <= nist.sent[ZIP] + 5 * 65536 and nist.sent[ZIP] <= needed + 5 * 65536


def test_chain_stand_in_comes_last_and_stays_out_of_the_cache(
    nb, place, official, stand_in, monkeypatch
):
    with sources(nb, monkeypatch) as (space, nist):
        data = nb.load_emnist()
    assert data["stand_in"] is True and "stand-in" in data["source"]
    assert not data["train"]["official"] and not same_data(data)
    assert stand_in == [(os.path.join("runs", "stand_in"), nb.SEED)]
    assert [note.split(":")[0] for note in data["notes"]] == [SPACE, NIST]
    assert space.url in data["notes"][0] and nist.url in data["notes"][1]
    assert not place.cache.exists() or not read(place.cache)
    assert set(read(place.home)) == {f"cwd/runs/stand_in/{name}" for name in FILES}
    with sources(nb, monkeypatch, FILES):  # the network is back
        data = nb.load_emnist()
    assert data["source"] == SPACE and data["stand_in"] is False and same_data(data)


def test_nothing_reachable(nb, place, official, stand_in):
    data = nb.load_emnist()
    assert data["stand_in"] is True and len(data["notes"]) == 2
    assert all("refused" in note for note in data["notes"])


def test_stalled_sources_are_given_up(nb, place, official, stand_in, monkeypatch):
    monkeypatch.setattr(nb, "STALL", 1)
    silent = Reply(stall=True)
    with sources(nb, monkeypatch, dict.fromkeys(FILES, silent), {ZIP: silent}):
        data = nb.load_emnist()
    assert (
        data["stand_in"] is True and ["timed out" in note for note in data["notes"]] == [True] * 2
    )


def test_what_came_is_kept_and_only_the_rest_is_fetched(nb, place, official, stand_in, monkeypatch):
    some = {name: FILES[name] for name in (MAPPING, TRAIN_IMAGES, TRAIN_LABELS)}
    bad = {TEST_IMAGES: Reply(FILES[TEST_IMAGES], cut=100)}
    with sources(nb, monkeypatch, {**some, **bad}):
        assert nb.load_emnist()["stand_in"] is True
    assert read(place.cache) == some
    archive = make_zip(FILES, other_members())
    with sources(nb, monkeypatch, {}, {ZIP: archive}) as (space, nist):
        data = nb.load_emnist()
    assert data["source"] == NIST and same_data(data)
    assert space.paths == [TEST_IMAGES]
    packed = {name: content for name, content in pack(FILES).items() if "test" in name}
    assert read(place.cache) == {**some, **packed}
    assert nist.sent[ZIP] < 2 * 65536 + sum(map(len, packed.values())) + 2000


UNOFFICIAL = make_files(make_arrays(seed=6))
BAD_IN_CACHE = {
    "cut": {TRAIN_IMAGES: FILES[TRAIN_IMAGES][:-1]},
    "cut gz": {TRAIN_IMAGES + ".gz": gzip.compress(FILES[TRAIN_IMAGES])[:-9]},
    "page": {TEST_LABELS: HTML_PAGE},
    "empty": {TEST_IMAGES: b""},
    "mapping": {MAPPING: mapping()[:-8]},
    "mapping gz": {MAPPING + ".gz": HTML_PAGE},
}


@pytest.mark.parametrize("fault", BAD_IN_CACHE)
def test_bad_file_in_the_cache_is_fetched_anew(nb, place, official, stand_in, monkeypatch, fault):
    (bad, content), *_ = BAD_IN_CACHE[fault].items()
    name = bad.removesuffix(".gz")
    write(place.cache, {**{k: v for k, v in FILES.items() if k != name}, bad: content})
    with sources(nb, monkeypatch, FILES) as (space, _):
        data = nb.load_emnist()
    assert data["source"] == SPACE and same_data(data)
    assert space.paths == [name]
    assert read(place.home) == {f"cwd/data/{name}": content for name, content in FILES.items()}
    assert len(data["notes"]) == 1 and complaint(
        SimpleNamespace(value=data["notes"][0]), Path("data") / bad
    )


def test_counts_that_differ_in_the_cache(nb, place, stand_in, monkeypatch):
    """A mirror has changed since a part of it was fetched: each file is good, not together."""
    monkeypatch.setattr(nb, "ALLOW_UNOFFICIAL", True)
    old = make_files(make_arrays(train=60))
    write(place.cache, {**FILES, TRAIN_IMAGES: old[TRAIN_IMAGES]})
    with sources(nb, monkeypatch, FILES):
        data = nb.load_emnist()
    assert data["source"] == SPACE and same_data(data)
    assert read(place.cache) == FILES


def test_bad_cache_without_network_keeps_the_good_files(nb, place, official, stand_in):
    write(place.cache, {**FILES, TEST_LABELS: HTML_PAGE})
    data = nb.load_emnist()
    assert data["stand_in"] is True and len(data["notes"]) == 3
    rest = {name: content for name, content in FILES.items() if name != TEST_LABELS}
    assert read(place.cache) == rest


def test_mirror_with_other_files(nb, place, official, stand_in, monkeypatch):
    with sources(nb, monkeypatch, UNOFFICIAL, {ZIP: make_zip(UNOFFICIAL)}):
        data = nb.load_emnist()
        assert data["stand_in"] is True
        assert all("SHA-256" in note for note in data["notes"])
        assert set(read(place.cache)) == {MAPPING}  # which is the same in every split
        monkeypatch.setattr(nb, "ALLOW_UNOFFICIAL", True)
        data = nb.load_emnist()
    assert data["source"] == SPACE and data["stand_in"] is False
    assert not data["train"]["official"] and not data["test"]["official"]
    assert read(place.cache) == UNOFFICIAL


def test_nist_zip_repacked(nb, place, official, stand_in, monkeypatch):
    """Allowed with another archive, whose files are packed in another way."""
    monkeypatch.setattr(nb, "ALLOW_UNOFFICIAL", True)
    with sources(nb, monkeypatch, {}, {ZIP: make_zip(UNOFFICIAL)}):
        data = nb.load_emnist()
    assert data["source"] == NIST and not data["train"]["official"]


def test_space_may_serve_gzipped_files(nb, place, official, monkeypatch):
    packed = {name: gzip.compress(content) for name, content in FILES.items()}
    with sources(nb, monkeypatch, packed):
        data = nb.load_emnist()
    assert data["source"] == SPACE and same_data(data) and data["train"]["official"]


def test_url_without_a_slash(nb, place, official, monkeypatch):
    with sources(nb, monkeypatch, {f"deep/{name}": content for name, content in FILES.items()}):
        monkeypatch.setattr(nb, "DATA_URL", nb.DATA_URL + "deep")
        assert nb.load_emnist()["source"] == SPACE


@pytest.mark.parametrize("fault", ["bad", "lacking", "missing"])
def test_bad_own_folder_stops_the_run(nb, place, official, stand_in, monkeypatch, fault):
    mine = place.home / "mine"
    if fault != "missing":
        write(mine, {**FILES, TEST_LABELS: HTML_PAGE})
    if fault == "lacking":
        (mine / TEST_LABELS).unlink()
    monkeypatch.setattr(nb, "EMNIST_DIR", str(mine))
    before = read(place.home)
    good = sources(nb, monkeypatch, FILES, {ZIP: make_zip(FILES)})
    with good as (space, nist), pytest.raises((ValueError, FileNotFoundError)) as error:
        nb.load_emnist()
    complaint(error, mine if fault == "missing" else mine / TEST_LABELS)
    assert not space.requests and not nist.requests and not stand_in
    assert read(place.home) == before


def test_every_file_has_its_own_name():
    assert len({*NAMES.values(), MAPPING}) == 5
