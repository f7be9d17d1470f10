"""Downloads from servers that misbehave, published files, and the sources of the data in turn."""

import gzip
import re
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import idx_files as made
import pytest
from idx_files import MAPPING, NAMES, complaint, make_files, pack, read, sha256, write
from servers import Reply, Server

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES.values()
FILES, OTHER = make_files(), make_files(seed=8)  # here the official files and the reconstructed
GOOD, PAGE = FILES[TEST_IMAGES], made.HTML_PAGE  # 36,864 bytes
NOISE = {
    f"gzip/emnist-{name}.gz": gzip.compress(bytes(range(256)) * 800, 0)
    for name in ("a", "bb", "c", "d")
}
CLOSED = "http://127.0.0.1:9/"  # where nothing listens
ZIP, ARCHIVE = "gzip.zip", made.make_zip(pack(FILES), NOISE)
MEMBER = pack(FILES)[TEST_LABELS + ".gz"]


@pytest.fixture
def place(nb, tmp_path, monkeypatch):
    """A home with the current folder `cwd`; no server is within reach until `serve` starts one."""
    place = SimpleNamespace(home=tmp_path, cwd=tmp_path / "cwd", started=[], servers=[])
    place.official, place.other = (place.cwd / "data" / n for n in ("official", "reconstructed"))
    place.packed = made.declare_reconstructed(nb, monkeypatch, OTHER)
    made.declare_official(nb, monkeypatch, FILES)
    for folder in (place.cwd, tmp_path / "tmp"):
        folder.mkdir()
    monkeypatch.chdir(place.cwd)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            place.started.append(self)

    def serve(name, replies):
        place.servers.append(Server(replies).__enter__())
        url = place.servers[-1].url
        monkeypatch.setattr(nb, name, url + ZIP if name == "NIST_URL" else url, raising=False)
        return place.servers[-1]

    place.serve = serve
    monkeypatch.setattr(subprocess, "Popen", Popen)
    for name in ("DATA_URL", "RECONSTRUCTED_URL", "MODELS_URL", "NIST_URL"):
        monkeypatch.setattr(nb, name, CLOSED + ZIP if name == "NIST_URL" else CLOSED)
    monkeypatch.setattr(nb, "UNREACHABLE", {})
    monkeypatch.setattr(nb, "EMNIST_DIR", None)
    yield place
    for server in place.servers:
        server.__exit__()
    assert all(process.poll() is not None for process in place.started), "a process is left running"
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are left"


def test_good_download(nb, place, capsys):
    write(place.cwd, {"wget.py": b"raise SystemExit('mine')", "random.py": b"1 / 0"})
    content, seen = bytes(range(256)) * 10_000, []
    headers = {"Content-Disposition": 'attachment; filename="../evil"'}
    for name, length in (("a", None), ("b", "none")):
        reply, path = Reply(content, length=length, headers=headers), Path("data/deep") / name
        url = place.serve("URL", {"file": reply}).url + "file"
        nb.fetch(url, path, sha256(content), check=lambda _, path=path: seen.append(path.exists()))
        assert path.read_bytes() == content
    assert seen == [False, False] and len(read(place.home)) == 4
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and re.fullmatch(r"Downloaded a, 2\.6 MB in \d+ s", lines[0])


