"""Reading IDX files and mapping files, what is wrong with bad ones, and splitting the data."""

import errno
import gzip
import hashlib
import os
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REAL_DATA, load_notebook, needs_real_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from idx_files import (
    CHARACTERS,
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
    mapping,
    pack,
    read,
    write,
)

properties = settings(deadline=None, database=None, max_examples=150)
KINDS = {"images": (2051, 16, TRAIN_IMAGES), "labels": (2049, 8, TRAIN_LABELS)}
kinds = st.sampled_from(sorted(KINDS))


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A path that property-based tests may write to again and again."""
    return tmp_path_factory.mktemp("scratch") / "file"


@pytest.fixture
def unprivileged():
    """A folder of this test's own, seen by a user who is not root, so that modes matter."""
    folder = Path(tempfile.mkdtemp(prefix="unprivileged-"))
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


# ------------------------------------------------------------------------------- the parser


def test_reads_images_upright(nb, tmp_path):
    upright = np.zeros((1, 28, 28), np.uint8)  # an L: a vertical stroke, a foot to the right
    upright[0, 4:24, 6] = 200
    upright[0, 23, 6:18] = 255
    stored = bytearray(784)
    for row in range(28):
        for column in range(28):  # NIST stores column after column
            stored[28 * column + row] = upright[0, row, column]
    files = make_files()
    files[TRAIN_IMAGES] = struct.pack(">iiii", 2051, 1, 28, 28) + bytes(stored)
    files[TRAIN_LABELS] = struct.pack(">ii", 2049, 1) + bytes([21])
    data = nb.read_folder(write(tmp_path, files))
    np.testing.assert_array_equal(data["train"]["images"], upright)
    assert data["train"]["labels"].tolist() == [21]


@pytest.mark.parametrize("style", ["plain", "gz", "gz without the ending"])
def test_reads_whole_folder(nb, tmp_path, style):
    arrays = make_arrays()
    files = make_files(arrays)
    if style != "plain":
        packed = pack(files)
        files = packed if style == "gz" else {k.removesuffix(".gz"): v for k, v in packed.items()}
    data = nb.read_folder(write(tmp_path, files))
    assert set(data) == {"train", "test"}
    for split in data:
        images, labels = data[split]["images"], data[split]["labels"]
        np.testing.assert_array_equal(images, arrays[split, "images"].transpose(0, 2, 1))
        np.testing.assert_array_equal(labels, arrays[split, "labels"])
        assert images.dtype == labels.dtype == np.uint8
        assert images.flags.c_contiguous
        assert data[split]["official"] is False


def test_reads_mapping_packed_with_gzip(nb, tmp_path):
    files = make_files()
    files[MAPPING + ".gz"] = gzip.compress(files.pop(MAPPING))
    assert len(nb.read_folder(write(tmp_path, files))["test"]["labels"]) == 47


def test_writes_idx_as_nist_does(nb, tmp_path):
    upright = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    nb.write_idx(tmp_path / "i", upright)
    nb.write_idx(tmp_path / "l", np.uint8([3, 46]))
    assert (tmp_path / "i").read_bytes() == idx(upright.transpose(0, 2, 1))
    assert (tmp_path / "l").read_bytes() == b"\0\0\x08\x01\0\0\0\x02\x03\x2e"


@properties
@given(kind=kinds, count=st.integers(1, 5), seed=st.integers(0, 9), packed=st.booleans())
def test_what_is_written_is_read(nb, scratch, kind, count, seed, packed):
    shape = (count, 28, 28) if kind == "images" else (count,)
    array = np.random.default_rng(seed).integers(0, 47, shape).astype(np.uint8)
    nb.write_idx(scratch, array)
    if packed:
        scratch.write_bytes(gzip.compress(scratch.read_bytes()))
    again = nb.parse_idx(nb.read_bytes(scratch), kind, scratch)
    np.testing.assert_array_equal(again.T if kind == "labels" else again.swapaxes(1, 2), array)


