"""Reading IDX files and mapping files, what is wrong with bad ones, and splitting the data."""

import gzip
import hashlib
import os
import signal
from unittest.mock import Mock

import idx_files as made
import numpy as np
import pytest
from conftest import RECONSTRUCTED, ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from idx_files import CODES, MAPPING, NAMES, complaint, idx, make_files, read, write

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES.values()
properties = settings(deadline=None, database=None, max_examples=120)
kinds = st.sampled_from(["images", "labels"])
class_sizes = st.lists(st.integers(0, 25), min_size=47, max_size=47).filter(any)
damages = st.sampled_from(["cut", "append", "header", "any"])


def test_atomic_replaces_and_keeps_the_ending(nb, tmp_path):
    path = tmp_path / "a" / "b" / "model.weights.h5"
    for text in ("first", "second"):
        with nb.atomic(path) as temporary:
            assert temporary.parent == path.parent and temporary.name.endswith(".weights.h5")
            temporary.write_text(text)
            assert path.exists() == (text == "second")
    with nb.atomic(path) as one, nb.atomic(path) as two:  # as two runs at once
        one.write_text("one")
        two.write_text("two")
    assert read(tmp_path) == {"a/b/model.weights.h5": b"one"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, "kill -9"])
def test_atomic_leaves_the_old_file(nb, tmp_path, error):
    write(tmp_path, {"file": b"old"})
    if error == "kill -9":
        if (child := os.fork()) == 0:
            with nb.atomic(tmp_path / "file") as temporary:
                temporary.write_bytes(b"half of the n")
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    else:
        with pytest.raises(error, match=r"^why$"), nb.atomic(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of the n")
            raise error("why")
    left = read(tmp_path)
    assert left.pop("file") == b"old" and len(left) == (error == "kill -9")
    assert all(name.startswith(".") for name in left)


def test_atomic_says_what_cannot_be_written(nb, tmp_path, monkeypatch):
    monkeypatch.setattr(nb.os, "fsync", Mock(side_effect=OSError("No space left")))
    write(tmp_path, {"file": b"old"})
    for path, reason in (("file", "No space left"), ("file/below", "could not be written")):
        with pytest.raises(OSError, match=reason) as error:
            nb.write_json(tmp_path / path, [1])
        assert str(tmp_path / path) in str(error.value)
    assert read(tmp_path) == {"file": b"old"}


@properties
@given(kinds, damages, st.integers(0, 2**20), st.binary(min_size=1))
@example("images", "any", 0, b"\x08\x03")
def test_any_other_bytes_are_rejected(nb, kind, damage, place, more):
    content, size = idx(made.make_arrays()["test", kind]), {"images": 16, "labels": 8}[kind]
    assert nb.parse_idx(content, kind, "file").tobytes() == content[size:]
    header = bytearray(content[:size])
    header[place % size] ^= 1 + place % 255
    changed = {"cut": content[: place % len(content)], "append": content + more, "any": more}
    changed["header"] = bytes(header) + content[size:]
    with pytest.raises(ValueError, match=r"^some-file: expected .*; found "):
        nb.parse_idx(changed[damage], kind, "some-file")


@pytest.mark.parametrize("change", [bytes, gzip.compress])
def test_size_limit(nb, tmp_path, monkeypatch, change):
    monkeypatch.setattr(nb, "MOST_BYTES", 1000)
    assert nb.read_bytes(write(tmp_path, {"file": change(bytes(1000))}) / "file") == bytes(1000)
    with pytest.raises(ValueError, match="at most 1,000 bytes") as error:
        nb.read_bytes(write(tmp_path, {"file": change(bytes(1001))}) / "file")
    complaint(error, tmp_path / "file")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" \n"])
def test_mapping_with_any_line_end(nb, tmp_path, end):
    text = CODES.replace(b"\n", end)
    for more in (text, text.rstrip(), text + end):
        nb.read_mapping(write(tmp_path, {"m": more}) / "m")


FILE_FAULTS = {  # which file, what is done to it, words of what is expected, of what is found
    "magic number": (TRAIN_IMAGES, lambda c: b"\0\0\x08\x04" + c[4:], "2051", r"\x08\x04"),
    "95 promised": (TRAIN_IMAGES, lambda c: c[:7] + b"\x5f" + c[8:], "74496 bytes", "73712"),
    "zero labels": (TRAIN_LABELS, lambda c: idx(np.zeros(0)), "at least one", "[0]"),
    "wide images": (TRAIN_IMAGES, lambda c: idx(np.zeros((94, 28, 32))), "(28, 28)", "28, 32"),
    "label 47": (TRAIN_LABELS, lambda c: c[:-1] + b"\x2f", "0 to 46", "47"),
    "a label too few": (TRAIN_LABELS, lambda c: idx(np.zeros(93)), "94 labels", "93"),
    "HTML page": (TRAIN_LABELS, lambda c: made.HTML_PAGE, "2049", "an HTML page"),
    "truncated gzip": (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-20], "whole gzip", "end"),
    "false sum": (TEST_LABELS, lambda c: gzip.compress(c)[:-8] + bytes(8), "whole gzip", "CRC"),
    "46 classes": (MAPPING, lambda c: c[:-7], "line 47: '46 116'", "'nothing'"),
    "48 classes": (MAPPING, lambda c: c + b"47 117", "line 48: 'nothing'", "'47 117'"),
    "last character": (MAPPING, lambda c: c[:-2] + b"7", "line 47: '46 116'", "'46 117'"),
    "counted from 1": (MAPPING, lambda c: b"1" + c[1:], "line 1: '0 48'", "'1 48'"),
    "blank line": (MAPPING, lambda c: c.replace(b"\n", b"\n\n", 1), "line 2: '1 49'", "''"),
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_bad_file_stops_the_run(nb, tmp_path, monkeypatch, fault, ending):
    name, change, expected, found = FILE_FAULTS[fault]
    files = make_files()
    content = change(files.pop(name))
    if ending and content[:2] != b"\x1f\x8b":
        content = gzip.compress(content)
    before = read(write(tmp_path, {**files, name + ending: content}))
    monkeypatch.setattr(nb, "EMNIST_DIR", str(tmp_path))
    with pytest.raises(ValueError) as error:
        nb.load_emnist()
    text = complaint(error, tmp_path / (name + ending)).replace(str(tmp_path), "")
    wish, _, fact = text.replace("expected ", "", 1).partition("found")
    assert expected in wish and found in fact and read(tmp_path) == before


