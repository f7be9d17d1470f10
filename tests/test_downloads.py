"""Downloads from servers that misbehave, and published files that are verified."""

import contextlib
import multiprocessing
import os
import re
import socket
import time
from hashlib import sha256
from pathlib import Path

import idx_files as made
import pytest
from idx_files import NAMES, read, write
from servers import Reply, Server

FILES = made.make_files()
PACKED = made.pack(FILES)
ARCHIVE = made.make_zip(PACKED)
GOOD = FILES[NAMES["test-images"]]  # 36,864 bytes
set_timeout = socket.setdefaulttimeout


@pytest.fixture
def serve(nb, tmp_path, monkeypatch):
    """Starts a server of replies; half a second of silence ends a download."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda _: set_timeout(0.5))
    with contextlib.ExitStack() as servers:
        yield lambda replies: servers.enter_context(Server(replies))
    set_timeout(None)


ENCODED = ["my%20data/a", "na%C3%AFve", "50%25", "a%2Bb"]


@pytest.mark.parametrize("length", [None, -1])
@pytest.mark.parametrize("path", ["file", *ENCODED])
def test_good_download(nb, serve, capsys, path, length):
    """It asks for the URL as given and says so; the file is kept as it came."""
    server = serve({path: Reply(GOOD, length=length)})
    nb.fetch(f"{server.url}/{path}", "a/b/file", nb.sha256(GOOD))
    assert server.paths == [path]
    said = f"Downloading a/b/file from {server.url}/{path}\n"
    assert capsys.readouterr().out == said
    assert read(Path()) == {"a/b/file": GOOD}


BAD_REPLIES = {  # the reply, the kind of error, words of the reason
    "404": (Reply(GOOD, status=404), ConnectionError, "404"),
    "another file": (Reply(GOOD[::-1]), ValueError, "36,864 bytes"),
    "HTML page": (Reply(made.HTML_PAGE), ValueError, "64 bytes"),
    "cut": (Reply(GOOD, length=50_000), ConnectionError, "36864 out of 50000"),
    "cut, no length": (Reply(GOOD[:-9], length=-1), ValueError, "36,855 bytes"),
    "silent": (Reply(GOOD, stall_at=0), ConnectionError, "timed out"),
    "silent later": (Reply(GOOD, step=9, stall_at=9000), ConnectionError, "timed out"),
}


@pytest.mark.parametrize("fault", BAD_REPLIES)
def test_bad_download(nb, serve, fault):
    """The error names the URL and the reason; nothing is left of the download."""
    reply, kind, reason = BAD_REPLIES[fault]
    url = serve({"file": reply}).url + "/file"
    with pytest.raises(kind, match=f"^{re.escape(url)}: .*{reason}"):
        nb.fetch(url, "data/file", nb.sha256(GOOD))
    assert [*Path("data").iterdir()] == []


def test_a_file_that_is_there_is_verified(nb, serve):
    """It is neither asked for nor replaced."""
    url = serve({"file": GOOD}).url + "/file"
    write(Path(), {"data/file": b"old"})
    nb.fetch(url, "data/file", nb.sha256(b"old"))
    with pytest.raises(ValueError, match=r"^data/file: expected SHA.*\(3 bytes\)"):
        nb.fetch(url, "data/file", nb.sha256(GOOD))
    assert read(Path()) == {"data/file": b"old"}


def test_no_server(nb, serve, monkeypatch):
    with socket.socket() as unused:  # refuses connections
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(nb, "REPOSITORY", closed)
        found = f"^{re.escape(closed)}/data/SHA256SUMS: could not be"
        with pytest.raises(ConnectionError, match=found):
            nb.fetch_split("official")
        for url in (f"{closed}/file", "mirror/file", "http://host.invalid/file"):
            found = f"^{re.escape(url)}: could not be"
            with pytest.raises(ConnectionError, match=found):
                nb.fetch(url, "file", nb.sha256(GOOD))
    assert read(Path()) == {}


def test_slow_line_goes_on(nb, serve):
    """Twice as long as a silence may last."""
    server = serve({"file": Reply(GOOD, step=4000, pause=0.1)})
    start = time.monotonic()
    nb.fetch(f"{server.url}/file", "file", nb.sha256(GOOD))
    assert time.monotonic() - start > 0.95 and read(Path()) == {"file": GOOD}


def test_mirror_in_a_folder(nb, serve):
    write(Path("my mirror"), {"file": GOOD})
    nb.fetch(Path("my mirror/file").resolve().as_uri(), "file", nb.sha256(GOOD))
    assert Path("file").read_bytes() == GOOD


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
def test_killed_download_leaves_no_half_file(nb, serve):
    """Neither at its place nor where data are looked for, and it can be had again."""
    name = NAMES["test-images"]
    server = serve({name: Reply(GOOD, step=9000, stall_at=18_000), "whole": GOOD})
    download = (f"{server.url}/{name}", name, nb.sha256(GOOD))
    child = multiprocessing.get_context("fork").Process(target=nb.fetch, args=download)
    child.start()
    while server.sent < 18_000 and child.is_alive():
        time.sleep(0.01)
    child.kill()
    child.join()
    assert not Path(name).exists()
    nb.fetch(f"{server.url}/whole", name, nb.sha256(GOOD))
    assert Path(name).read_bytes() == GOOD
    assert nb.find_file(Path(), name) == Path(name)


FOUR = {f"{name}.gz": PACKED[f"{name}.gz"] for name in NAMES.values()}
LINES = "".join(f"{sha256(FOUR[name]).hexdigest()}  SPLIT/{name}\n" for name in FOUR)
SUMS = LINES.replace("SPLIT", "official") + LINES.replace("SPLIT", "reconstructed")


@pytest.fixture
def split(nb, serve, monkeypatch):
    """A server of the reconstructed split, the list of both, and NIST's zip file."""
    replies = {f"data/reconstructed/{name}": PACKED[name] for name in PACKED}
    server = serve({**replies, "data/SHA256SUMS": SUMS.encode(), "gzip.zip": ARCHIVE})
    monkeypatch.setattr(nb, "REPOSITORY", server.url)
    monkeypatch.setattr(nb, "NIST_URL", f"{server.url}/gzip.zip")
    monkeypatch.setattr(nb, "DATA_SHA256", nb.sha256(SUMS.encode()))
    return server


