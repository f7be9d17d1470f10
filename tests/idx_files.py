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
HTML_PAGE = b"\n <!DOCTYPE html>\n<html><h1>503 Service Unavailable</h1></html>\n"


def idx(array):
    """Return `array`, images (N, 28, 28) or labels (N,), as the bytes of an IDX file."""
    head = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def mapping(end="\n"):
    """Return the bytes of the mapping file with lines that end with `end`."""
    return "".join(f"{i} {ord(letter)}{end}" for i, letter in enumerate(CHARACTERS)).encode()


def make_arrays(train=94, test=47, seed=0):
    """Return random arrays, as they lie in the files: {(split, kind): uint8 array}."""
    random, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", train), ("test", test)):
        arrays[split, "images"] = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[split, "labels"] = ((np.arange(count) + seed) % 47).astype(np.uint8)
    return arrays


def make_files(**options):
    """Return the five files of a data set as {name: bytes}; options: those of `make_arrays`."""
    arrays = make_arrays(**options)
    return {MAPPING: mapping(), **{NAMES[key]: idx(array) for key, array in arrays.items()}}


def pack(files):
    """Return `files` as NIST packs them: {name.gz: gzip bytes}, the mapping as it is."""
    packed = {f"{name}.gz": gzip.compress(files[name], mtime=0) for name in NAMES.values()}
    return {MAPPING: files[MAPPING], **packed}


def make_zip(files, others=()):
    """Return a zip file like NIST's: packed files in the folder gzip, among `others`."""
    buffer, members = io.BytesIO(), {f"gzip/{name}": content for name, content in files.items()}
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted({**members, **dict(others)}.items()):
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
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def sha256(*contents):
    return hashlib.sha256(b"".join(contents)).hexdigest()


def declare_official(nb, monkeypatch, files):
    """Make the notebook take `files` for the official ones."""
    slices, official = {"train": (10, 20), "test": (5, 9)}, {}
    for (split, kind), name in NAMES.items():
        start, stop = (16 + 784 * image for image in slices[split])
        official[split, kind] = sha256(files[name][start:stop] if kind == "images" else files[name])
    monkeypatch.setattr(nb, "OFFICIAL_SLICE", slices)
    monkeypatch.setattr(nb, "OFFICIAL", official)


def declare_reconstructed(nb, monkeypatch, files):
    """Make the notebook take `files`, plain, for the reconstructed split; return them packed."""
    packed, digests = pack(files), ""
    for split in ("train", "test"):
        images, labels = (files[NAMES[split, kind]] for kind in ("images", "labels"))
        upright = np.frombuffer(images[16:], np.uint8).reshape(-1, 28, 28).swapaxes(1, 2)
        digests += sha256(upright.tobytes(), labels[8:])
    monkeypatch.setattr(nb, "RECONSTRUCTED", sha256(digests.encode()))
    shipped = {key: sha256(packed[f"{name}.gz"]) for key, name in NAMES.items()}
    monkeypatch.setattr(nb, "SHIPPED", {"mapping": sha256(packed[MAPPING]), **shipped})
    return packed


def complaint(error, path):
    """Return the text of a caught error, having checked that it says where, and what was wrong."""
    text = str(error.value)
    assert str(path) in text, text
    assert "expected" in text and "found" in text.split("expected", 1)[1], text
    return text