FAULTS = {  # the reply, the kind of error, words of the reason
    "404": (Reply(PAGE, status=404), ConnectionError, "404"),
    "silent": (Reply(stall=True), ConnectionError, "given up with 0 bytes"),
    "silent half-way": (Reply(GOOD, step=18432, pause=60), ConnectionError, "given up with"),
    "drip": (Reply(GOOD, step=1, pause=0.2), ConnectionError, "given up with"),
    "cut half-way": (Reply(GOOD, cut=18432), ConnectionError, "got only 18432 out of"),
    "cut, no length": (Reply(GOOD, cut=18432, length="none"), ValueError, "18432 bytes"),
    "length too large": (Reply(GOOD, length=len(GOOD) + 9), ConnectionError, "got only 36864"),
    "length too small": (Reply(GOOD, length=len(GOOD) - 9), ValueError, "36855 bytes"),
    "too much": (Reply(bytes(3_000_000), pause=0.05, length="none"), ConnectionError, "given up"),
    "HTML with 200": (Reply(PAGE), ValueError, "an HTML page"),
    "nothing with 200": (Reply(b""), ValueError, "b''"),
    "other file": (Reply(OTHER[TEST_IMAGES]), ValueError, "another SHA-256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_download(nb, place, monkeypatch, fault):
    reply, kind, reason = FAULTS[fault]
    monkeypatch.setattr(nb, "STALL", 4 if reply.stall or reply.pause > 0.1 else 30)
    monkeypatch.setattr(nb, "MOST_BYTES", 500_000)
    url, begin = place.serve("URL", {"file": reply}).url + "file", time.monotonic()
    old = read(write(place.cwd, {"file": b"old"}))
    with pytest.raises(kind) as error:
        nb.fetch(url, "file", check=lambda path: nb.check_official(path, ("test", "images")))
    assert time.monotonic() - begin < 60  # of the 600 s that a download may take
    assert type(error.value) is kind and url in str(error.value) and reason in str(error.value)
    if kind is ValueError:
        assert str(place.home) not in complaint(error, url + ": expected")
    assert read(place.cwd) == old and place.servers[0].sent["file"] < 2_000_000
    with pytest.raises((ValueError, ConnectionError)) as error:
        nb.fetch(url, "file", "0" * 64, seconds=1)
    assert url in str(error.value) and read(place.cwd) == old


def test_server_out_of_reach_is_left_alone(nb, place):
    for reason in ("refused", "did not answer before"):
        with pytest.raises(ConnectionError, match=reason) as error:
            nb.fetch(CLOSED + "file", "file")
        assert CLOSED + "file" in str(error.value) and len(place.started) == 1
    nb.UNREACHABLE[CLOSED.split("/")[2]] -= 301  # five minutes later
    with pytest.raises(ConnectionError, match="refused"):
        nb.fetch(CLOSED + "file", "file")
    url = place.serve("URL", {"cut": Reply(GOOD, cut=9), "file": GOOD}).url  # this one answers
    for name in ("missing", "cut"):
        with pytest.raises(ConnectionError, match=r"404|got only"):
            nb.fetch(url + name, "file")
    nb.fetch(url + "file", "file")
    assert read(place.home) == {"cwd/file": GOOD}


SPOT = ARCHIVE.index(MEMBER) + 12
ZIPS = {  # the reply, words of the reason
    "good": (ARCHIVE, None),
    "no ranges": (Reply(ARCHIVE, ranges=False), "range"),
    "no such member": (made.make_zip({}, NOISE), "no item named"),
    "broken": (ARCHIVE[:SPOT] + bytes([ARCHIVE[SPOT] ^ 1]) + ARCHIVE[SPOT + 1 :], "CRC"),
    "silent": (Reply(stall=True), "given up"),
    "drip": (Reply(ARCHIVE, step=1, pause=0.2), "given up"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_member_of_a_zip(nb, place, monkeypatch, case):
    reply, reason = ZIPS[case]
    monkeypatch.setattr(nb, "STALL", 5 if case in ("silent", "drip") else 30)
    server, member = place.serve("NIST_URL", {ZIP: reply}), f"gzip/{TEST_LABELS}.gz"
    if reason is None:
        nb.fetch(nb.NIST_URL, "data/file", sha256(MEMBER), member=member)
        assert read(place.home) == {"cwd/data/file": MEMBER}
        assert server.sent[ZIP] < 65536 + len(MEMBER) + 1000 < len(ARCHIVE) / 5
    else:
        with pytest.raises(ConnectionError) as error:
            nb.fetch(nb.NIST_URL, "data/file", member=member)
        assert nb.NIST_URL in str(error.value) and reason in str(error.value)
        assert read(place.home) == {}


@pytest.fixture
def models(nb, monkeypatch):
    """Published files, as a server has them; the list, which names two evil ones, is pinned."""
    files = {"results.json": b"{}", "tuning/trial.json": b"[1]", "custom.weights.h5": b"w" * 9999}
    listed = {**files, "../evil": b"evil", "/evil": b"evil"}.items()
    sums = "".join(f"{sha256(content)}  {name}\n" for name, content in listed).encode()
    monkeypatch.setattr(nb, "MODELS_SHA256", sha256(sums))
    return {**files, "SHA256SUMS": sums}


def test_published_files_are_fetched_once(nb, place, models, monkeypatch):
    server = place.serve("URL", {f"deep/{name}": content for name, content in models.items()})
    monkeypatch.setattr(nb, "MODELS_URL", server.url + "deep")  # with or without a slash
    for name in [*models, *models]:
        assert nb.published(name) == Path("pretrained") / name
    assert len(server.paths) == 4 and read(place.cwd / "pretrained") == models
    assert set(nb.published_sums()) == {*models, "../evil", "/evil"} - {"SHA256SUMS"}
    write(place.cwd, {"evil": b"evil"})
    for name in ("../evil", "/evil", "tuning/../../evil", "other.json"):
        with pytest.raises(FileNotFoundError) as error:
            nb.published(name)
        assert name in complaint(error, "") and len(server.paths) == 4


@pytest.mark.parametrize("name", ["SHA256SUMS", "results.json"])
def test_wrong_published_file_is_neither_opened_nor_replaced(nb, place, models, name):
    write(place.cwd / "pretrained", {"SHA256SUMS": models["SHA256SUMS"], name: b"mine"})
    server, before = place.serve("MODELS_URL", models), read(place.home)
    with pytest.raises(ValueError) as error:
        nb.published("results.json")
    assert sha256(b"mine") in complaint(error, Path("pretrained") / name)
    assert read(place.home) == before and not server.requests


@pytest.mark.parametrize("name", ["SHA256SUMS", "results.json"])
@pytest.mark.parametrize("reply", [b"newer", Reply(status=404), Reply(b"{}", cut=1)])
def test_published_file_cannot_be_had(nb, place, models, name, reply):
    wrong, server = isinstance(reply, bytes), place.serve("MODELS_URL", {**models, name: reply})
    with pytest.raises(ValueError if wrong else ConnectionError) as error:
        nb.published("results.json")
    text = str(error.value)
    assert server.url + name in text and name not in read(place.cwd / "pretrained")
    newer = "Newer models were published" in text and "github.com/am2fq/csci7850-emnist" in text
    assert newer == (wrong and name == "SHA256SUMS")


def check_load(nb, seed):
    """Load; check that the data are `make_files(seed=seed)`, upright, under the right name."""
    names = {0: "official EMNIST Balanced", 8: "the reconstructed split"}
    data, arrays = nb.load_emnist(), made.make_arrays(seed=seed)
    assert data["name"] == names.get(seed, "other data in EMNIST's layout")
    for split in ("train", "test"):
        assert (data[split][0] == arrays[split, "images"].swapaxes(1, 2)).all()
        assert (data[split][1] == arrays[split, "labels"]).all()


@pytest.mark.parametrize("style", [dict, pack])
def test_files_at_hand_need_no_server_and_stay(nb, place, monkeypatch, capsys, style):
    write(place.official, style(FILES))
    write(place.other, place.packed)
    mine = write(place.home / "mine", make_files(seed=4))
    space, before = place.serve("DATA_URL", FILES), read(place.home)
    check_load(nb, 0)
    assert "official EMNIST" in (said := capsys.readouterr().out) and "not the official" not in said
    monkeypatch.setattr(nb, "EMNIST_DIR", str(mine))
    check_load(nb, 4)
    assert read(place.home) == before and not space.requests


@pytest.mark.parametrize("source", ["space", "gzipped in the space", "NIST"])
def test_official_files_come_before_the_reconstructed(nb, place, source):
    packed = {name: pack(FILES).get(f"{name}.gz", content) for name, content in FILES.items()}
    files = FILES if source == "space" else packed
    write(place.other, place.packed)
    space = place.serve("DATA_URL", {} if source == "NIST" else files)
    nist = place.serve("NIST_URL", {ZIP: ARCHIVE})
    for _ in range(2):
        check_load(nb, 0)
        assert sorted(space.paths) == ([MAPPING] if source == "NIST" else sorted(files))
    assert read(place.official) == files and bool(nist.requests) == (source == "NIST")
    assert all(wanted for _, wanted in nist.requests), "the whole archive was asked for"
    assert nist.sent[ZIP] < sum(map(len, files.values())) + 5 * 70_000 < len(ARCHIVE) / 1.5


@pytest.mark.parametrize("fault", ["none", "other files", "HTML", "cut", "silent"])
def test_reconstructed_split_where_the_official_files_cannot_be_had(nb, place, capsys, fault):
    write(place.other, place.packed)
    others = make_files(seed=6)
    replies = {
        "other files": others,
        "HTML": dict.fromkeys(FILES, PAGE),
        "cut": {**FILES, TEST_LABELS: Reply(FILES[TEST_LABELS], cut=9)},
        "silent": dict.fromkeys(FILES, Reply(stall=True)),
    }
    if fault != "none":
        place.serve("DATA_URL", replies[fault])
        archive = made.make_zip(pack(others), NOISE)
        place.serve("NIST_URL", {ZIP: Reply(stall=True) if fault == "silent" else archive})
    begin = time.monotonic()
    check_load(nb, 8)
    assert time.monotonic() - begin < 30  # a silent server costs 7 s
    assert read(place.other) == place.packed
    assert all(content == FILES[name] for name, content in read(place.official).items())
    said = capsys.readouterr().out
    assert "the reconstructed split" in said and "not the official" in said
    assert not re.search("error|fail|could not", said, re.I)


def test_reconstructed_split_from_the_repository_alone(nb, place):
    name = TEST_LABELS + ".gz"
    for reply in (gzip.compress(OTHER[TEST_LABELS], 1), Reply(status=404)):
        server = place.serve("RECONSTRUCTED_URL", {**place.packed, name: reply})
        with pytest.raises(FileNotFoundError) as error:
            nb.load_emnist()
        assert server.url + name in complaint(error, "EMNIST: expected data; found none")
        assert name not in read(place.other)
    server = place.serve("RECONSTRUCTED_URL", place.packed)
    for _ in range(2):
        check_load(nb, 8)
    assert server.paths == [name] and read(place.other) == place.packed


def test_no_data_at_all(nb, place):
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        nb.load_emnist()
    text = complaint(error, "EMNIST: expected data; found none. Connect to the internet")
    assert text.count("\n- ") == 4 and text.count(CLOSED) == 3  # what was tried, a line each
    assert time.monotonic() - begin < 60 and "EMNIST_DIR" in text and read(place.home) == {}
    before = read(write(place.other, pack(make_files(seed=5))))  # changed by somebody
    with pytest.raises(FileNotFoundError, match="expected reconstructed files; found other data"):
        nb.load_emnist()
    assert read(place.other) == before


@pytest.mark.parametrize(
    ("bad", "content"),
    [
        (TRAIN_IMAGES, FILES[TRAIN_IMAGES][:-1]),
        (TRAIN_IMAGES + ".gz", gzip.compress(FILES[TRAIN_IMAGES])[:-9]),
        (TEST_IMAGES, OTHER[TEST_IMAGES]),
        (MAPPING, made.mapping()[:-8]),
    ],
)
def test_bad_official_file_is_not_used_and_fetched_anew(nb, place, bad, content):
    name = bad.removesuffix(".gz")
    write(place.official, FILES)
    (place.official / name).unlink()
    write(place.official, {bad: content})
    write(place.other, place.packed)
    check_load(nb, 8)  # without a network
    space = place.serve("DATA_URL", FILES)
    check_load(nb, 0)
    assert set(space.paths) == {MAPPING, name} and len(space.paths) <= 2
    assert {**read(place.official), bad: b""} == {**FILES, bad: b""}


def test_two_loads_at_once_into_a_folder_with_a_bad_file(nb, place):
    write(place.official, {TRAIN_LABELS: FILES[TRAIN_LABELS][:-1]})
    together = Reply(FILES[MAPPING], gate=threading.Barrier(2))
    space = place.serve("DATA_URL", {**FILES, MAPPING: together})
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check_load, [nb, nb], [0, 0]))
    assert space.paths.count(MAPPING) == 2 and read(place.official) == FILES