def test_reconstructed_split_is_fetched(nb, split):
    """What is there already is not fetched again, but verified."""
    folder = Path("data/reconstructed")
    nb.fetch_split("reconstructed")
    assert read(folder) == FOUR and len(split.paths) == 1 + 4
    nb.read_emnist(folder)
    (folder / (NAMES["test-labels"] + ".gz")).unlink()
    nb.fetch_split("reconstructed")
    assert read(folder) == FOUR and len(split.paths) == 1 + 5
    name = NAMES["train-labels"] + ".gz"
    write(folder, {name: b"mine"})
    with pytest.raises(ValueError, match=rf"^data.reconstructed.{name}: expected SHA"):
        nb.fetch_split("reconstructed")
    assert (folder / name).read_bytes() == b"mine"


def test_official_files_are_fetched(nb, split):
    """Only the four files are read out of the large zip file, and only once."""
    nb.fetch_split("official")
    assert read(Path("data/official")) == FOUR
    nb.read_emnist(Path("data/official"))
    sent = split.sent
    nb.fetch_split("official")
    assert split.sent == sent < len(ARCHIVE) / 2


FIRST = PACKED[NAMES["train-images"] + ".gz"]
BAD_ARCHIVES = {
    "404": (Reply(ARCHIVE, status=404), ConnectionError, "404"),
    "no ranges": (Reply(ARCHIVE, ranges=False), ConnectionError, "range"),
    "no such files": (made.make_zip({}), ConnectionError, "no item named"),
    "HTML page": (made.HTML_PAGE, ConnectionError, "could not be downloaded"),
    "damaged": (ARCHIVE.replace(FIRST[:99], bytes(99)), ConnectionError, "CRC"),
    "other": (made.make_zip(made.pack(made.make_files(1))), ValueError, "SHA-256"),
}