def test_parsed_array_is_a_view_of_the_content(nb):
    content = idx(make_arrays()["train", "images"])
    array = nb.parse_idx(content, "images", "file")
    assert not array.flags.writeable
    assert np.shares_memory(array, np.frombuffer(content, np.uint8))


# ------------------------------------------------------- the parser against any bytes at all


def headers(kind):
    """A strategy: bytes that begin much as an IDX file does, and anything after."""
    near = st.sampled_from([0, 1, 2, 27, 28, 29, 784, 2049, 2051, 2**31, 2**32 - 1])
    fields = 4 if kind == "images" else 2
    numbers = st.lists(near | st.integers(0, 2**32 - 1), min_size=fields, max_size=fields)
    body = st.binary(max_size=40) | st.sampled_from([0, 1, 2]).map(lambda n: bytes(784 * n))
    magic = st.just([KINDS[kind][0]])
    start = st.tuples(magic | st.just([]), numbers).map(lambda parts: [*parts[0], *parts[1]])
    return st.builds(
        lambda numbers, body: b"".join(struct.pack(">I", n) for n in numbers[:fields]) + body,
        start,
        body,
    )


def check_parse(nb, content, kind):
    """Parse `content`: a ValueError that says what is wrong, or an array that is all of it."""
    try:
        array = nb.parse_idx(content, kind, "folder/some-file")
    except ValueError as error:
        assert str(error).startswith("folder/some-file: expected "), error
        assert "; found " in str(error)
        return None
    magic, header, _ = KINDS[kind]
    sizes = struct.unpack(f">{header // 4}I", content[:header])
    assert sizes == (magic, *array.shape)
    assert array.dtype == np.uint8 and array.tobytes() == content[header:]
    assert len(array) > 0
    assert array.shape[1:] == (28, 28) if kind == "images" else array.max() <= 46
    return array


@properties
@given(st.data(), kinds)
def test_any_bytes_are_an_array_or_an_error(nb, data, kind):
    check_parse(nb, data.draw(st.binary(max_size=60) | headers(kind)), kind)


def test_the_property_meets_both_outcomes(nb):
    assert check_parse(nb, idx(np.zeros((2, 28, 28))), "images") is not None
    assert check_parse(nb, b"\0\0\x08\x03", "images") is None


def valid(kind, count, seed=1):
    shape = (count, 28, 28) if kind == "images" else (count,)
    return idx(np.random.default_rng(seed).integers(0, 47, shape))


@properties
@given(kinds, st.integers(1, 3), st.data())
def test_any_truncation_is_rejected(nb, kind, count, data):
    content = valid(kind, count)
    kept = data.draw(st.integers(0, len(content) - 1))
    assert check_parse(nb, content, kind) is not None
    assert check_parse(nb, content[:kept], kind) is None


@properties
@given(kinds, st.integers(1, 3), st.binary(min_size=1, max_size=800))
def test_anything_appended_is_rejected(nb, kind, count, more):
    assert check_parse(nb, valid(kind, count) + more, kind) is None


@properties
@given(kinds, st.integers(1, 3), st.data())
def test_any_other_header_is_rejected(nb, kind, count, data):
    content, size = valid(kind, count), KINDS[kind][1]
    other = bytearray(content[:size])
    for place in data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=4)):
        other[place] = data.draw(st.integers(0, 255).filter(lambda b, p=place: b != content[p]))
    assert check_parse(nb, bytes(other) + content[size:], kind) is None