@pytest.mark.parametrize("name", [MAPPING, *NAMES.values()])
def test_folder_lacks_a_file(nb, tmp_path, monkeypatch, name):
    write(tmp_path, make_files())
    (tmp_path / name).unlink()
    monkeypatch.setattr(nb, "EMNIST_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        nb.load_emnist()
    assert ".gz" in complaint(error, tmp_path / name)


@pytest.mark.parametrize("style", [dict, made.pack])
def test_official_files_are_told_by_their_digests(nb, tmp_path, monkeypatch, style):
    made.declare(nb, monkeypatch)
    files = make_files()
    assert nb.read_folder(write(tmp_path, style(files)))["name"] == "official EMNIST Balanced"
    ends_of_the_slice = (TRAIN_IMAGES, 16 + 784 * 10), (TRAIN_IMAGES, 16 + 784 * 20 - 1)
    for name, place in (*ends_of_the_slice, (TEST_IMAGES, 16 + 784 * 7), (TEST_LABELS, 50)):
        changed = bytearray(files[name])
        changed[place] ^= 1
        write(tmp_path, style({**files, name: bytes(changed)}))
        assert nb.read_folder(tmp_path)["name"] == "other data in EMNIST's layout"


@pytest.fixture(scope="module")
def shipped(nb):
    return nb.read_folder(RECONSTRUCTED)


def test_pinned_digests(nb, shipped):
    pins = repr([nb.OFFICIAL, nb.OFFICIAL_SLICE]).encode()
    digest = "d0621472fae4b7d3708ac4937c23095f6cedc8d1c036b410e27d8d1da5d37926"
    assert hashlib.sha256(pins).hexdigest() == digest
    files = [RECONSTRUCTED / name for name in made.pack(make_files())]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert digests == list(nb.SHIPPED.values()) and shipped["name"] == "the reconstructed split"


def test_shipped_images_are_what_the_models_saw(nb, shipped):
    """The published models name the images they were trained and validated on by digest."""
    recorded = nb.read_json(ROOT / "pretrained" / "results.json")["data"]["digests"]
    parts = nb.split_validation(*shipped["train"])
    assert {name: nb.data_digest(*pair) for name, pair in parts.items()} == recorded
    published = np.load(ROOT / "pretrained" / "train_images.npy")
    assert nb.unseen(shipped["test"][0], published).all()
    assert not nb.unseen(shipped["train"][0][:5000], published).any()


@properties
@given(class_sizes, st.integers(0, 5), st.integers(1, 9))
def test_split_and_subset(nb, sizes, seed, per_class):
    labels = np.repeat(np.arange(47, dtype=np.uint8), sizes)
    labels = np.random.default_rng(seed).permutation(labels)
    images = np.arange(len(labels))  # any array will do
    parts = nb.split_validation(images, labels, seed=seed)
    assert sorted([*parts["train"][0], *parts["validation"][0]]) == images.tolist()
    for numbers, part in parts.values():
        np.testing.assert_array_equal(part, labels[numbers])
    for size, held in zip(sizes, np.bincount(parts["validation"][1], minlength=47), strict=True):
        assert abs(held - size / 10) <= 0.5 or (size < 15 and held == min(1, max(size - 1, 0)))
    numbers, kept = nb.subset(images, labels, per_class, seed)
    np.testing.assert_array_equal(kept, labels[numbers])
    assert np.bincount(kept, minlength=47).tolist() == [min(size, per_class) for size in sizes]
    assert len(set(numbers)) == len(kept)
    assert nb.subset(images, labels, None, seed)[0].tolist() == images.tolist()


def test_images_that_were_trained_on_are_found(nb):
    trained = made.make_arrays(seed=1)["train", "images"]
    new, known = made.make_arrays(seed=2)["test", "images"], nb.image_digests(trained)
    assert known.shape == (94,) and known.dtype == np.uint64 and len(set(known.tolist())) == 94
    new[[4, 5, 40]] = trained[[90, 0, 17]]
    assert np.flatnonzero(~nb.unseen(new, np.sort(known))).tolist() == [4, 5, 40]
    new[4, 27, 27] ^= 1  # one pixel of one of them
    assert np.flatnonzero(~nb.unseen(new, known)).tolist() == [5, 40]
    assert nb.unseen(new, known[:0]).all() and nb.unseen(new[:0], known).shape == (0,)