@pytest.mark.parametrize("fault", BAD_ARCHIVES)
def test_bad_archive(nb, split, fault):
    split.replies["gzip.zip"], kind, reason = BAD_ARCHIVES[fault]
    with pytest.raises(kind, match=f"^{re.escape(nb.NIST_URL)}: .*{reason}"):
        nb.fetch_split("official")
    assert read(Path()) == {"data/SHA256SUMS": SUMS.encode()}


@pytest.fixture
def publish(nb, serve, monkeypatch):
    """A server of published files whose list is pinned; none of them is there yet."""
    files = {"results.json": b'{"a": 1}\n', "weights/x.h5": b"weights"}
    lines = [f"{nb.sha256(files[name])}  {name}\n" for name in files]
    files["SHA256SUMS"] = "".join(lines).encode()
    server = serve({f"pretrained/{name}": files[name] for name in files})
    monkeypatch.setattr(nb, "PROFILE", "pretrained")
    monkeypatch.setattr(nb, "PUBLISHED", Path("pretrained"))
    monkeypatch.setattr(nb, "REPOSITORY", server.url)
    monkeypatch.setattr(nb, "MODELS_SHA256", nb.sha256(files["SHA256SUMS"]))
    return server


def test_published_files_are_fetched_and_verified(nb, publish):
    assert nb.read_record("results.json") == {"a": 1}
    path = nb.published("weights/x.h5")
    assert path == Path("pretrained/weights/x.h5") and path.read_bytes() == b"weights"
    asked = [f"pretrained/{name}" for name in ("SHA256SUMS", "results.json")]
    assert publish.paths == [*asked, "pretrained/weights/x.h5"]  # each of them once


def test_what_is_not_published(nb, publish, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"other\.json: expected"):
        nb.published("other.json")
    for profile in ("pretrained", "full"):
        monkeypatch.setattr(nb, "PROFILE", profile)
        assert nb.read_record("other.json") == {}
    assert publish.paths == ["pretrained/SHA256SUMS"]
    monkeypatch.setattr(nb, "PROFILE", "pretrained")
    del publish.replies["pretrained/results.json"]  # listed, and not there
    with pytest.raises(ConnectionError, match="404"):
        nb.read_record("results.json")


@pytest.mark.parametrize("name", ["SHA256SUMS", "results.json"])
def test_tampered_file_is_named(nb, publish, name):
    """Whether it is there already, or comes so from the server; it is left as it is."""
    digest = nb.sha256(publish.replies[f"pretrained/{name}"])
    write(Path("pretrained"), {name: b'{"a": 2}'})
    found = f"{name}: expected SHA-256 {digest}; found"
    with pytest.raises(ValueError, match=f"^pretrained.{found}"):
        nb.read_record("results.json")
    assert Path("pretrained", name).read_bytes() == b'{"a": 2}'
    Path("pretrained", name).unlink()
    publish.replies[f"pretrained/{name}"] = b'{"a": 2}'
    with pytest.raises(ValueError, match=f"^{publish.url}/pretrained/{found}"):
        nb.read_record("results.json")
    assert not Path("pretrained", name).exists()


def test_training_run_takes_its_own_files(nb, publish, monkeypatch):
    monkeypatch.setattr(nb, "PROFILE", "full")
    nb.write_record("results.json", {"mine": [1]})
    assert nb.read_record("results.json") == {"mine": [1]} and publish.paths == []
    write(Path("pretrained"), {"results.json": b"{"})
    with pytest.raises(ValueError, match="Expecting"):
        nb.read_record("results.json")