@properties
@given(kinds, st.sampled_from(["cut", "flip", "append"]), st.data())
def test_damaged_gzip_is_rejected_or_harmless(nb, scratch, kind, damage, data):
    content = valid(kind, 2)
    packed = gzip.compress(content, mtime=0)
    place = data.draw(st.integers(0, len(packed) - 1))
    if damage == "cut":
        broken = packed[:place]
    elif damage == "flip":
        bit = 1 << data.draw(st.integers(0, 7))
        broken = packed[:place] + bytes([packed[place] ^ bit]) + packed[place + 1 :]
    else:
        broken = packed + data.draw(st.binary(min_size=1, max_size=30).filter(any))
    scratch.write_bytes(broken)
    try:
        array = nb.parse_idx(nb.read_bytes(scratch), kind, scratch)
    except ValueError as error:
        assert str(error).startswith(f"{scratch}: expected ") and "found" in str(error)
    else:  # a flag or the date in the header
        assert damage == "flip" and array.tobytes() == content[KINDS[kind][1] :]


@properties
@given(st.binary(max_size=80), st.booleans())
def test_any_file_is_read_or_an_error(nb, scratch, content, packed):
    scratch.write_bytes(b"\x1f\x8b" * packed + content)
    try:
        found = nb.read_bytes(scratch)
    except ValueError as error:
        assert str(error).startswith(f"{scratch}: expected a whole gzip file; found: ")
    else:
        assert found == content or packed


# ------------------------------------------------------------------------ the mapping file


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", "\n\n"])
def test_mapping_with_any_line_end(nb, tmp_path, end):
    content = mapping(end)
    for text in (content, content.rstrip(b"\r\n")):
        (tmp_path / "m").write_bytes(text)
        assert nb.read_mapping(tmp_path / "m") == CHARACTERS
    assert nb.CHARACTERS == CHARACTERS


def lines_of_mapping():
    return mapping().decode().splitlines()


MAPPING_FAULTS = {
    "missing": (lambda lines: lines[:-1], "", "none for [46]"),
    "missing two": (lambda lines: lines[1:9] + lines[10:], "", "none for [0, 9]"),
    "doubled": (lambda lines: [*lines[:7], "6 54", *lines[7:]], "line 8", "6 again"),
    "no number": (lambda lines: [*lines[:3], "three 51", *lines[4:]], "line 4", "'three 51'"),
    "one number": (lambda lines: [*lines[:3], "3", *lines[4:]], "line 4", "'3'"),
    "three numbers": (lambda lines: [*lines[:3], "3 51 51", *lines[4:]], "line 4", "'3 51 51'"),
    "negative": (lambda lines: ["-1 48", *lines], "line 1", "'-1 48'"),
    "48th class": (lambda lines: [*lines, "47 117"], "line 48", "'47 117'"),
    "no such character": (lambda lines: ["0 1114112", *lines[1:]], "line 1", "'0 1114112'"),
    "other character": (lambda lines: [*lines[:46], "46 117"], "", "ghnqru"),
    "HTML": (lambda lines: ["<!DOCTYPE html>", "<h1>404</h1>"], "line 1", "'<!DOCTYPE html>'"),
    "empty": (lambda lines: [], "", "none for [0, 1,"),
}


@pytest.mark.parametrize("fault", MAPPING_FAULTS)
def test_bad_mapping(nb, tmp_path, fault):
    change, place, found = MAPPING_FAULTS[fault]
    text = "\n".join(change(lines_of_mapping()))
    folder = write(tmp_path, {**make_files(), MAPPING: text.encode()})
    with pytest.raises(ValueError) as error:
        nb.read_folder(folder)
    text = complaint(error, folder / MAPPING)
    assert place in text and found in text.split("found", 1)[1]


@properties
@given(
    st.binary(max_size=60)
    | st.permutations(lines_of_mapping()).map(lambda lines: "\n".join(lines).encode())
    | st.lists(st.sampled_from([*lines_of_mapping(), "46 117", "47 1", "x", ""]), min_size=40).map(
        lambda lines: "\r\n".join(lines).encode()
    )
)
@example(mapping("\r"))
@example(b"\xff\xfe" + mapping())
@example(mapping().replace(b"46 ", "٤٦ ".encode()))
@example(mapping().replace(b"46 116", b"46 " + b"9" * 5000))
def test_any_mapping_is_the_published_one_or_an_error(nb, scratch, content):
    scratch.write_bytes(content)
    try:
        assert nb.read_mapping(scratch) == CHARACTERS
    except ValueError as error:
        assert str(error).startswith(str(scratch)) and "expected" in str(error)
        assert "found" in str(error)
    else:
        assert sorted(content.split()) == sorted(mapping().split())


