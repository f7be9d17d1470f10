"""Downloads from servers that misbehave, published files, and the sources of the data in turn."""

import contextlib
import gzip
import re
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import idx_files as made
import pytest
from idx_files import MAPPING, NAMES, complaint, make_files, pack, read, write
from servers import Reply, Server

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES.values()
FILES, OTHERS = make_files(0), make_files(8)  # here the official files and the reconstructed
PACKED, SHIPPED = pack(FILES), pack(OTHERS)
GOOD, PAGE = FILES[TEST_IMAGES], made.HTML_PAGE  # 36,864 bytes
ARCHIVE, MEMBER = made.make_zip(PACKED), PACKED[TEST_IMAGES + ".gz"]
CLOSED = "http://127.0.0.1:9/"  # where nothing listens
HOME, HERE, MODELS = Path(".."), Path(), Path("pretrained")
OFFICIAL, RECONSTRUCTED = Path("data/official"), Path("data/reconstructed")


@pytest.fixture
def serve(nb, tmp_path, monkeypatch):
    """A function that starts a server, to whose URL the constant `name` is set; HOME is empty."""
    made.declare(nb, monkeypatch)
    for folder in (tmp_path / "tmp", tmp_path / "here"):
        folder.mkdir()
        monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    urls = dict.fromkeys(("DATA_URL", "RECONSTRUCTED_URL", "MODELS_URL"), CLOSED)
    changed = {**urls, "NIST_URL": CLOSED + "gzip.zip", "UNREACHABLE": {}, "EMNIST_DIR": None}
    for name, value in changed.items():
        monkeypatch.setattr(nb, name, value)
    started = []

    def start(*arguments, popen=subprocess.Popen, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    def serve(replies, name="MODELS_URL", path=""):
        server = servers.enter_context(Server(replies))
        monkeypatch.setattr(nb, name, server.url + path)
        return server

    monkeypatch.setattr(subprocess, "Popen", start)
    with contextlib.ExitStack() as servers:
        yield serve
    assert all(process.poll() is not None for process in started), "a process is left running"
    assert not list((tmp_path / "tmp").iterdir()), "temporary files are left"


def test_good_download(nb, serve, capsys):
    """It is checked before it reaches its place, and no code in the current folder is run."""
    write(HERE, {"wget.py": b"raise SystemExit('mine')", "random.py": b"1 / 0"})
    content, seen = bytes(range(256)) * 10_000, []
    headers = {"Content-Disposition": 'attachment; filename="../evil"'}
    for name, length in (("a", None), ("b", "none")):
        reply, path = Reply(content, length=length, headers=headers), Path("data/deep") / name
        url = serve({"file": reply}).url + "file"
        nb.fetch(url, path, lambda _, path=path: seen.append(path.exists()))
        assert path.read_bytes() == content
    assert seen == [False, False] and len(read(HOME)) == 4
    assert re.fullmatch(r"(Downloaded ., 2\.6 MB in \d+ s\n){2}", capsys.readouterr().out)


FAULTS = {  # the reply, the kind of error, words of the reason
    "404": (Reply(PAGE, status=404), ConnectionError, "404"),
    "silent": (Reply(stall=True), ConnectionError, "given up with 0 bytes"),
    "drip": (Reply(GOOD, step=1, pause=0.2), ConnectionError, "given up with"),
    "cut half-way": (Reply(GOOD, cut=18432), ConnectionError, "got only 18432 out of"),
    "cut, no length": (Reply(GOOD, cut=18432, length="none"), ValueError, "18432 bytes"),
    "too much": (Reply(bytes(3_000_000), pause=0.05, length="none"), ConnectionError, "given up"),
    "nothing with 200": (Reply(b""), ValueError, "b''"),
    "other file": (Reply(OTHERS[TEST_IMAGES]), ValueError, "another SHA-256"),
    "zip, no ranges": (Reply(ARCHIVE, ranges=False), ConnectionError, "range"),
    "zip, no such member": (Reply(made.make_zip({})), ConnectionError, "no item named"),
    "zip, broken": (Reply(ARCHIVE.replace(MEMBER[:99], bytes(99))), ConnectionError, "CRC"),
    "zip, drip": (Reply(ARCHIVE, step=1, pause=0.2), ConnectionError, "given up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_download(nb, serve, monkeypatch, fault):
    """The error names the URL and the reason; what stood in the file's place stays."""
    reply, kind, reason = FAULTS[fault]
    monkeypatch.setattr(nb, "STALL", 4 if reply.stall or reply.pause > 0.1 else 30)
    monkeypatch.setattr(nb, "MOST_BYTES", 500_000)
    server, begin = serve({"file": reply}), time.monotonic()
    url, member = server.url + "file", f"gzip/{TEST_IMAGES}.gz" if "zip" in fault else None
    old = read(write(HERE, {"file": b"old"}))
    with pytest.raises(kind) as error:
        nb.fetch(url, "file", lambda path: nb.check_official(path, ("test", "images")), member)
    assert time.monotonic() - begin < 60  # of the 600 s that a download may take
    assert type(error.value) is kind and url in str(error.value) and reason in str(error.value)
    if kind is ValueError:
        assert tempfile.gettempdir() not in complaint(error, url + ": expected")
    assert read(HERE) == old and server.sent["file"] < 2_000_000


def test_server_out_of_reach_is_left_alone(nb, serve):
    for seconds, reason in ((0, "refused"), (0, "did not answer before"), (301, "refused")):
        for place in nb.UNREACHABLE:
            nb.UNREACHABLE[place] -= seconds  # as if it had been so long ago
        with pytest.raises(ConnectionError, match=f"{CLOSED}file.*{reason}"):
            nb.fetch(CLOSED + "file", "file", nb.read_bytes)
    with pytest.raises(ConnectionError, match=r"mirror/file.*unknown url type"):
        nb.fetch("mirror/file", "file", nb.read_bytes)
    url = serve({"cut": Reply(GOOD, cut=9), "file": GOOD}).url  # this one answers
    for name in ("missing", "cut"):
        with pytest.raises(ConnectionError, match=r"404|got only"):
            nb.fetch(url + name, "file", nb.read_bytes)
    nb.fetch(url + "file", "file", nb.read_bytes)
    assert read(HOME) == {"here/file": GOOD}


@pytest.fixture
def models(nb, monkeypatch):
    """Published files, as a server has them; the list, which names two evil ones, is pinned."""
    files = {"results.json": b"{}", "tuning/trial.json": b"[1]", "custom.weights.h5": b"w" * 9999}
    listed = {**files, "../evil": b"evil", "/evil": b"evil"}.items()
    sums = "".join(f"{nb.sha256(content)}  {name}\n" for name, content in listed).encode()
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.sha256(sums))
    return {**files, "SHA256SUMS": sums}


def test_published_files_are_fetched_once(nb, serve, models):
    server = serve({f"deep/{name}": content for name, content in models.items()}, path="deep")
    for name in [*models, *models]:
        assert nb.published(name) == MODELS / name
    assert set(nb.published_sums()) == {*models, "../evil", "/evil"} - {"SHA256SUMS"}
    write(HERE, {"evil": b"evil"})
    for name in ("../evil", "/evil", "tuning/../../evil", "other.json"):
        with pytest.raises(FileNotFoundError, match=f"{name}: expected .* none so named"):
            nb.published(name)
    assert len(server.paths) == 4 and read(MODELS) == models


@pytest.mark.parametrize("name", ["SHA256SUMS", "results.json"])
def test_wrong_published_file_is_neither_opened_nor_replaced(nb, serve, models, name):
    write(MODELS, {"SHA256SUMS": models["SHA256SUMS"], name: b"mine"})
    server, before = serve(models), read(HOME)
    with pytest.raises(ValueError, match=f"{MODELS / name}: expected .*{nb.sha256(b'mine')}"):
        nb.published("results.json")
    assert read(HOME) == before and not server.paths


@pytest.mark.parametrize("name", ["SHA256SUMS", "results.json"])
@pytest.mark.parametrize("reply", [b"newer", Reply(status=404), Reply(b"{}", cut=1)])
def test_published_file_cannot_be_had(nb, serve, models, name, reply):
    wrong, server = isinstance(reply, bytes), serve({**models, name: reply})
    with pytest.raises(ValueError if wrong else ConnectionError, match=server.url + name) as error:
        nb.published("results.json")
    newer = "there are newer: see https://github.com/am2fq/csci7850-emnist"
    assert (newer in str(error.value)) == (wrong and name == "SHA256SUMS")
    assert name not in read(MODELS)


def check_load(nb, seed):
    """Load; check that the data are those of `seed`, upright, under the right name."""
    names = {0: "official EMNIST Balanced", 8: "the reconstructed split"}
    data, arrays = nb.load_emnist(), made.make_arrays(seed)
    assert data["name"] == names.get(seed, "other data in EMNIST's layout")
    for split in ("train", "test"):
        assert (data[split][0] == arrays[split, "images"].swapaxes(1, 2)).all()
        assert (data[split][1] == arrays[split, "labels"]).all()
        assert data[split][0].flags.c_contiguous


@pytest.mark.parametrize("style", [dict, pack])
def test_files_at_hand_need_no_server_and_stay(nb, serve, monkeypatch, capsys, style):
    write(OFFICIAL, style(FILES))
    write(RECONSTRUCTED, SHIPPED)
    mine = write(HOME / "mine", make_files(4))
    space, before = serve(FILES, "DATA_URL"), read(HOME)
    check_load(nb, 0)
    assert "official EMNIST" in (said := capsys.readouterr().out) and "not the official" not in said
    monkeypatch.setattr(nb, "EMNIST_DIR", str(mine))
    check_load(nb, 4)
    assert read(HOME) == before and not space.paths


@pytest.mark.parametrize("source", ["space", "gzipped in the space", "NIST"])
def test_official_files_come_before_the_reconstructed(nb, serve, source):
    files = FILES if source == "space" else dict(zip(FILES, PACKED.values(), strict=True))
    write(RECONSTRUCTED, SHIPPED)
    space = serve({} if source == "NIST" else files, "DATA_URL")
    nist = serve({"gzip.zip": ARCHIVE}, "NIST_URL", "gzip.zip")
    for _ in range(2):
        check_load(nb, 0)
        assert sorted(space.paths) == ([MAPPING] if source == "NIST" else sorted(files))
    assert read(OFFICIAL) == files and bool(nist.paths) == (source == "NIST")
    assert all(nist.ranges), "the whole archive was asked for"
    assert nist.sent["gzip.zip"] < sum(map(len, files.values())) + 350_000 < len(ARCHIVE) / 1.5


@pytest.mark.parametrize("fault", ["no server", "other files", "HTML", "cut", "silent"])
def test_reconstructed_split_where_the_official_files_cannot_be_had(nb, serve, capsys, fault):
    others, page, silence = make_files(6), dict.fromkeys(FILES, PAGE), Reply(stall=True)
    replies = {"other files": others, "HTML": page, "silent": dict.fromkeys(FILES, silence)}
    replies["cut"] = {**FILES, TEST_LABELS: Reply(FILES[TEST_LABELS], cut=9)}
    if fault in replies:
        archive = silence if fault == "silent" else made.make_zip(pack(others))
        serve(replies[fault], "DATA_URL")
        serve({"gzip.zip": archive}, "NIST_URL", "gzip.zip")
    write(RECONSTRUCTED, SHIPPED)
    begin = time.monotonic()
    check_load(nb, 8)
    assert time.monotonic() - begin < 30  # a silent server costs 7 s
    assert read(RECONSTRUCTED) == SHIPPED and read(OFFICIAL).items() <= FILES.items()
    said = capsys.readouterr().out
    assert "the reconstructed split" in said and "not the official" in said
    assert not re.search("error|fail|could not", said, re.I)


def test_reconstructed_split_from_the_repository_alone(nb, serve):
    name = TEST_LABELS + ".gz"
    for reply in (gzip.compress(OTHERS[TEST_LABELS], 1), Reply(status=404)):
        server = serve({**SHIPPED, name: reply}, "RECONSTRUCTED_URL")
        with pytest.raises(FileNotFoundError) as error:
            nb.load_emnist()
        assert server.url + name in complaint(error, "EMNIST: expected data; found none")
        assert name not in read(RECONSTRUCTED)
    server = serve(SHIPPED, "RECONSTRUCTED_URL")
    for _ in range(2):
        check_load(nb, 8)
    assert server.paths == [name] and read(RECONSTRUCTED) == SHIPPED


def test_no_data_at_all(nb, serve):
    with pytest.raises(FileNotFoundError) as error:
        nb.load_emnist()
    text = complaint(error, "EMNIST: expected data; found none. Connect to the internet")
    assert text.count("\n- ") == 4 and text.count(CLOSED) == 3  # what was tried, a line each
    assert "EMNIST_DIR" in text and read(HOME) == {}
    before = read(write(RECONSTRUCTED, pack(make_files(5))))  # changed by somebody
    with pytest.raises(FileNotFoundError, match="expected reconstructed files; found other data"):
        nb.load_emnist()
    assert read(RECONSTRUCTED) == before


@pytest.mark.parametrize("bad", [TRAIN_IMAGES, TRAIN_IMAGES + ".gz", TEST_IMAGES, MAPPING])
def test_bad_official_file_is_not_used_and_fetched_anew(nb, serve, bad):
    """Cut off, or, as the test images, another one."""
    name, content = bad.removesuffix(".gz"), {**PACKED, **FILES}[bad][:-9]
    good = {key: FILES[key] for key in FILES if key != name}
    write(OFFICIAL, {**good, bad: OTHERS[bad] if bad == TEST_IMAGES else content})
    write(RECONSTRUCTED, SHIPPED)
    check_load(nb, 8)  # without a network
    space = serve(FILES, "DATA_URL")
    check_load(nb, 0)
    assert set(space.paths) == {MAPPING, name} and len(space.paths) <= 2
    assert {**read(OFFICIAL), bad: b""} == {**FILES, bad: b""}


def test_two_loads_at_once_into_a_folder_with_a_bad_file(nb, serve):
    write(OFFICIAL, {TRAIN_LABELS: FILES[TRAIN_LABELS][:-1]})
    space = serve({**FILES, MAPPING: Reply(FILES[MAPPING], gate=threading.Barrier(2))}, "DATA_URL")
    list(ThreadPoolExecutor(2).map(check_load, [nb, nb], [0, 0]))
    assert space.paths.count(MAPPING) == 2 and read(OFFICIAL) == FILES
