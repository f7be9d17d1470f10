"""Made-up EMNIST files: real IDX bytes, put together without the notebook's code."""

import gzip
import hashlib
import io
import struct
import zipfile

import numpy as np

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
MAPPING = "emnist-balanced-mapping.txt"
NAMES = {
    (split, kind): f"emnist-balanced-{split}-{kind}-idx{dimensions}-ubyte"
    for split in ("train", "test")
    for kind, dimensions in (("images", 3), ("labels", 1))
}
TRAIN_IMAGES, TRAIN_LABELS = NAMES["train", "images"], NAMES["train", "labels"]
TEST_IMAGES, TEST_LABELS = NAMES["test", "images"], NAMES["test", "labels"]


def idx(array, magic=None, shape=None):
    """Return `array` as the bytes of an IDX file; `magic` and `shape` overrule what is true."""
    array = np.asarray(array, np.uint8)
    magic = {3: 2051, 1: 2049}[array.ndim] if magic is None else magic
    sizes = b"".join(struct.pack(">I", size) for size in (shape or array.shape))
    return struct.pack(">I", magic) + sizes + array.tobytes()


def mapping(end="\n", characters=CHARACTERS):
    """Return the bytes of a mapping file whose lines end with `end`."""
    lines = [f"{index} {ord(character)}{end}" for index, character in enumerate(characters)]
    return "".join(lines).encode()


def make_arrays(train=94, test=47, seed=0):
    """Return random arrays, as they lie in the files: {(split, kind): uint8 array}."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        arrays[split, "images"] = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[split, "labels"] = (np.arange(count) % 47).astype(np.uint8)
    return arrays


def make_files(arrays=None):
    """Return the five files of a data set as {name: bytes}."""
    arrays = arrays or make_arrays()
    return {MAPPING: mapping(), **{NAMES[key]: idx(array) for key, array in arrays.items()}}


def pack(files):
    """Return `files` as NIST packs them: {name.gz: gzip bytes}, the mapping as it is."""
    return {name if name == MAPPING else f"{name}.gz":
            content if name == MAPPING else gzip.compress(content, mtime=0)
            for name, content in files.items()}  # fmt: skip


def make_zip(files, others=()):
    """Return a zip file like NIST's: `files` packed, in the folder gzip, between `others`."""
    buffer, others = io.BytesIO(), list(dict(others).items())
    members = [(f"gzip/{name}", content) for name, content in pack(files).items()]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in others[::2] + members + others[1::2]:
            archive.writestr(name, content)
    return buffer.getvalue()


def write(folder, files):
    """Write `files`, {name: bytes}, into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    """Return what stands in `folder` and below as {relative path: bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def declare_official(nb, monkeypatch, files):
    """Make the notebook take `files` for the official ones."""
    slices = {"train": slice(10, 20), "test": slice(5, 9)}
    official = {}
    for (split, kind), name in NAMES.items():
        part = slices[split]
        pixels = files[name][16 + 784 * part.start : 16 + 784 * part.stop]
        official[split, kind] = sha256(pixels if kind == "images" else files[name])
    packed = pack(files)
    monkeypatch.setattr(nb, "OFFICIAL_SLICE", slices)
    monkeypatch.setattr(nb, "OFFICIAL", official)
    digests = {key: sha256(packed[f"{name}.gz"]) for key, name in NAMES.items()}
    monkeypatch.setattr(nb, "OFFICIAL_GZ", digests)


def complaint(error, path):
    """Return the text of a caught error, having checked that it says where, and what was wrong."""
    text = str(error.value)
    assert str(path) in text, text
    assert "expected" in text and "found" in text.split("expected", 1)[1], text
    return text