# --------------------------------------------------------------------- bad files in a folder


def reheader(change):
    """A fault: the header's numbers (not the magic one), changed."""

    def damage(content):
        fields = 4 if content[3] == 3 else 2
        numbers = list(struct.unpack(f">{fields}I", content[: 4 * fields]))
        change(numbers)
        return struct.pack(f">{fields}I", *numbers) + content[4 * fields :]

    return damage


def grow(numbers):
    numbers[1] += 1


def shrink(numbers):
    numbers[1] -= 1


HTML_PAGE = b"\n <!DOCTYPE html>\n<html><h1>503 Service Unavailable</h1></html>\n"
FILE_FAULTS = {  # which file, what is done to it, words of what is expected, of what is found
    "magic number": (TRAIN_IMAGES, lambda c: b"\0\0\x08\x04" + c[4:], "2051", r"\x08\x04"),
    "magic number of labels": (TEST_LABELS, lambda c: b"\1" + c[1:], "2049", r"\x01"),
    "labels for images": (TEST_IMAGES, lambda c: idx(np.arange(47)), "2051", r"\x01"),
    "images for labels": (TEST_LABELS, lambda c: valid("images", 47), "2049", r"\x03"),
    "more promised": (TRAIN_IMAGES, reheader(grow), "74480 bytes", "73696"),
    "fewer promised": (TRAIN_IMAGES, reheader(shrink), "72912 bytes", "73696"),
    "more labels promised": (TEST_LABELS, reheader(grow), "48 bytes", "47"),
    "fewer labels promised": (TEST_LABELS, reheader(shrink), "46 bytes", "47"),
    "4 billion promised": (TRAIN_IMAGES, reheader(lambda n: n.__setitem__(1, 2**32 - 1)),
                           f"{(2**32 - 1) * 784} bytes", "73696"),
    "zero images": (TRAIN_IMAGES, lambda c: idx(np.zeros((0, 28, 28))), "at least one", "0"),
    "zero labels": (TRAIN_LABELS, lambda c: idx(np.zeros(0)), "at least one", "0"),
    "low images": (TRAIN_IMAGES, lambda c: idx(np.zeros((94, 27, 28))), "28 x 28", "27 x 28"),
    "wide images": (TRAIN_IMAGES, lambda c: idx(np.zeros((94, 28, 32))), "28 x 28", "28 x 32"),
    "flat images": (TRAIN_IMAGES, lambda c: idx(np.zeros((94, 0, 28))), "28 x 28", "0 x 28"),
    "label 47": (TRAIN_LABELS, lambda c: c[:-1] + b"\x2f", "0 to 46", "47"),
    "label 255": (TEST_LABELS, lambda c: c[:9] + b"\xff" + c[10:], "0 to 46", "255"),
    "a label too few": (TRAIN_LABELS, lambda c: idx(np.zeros(93)), "94 labels", "93"),
    "a label too many": (TEST_LABELS, lambda c: idx(np.zeros(48)), "47 labels", "48"),
    "cut in the header": (TEST_IMAGES, lambda c: c[:10], "16 bytes", "10"),
    "cut in the images": (TEST_IMAGES, lambda c: c[:-1], "36848 bytes", "36847"),
    "empty file": (TEST_IMAGES, lambda c: b"", "2051", "b''"),
    "HTML page": (TRAIN_LABELS, lambda c: HTML_PAGE, "2049", "an HTML page"),
    "HTML for images": (TRAIN_IMAGES, lambda c: HTML_PAGE, "2051", "an HTML page"),
    "truncated gzip": (TRAIN_IMAGES, lambda c: gzip.compress(c)[:-20], "gzip", "end"),
    "gzip cut in its header": (TRAIN_IMAGES, lambda c: gzip.compress(c)[:7], "gzip", "end"),
    "gzip with a false sum": (TEST_LABELS, lambda c: gzip.compress(c)[:-8] + bytes(8), "gzip",
                              "CRC"),
    "gzip and more": (TEST_LABELS, lambda c: gzip.compress(c) + b"more", "gzip", "mo"),
    "gzip of a page": (TEST_LABELS, lambda c: gzip.compress(HTML_PAGE), "2049", "an HTML page"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_bad_file(nb, tmp_path, monkeypatch, fault, ending):
    name, damage, expected, found = FILE_FAULTS[fault]
    files = make_files()
    files[name + ending] = damage(files.pop(name))
    folder = write(tmp_path / "mine", files)
    before = read(tmp_path)
    monkeypatch.setattr(nb, "EMNIST_DIR", str(folder))
    with pytest.raises(ValueError) as error:
        nb.load_emnist()
    text = complaint(error, folder / (name + ending)).replace(str(tmp_path), "")
    assert expected in text.split("expected", 1)[1].split("found", 1)[0]
    assert found in text.split("found", 1)[1]
    assert read(tmp_path) == before


@pytest.mark.parametrize("name", [MAPPING, *NAMES.values()])
def test_folder_lacks_a_file(nb, tmp_path, monkeypatch, name):
    files = make_files()
    del files[name]
    monkeypatch.setattr(nb, "EMNIST_DIR", str(write(tmp_path, files)))
    with pytest.raises(FileNotFoundError) as error:
        nb.load_emnist()
    assert ".gz" in complaint(error, tmp_path / name)


def test_folder_is_not_there(nb, tmp_path, monkeypatch):
    for folder in (tmp_path / "nowhere", write(tmp_path, {"file": b""}) / "file"):
        monkeypatch.setattr(nb, "EMNIST_DIR", str(folder))
        with pytest.raises(FileNotFoundError) as error:
            nb.load_emnist()
        assert "expected a folder with" in complaint(error, folder)


def test_file_is_not_there(nb, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        nb.read_bytes(tmp_path / "nothing")
    complaint(error, tmp_path / "nothing")


@pytest.mark.parametrize("profile", ["fast", "", "Quick", "pretrained "])
def test_unknown_profile(monkeypatch, profile):
    monkeypatch.setenv("EMNIST_PROFILE", profile)
    monkeypatch.setitem(sys.modules, "unknown_profile", None)
    with pytest.raises(ValueError) as error:
        load_notebook("unknown_profile")
    text = complaint(error, "EMNIST_PROFILE")
    assert "pretrained, quick, full" in text and repr(profile) in text


# ------------------------------------------------------------------- the official files


@pytest.mark.parametrize("style", ["plain", "gz"])
def test_official_files_are_recognised(nb, tmp_path, monkeypatch, style):
    files = make_files()
    declare_official(nb, monkeypatch, files)
    data = nb.read_folder(write(tmp_path, files if style == "plain" else pack(files)))
    assert data["train"]["official"] is True and data["test"]["official"] is True


@pytest.mark.parametrize(
    ("name", "place", "unofficial"),
    [
        (TRAIN_IMAGES, 16 + 784 * 10, "train"),  # the slice's first byte
        (TRAIN_IMAGES, 16 + 784 * 20 - 1, "train"),  # and its last
        (TEST_IMAGES, 16 + 784 * 7, "test"),
        (TRAIN_LABELS, 8, "train"),
        (TEST_LABELS, 8 + 45, "test"),
    ],
)
def test_one_other_byte_is_not_official(nb, tmp_path, monkeypatch, name, place, unofficial):
    files = make_files()
    declare_official(nb, monkeypatch, files)
    content = bytearray(files[name])
    content[place] ^= 1
    data = nb.read_folder(write(tmp_path, {**files, name: bytes(content)}))
    assert {split: data[split]["official"] for split in data} == {
        "train": unofficial != "train",
        "test": unofficial != "test",
    }


def test_digests_are_the_published_ones(nb):
    assert nb.OFFICIAL["train", "labels"].startswith("a9c2984bf327d013")
    assert nb.OFFICIAL["test", "labels"].startswith("91807a38b4dab13f")
    assert nb.OFFICIAL["train", "images"].startswith("239530f22c8d52f2")
    assert nb.OFFICIAL["test", "images"].startswith("751c1d3cc8381259")
    slices = nb.OFFICIAL_SLICE
    assert slices == {"train": slice(103680, 112800), "test": slice(18496, 18800)}
    digests = [*nb.OFFICIAL.values(), *nb.OFFICIAL_GZ.values()]
    assert len(set(digests)) == 8 and all(len(digest) == 64 for digest in digests)


def test_name_of_the_data(nb, tmp_path, monkeypatch):
    files = make_files()
    data = {**nb.read_folder(write(tmp_path, files)), "stand_in": False}
    assert nb.name_of(data) == "other data in EMNIST's layout"
    digests = {split: nb.sha256(data[split]["images"].tobytes() + data[split]["labels"].tobytes())
               for split in ("train", "test")}  # fmt: skip
    monkeypatch.setattr(nb, "RECONSTRUCTED", digests)
    assert nb.name_of(data) == "the reconstructed split"
    monkeypatch.setattr(nb, "RECONSTRUCTED", {**digests, "test": "0" * 64})
    assert nb.name_of(data) == "other data in EMNIST's layout"
    declare_official(nb, monkeypatch, files)
    data = {**nb.read_folder(tmp_path), "stand_in": False}
    assert nb.name_of(data) == "official EMNIST Balanced"
    half = {**data, "train": {**data["train"], "official": False}}
    assert nb.name_of(half) == "other data in EMNIST's layout"
    assert nb.name_of({**data, "stand_in": True}) == "stand-in data drawn from fonts"


# --------------------------------------------------------------------- splitting the data


def numbered(count):
    """Images that carry their number in their first four bytes."""
    images = np.zeros((count, 784), np.uint8)
    images[:, :4] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    return images.reshape(count, 28, 28)


def numbers(images):
    return images.reshape(len(images), 784)[:, :4].copy().view(">u4").ravel().astype(int)


def shuffled_labels(sizes, seed):
    labels = np.repeat(np.arange(47, dtype=np.uint8), sizes)
    return np.random.default_rng(seed).permutation(labels)


sizes_of_classes = st.lists(st.integers(0, 25), min_size=47, max_size=47).filter(any)


@properties
@given(sizes_of_classes, st.integers(0, 5))
def test_validation_split(nb, sizes, seed):
    labels = shuffled_labels(sizes, seed)
    parts = nb.split_validation(numbered(len(labels)), labels, seed=seed)
    assert set(parts) == {"train", "validation"}
    found = {name: numbers(images) for name, (images, _) in parts.items()}
    assert sorted([*found["train"], *found["validation"]]) == list(range(len(labels)))
    for name, (_, part) in parts.items():
        np.testing.assert_array_equal(part, labels[found[name]])
    held = np.bincount(parts["validation"][1], minlength=47)
    for size, count in zip(sizes, held, strict=True):
        assert abs(count - size / 10) <= 0.5 or (size < 15 and count == min(1, max(size - 1, 0)))
        assert size < 2 or 1 <= count < size


@properties
@given(sizes_of_classes, st.integers(0, 5), st.integers(1, 9))
def test_subset(nb, sizes, seed, per_class):
    labels = shuffled_labels(sizes, seed)
    images, kept = nb.subset(numbered(len(labels)), labels, per_class, seed)
    found = numbers(images)
    assert len(set(found)) == len(found)
    np.testing.assert_array_equal(kept, labels[found])
    assert np.bincount(kept, minlength=47).tolist() == [min(size, per_class) for size in sizes]


def test_subset_of_all(nb):
    images, labels = numbered(60), shuffled_labels([60] + [0] * 46, 0)
    same = nb.subset(images, labels, None, 1)
    assert same[0] is images and same[1] is labels


def test_split_is_random_and_repeatable(nb):
    labels = shuffled_labels([20] * 47, 1)
    images = numbered(len(labels))
    before = np.random.get_state()[1].copy()
    first, again, other = (
        numbers(nb.split_validation(images, labels, seed=seed)["validation"][0])
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert 0 < len(np.intersect1d(first, other)) < len(first) / 2
    assert len(first) == 94 and np.all(np.diff(first) > 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # the global one is not used


def test_split_is_what_it_was(nb):
    """The published models were trained on this split: the stream of numbers must not change."""
    labels = np.arange(47 * 40) % 47
    held = numbers(nb.split_validation(numbered(len(labels)), labels)["validation"][0])
    expected = []
    random = np.random.RandomState(7850)
    for label in range(47):
        expected += list(random.permutation(np.arange(label, 47 * 40, 47))[:4])
    assert held.tolist() == sorted(expected)
    assert nb.SEED == 7850


# ----------------------------------------------------------------- images trained on before


def test_image_digests(nb):
    images = make_arrays(seed=5)["train", "images"]
    digests = nb.image_digests(images)
    assert digests.shape == (94,) and digests.dtype == np.uint64
    assert len(set(digests.tolist())) == 94
    one = hashlib.blake2b(images[7].tobytes(), digest_size=8).hexdigest()
    assert int(digests[7]) == int(one, 16)
    view = np.ascontiguousarray(images.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_array_equal(nb.image_digests(view), digests)
    changed = images.copy()
    changed[3, 27, 27] ^= 1
    assert np.flatnonzero(nb.image_digests(changed) != digests).tolist() == [3]


def test_unseen_finds_the_overlap(nb):
    trained, new = make_arrays(seed=1)["train", "images"], make_arrays(seed=2)["test", "images"]
    mixed = new.copy()
    mixed[[4, 5, 40]] = trained[[90, 0, 17]]
    known = np.sort(nb.image_digests(trained))
    assert np.flatnonzero(~nb.unseen(mixed, known)).tolist() == [4, 5, 40]
    assert nb.unseen(new, known).all()
    assert not nb.unseen(trained, known).any()
    assert nb.unseen(mixed, known[:0]).all()
    assert nb.unseen(new[:0], known).shape == (0,)


# -------------------------------------------------------------------------- the real files


@pytest.fixture(scope="module")
def real(nb):
    return nb.read_folder(REAL_DATA)


@needs_real_data
def test_real_data(nb, real):
    assert {split: len(real[split]["labels"]) for split in real} == {"train": 95138, "test": 9400}
    assert real["train"]["images"].shape == (95138, 28, 28)
    assert real["test"]["images"].shape == (9400, 28, 28)
    assert not real["train"]["official"] and not real["test"]["official"]
    assert (np.bincount(real["test"]["labels"]) == 200).all()
    counts = np.bincount(real["train"]["labels"])
    assert len(counts) == 47 and counts.max() == 2400 and counts.min() == 650
    assert nb.name_of({**real, "stand_in": False}) == "the reconstructed split"


@needs_real_data
def test_real_characters_are_upright(nb, real):
    images, labels = real["train"]["images"], real["train"]["labels"]
    mean = {c: images[labels == CHARACTERS.index(c)].mean(axis=0) for c in "TL7"}
    assert mean["T"][:10].sum() > 1.3 * mean["T"][18:].sum()  # the bar is on top
    assert mean["L"][18:].sum() > 1.3 * mean["L"][:10].sum()  # the foot is at the bottom
    assert mean["7"][:14].sum() > 1.3 * mean["7"][14:].sum()


@needs_real_data
def test_real_train_and_test_are_disjoint(nb, real):
    trained = np.sort(nb.image_digests(real["train"]["images"]))
    assert nb.unseen(real["test"]["images"], trained).all()


@needs_real_data
@pytest.mark.parametrize(("style", "limit"), [("gz", 5), ("plain", 1)])
def test_real_data_load_fast(nb, tmp_path, style, limit):
    folder = tmp_path
    for name in (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS, MAPPING):
        content = nb.read_bytes(nb.find_file(REAL_DATA, name))
        if style == "gz" and name != MAPPING:
            shutil.copy(nb.find_file(REAL_DATA, name), folder)
        else:
            (folder / name).write_bytes(content)
    seconds = []
    for _ in range(3):
        begin = time.process_time()  # the processor's, so that a busy machine does not count
        assert len(nb.read_folder(folder)["train"]["labels"]) == 95138
        seconds.append(time.process_time() - begin)
    assert min(seconds) < limit


# ------------------------------------------------------------ files that are whole or not there


def test_atomic_writes_and_replaces(nb, tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second"):
        with nb.atomic(path, suffix=".txt") as temporary:
            assert temporary.parent == path.parent and temporary.name.endswith(".txt")
            temporary.write_text(text)
            assert path.exists() == (text == "second")
        assert path.read_text() == text
    assert read(tmp_path) == {"a/b/file.txt": b"second"}
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, ConnectionError, SystemExit])
@pytest.mark.parametrize("old", [{}, {"file": b"old"}])
def test_atomic_leaves_the_old_file(nb, tmp_path, old, error):
    write(tmp_path, old)
    with pytest.raises(error, match=r"^why$"), nb.atomic(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half of the n")
        raise error("why")
    assert read(tmp_path) == old


def test_atomic_in_a_read_only_folder(nb, unprivileged):
    folder = write(unprivileged / "locked", {"file": b"old"})
    folder.chmod(0o555)
    for path in (folder / "file", folder / "new", folder / "below" / "new"):
        with pytest.raises(OSError) as error:
            nb.write_json(path, {})
        assert "written" in complaint(error, path) and error.value.errno == errno.EACCES
    assert read(folder) == {"file": b"old"}
    folder.chmod(0o755)


def test_atomic_on_a_full_disk(nb, tmp_path, monkeypatch):
    path = write(tmp_path, {TRAIN_LABELS: b"old"}) / TRAIN_LABELS
    real_write = Path.write_bytes

    def full(self, content):
        real_write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        nb.write_idx(path, np.zeros(47, np.uint8))
    assert str(path) in str(error.value) and error.value.errno == errno.ENOSPC
    assert read(tmp_path) == {TRAIN_LABELS: b"old"}


def test_atomic_on_a_disk_that_fills_at_the_end(nb, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nb.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        nb.write_json(tmp_path / "file", [1])
    assert read(tmp_path) == {}


def test_json(nb, tmp_path):
    nb.write_json(tmp_path / "file", {"é": [1, 2.5, None]})
    assert nb.read_json(tmp_path / "file") == {"é": [1, 2.5, None]}
    for content in (b'{"a": 1', b"\xff", b"", b"<html>"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ValueError) as error:
            nb.read_json(tmp_path / "bad")
        complaint(error, tmp_path / "bad")


def test_own_folder_is_only_read(nb, unprivileged, monkeypatch):
    folder = write(unprivileged / "mine", make_files())
    folder.chmod(0o555)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(nb, "EMNIST_DIR", str(folder))
    data = nb.load_emnist()
    assert data["source"] == "your folder (EMNIST_DIR)" and data["stand_in"] is False
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    folder.chmod(0o755)
