"""Made-up EMNIST files: real IDX bytes, put together without the notebook's code."""

import gzip
import io
import zipfile

import numpy as np

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
MAPPING = "emnist-balanced-mapping.txt"
CODES = "".join(f"{number} {ord(c)}\n" for number, c in enumerate(CHARACTERS)).encode()  # in it
NAMES = {
    (split, kind): f"emnist-balanced-{split}-{kind}-idx{dimensions}-ubyte"
    for split in ("train", "test")
    for kind, dimensions in (("images", 3), ("labels", 1))
}
HTML_PAGE = b"\n <!DOCTYPE html>\n<html><h1>503 Service Unavailable</h1></html>\n"


def idx(array):
    """Return `array`, images (N, 28, 28) or labels (N,), as the bytes of an IDX file."""
    head = np.array([2048 + array.ndim, *array.shape], ">u4")
    return head.tobytes() + array.astype(np.uint8).tobytes()


def make_arrays(seed=0):
    """Return random arrays, as they lie in the files: {(split, kind): uint8 array}."""
    random, arrays = np.random.default_rng(seed), {}
    for split, count in (("train", 94), ("test", 47)):
        arrays[split, "images"] = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[split, "labels"] = ((np.arange(count) + seed) % 47).astype(np.uint8)
    return arrays


def make_files(seed=0):
    """Return the five files of a data set as {name: bytes}."""
    return {MAPPING: CODES} | {NAMES[key]: idx(a) for key, a in make_arrays(seed).items()}


def pack(files):
    """Return `files` as NIST packs them: {name.gz: gzip bytes}, the mapping as it is."""
    packed = {f"{name}.gz": gzip.compress(files[name], mtime=0) for name in NAMES.values()}
    return {MAPPING: files[MAPPING], **packed}


def make_zip(files):
    """Return a zip file like NIST's: packed files in the folder gzip, among larger ones."""
    others = {f"emnist-{name}.gz": gzip.compress(bytes(range(256)) * 800, 0) for name in "abyz"}
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, content in sorted({**files, **others}.items()):
            archive.writestr(f"gzip/{name}", content)
    return buffer.getvalue()


def write(folder, files):
    """Write `files`, {name: bytes}, into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    """Return what stands in `folder` and below as {relative path: bytes}."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def declare(nb, monkeypatch):
    """Make the notebook take `make_files(0)` for the official files, and `make_files(8)` for the
    reconstructed split."""
    files, slices, digests = make_files(0), {"train": (10, 20), "test": (5, 9)}, {}
    for (split, kind), name in NAMES.items():
        pixels = slice(*(16 + 784 * image for image in slices[split]))
        digests[split, kind] = nb.sha256(files[name][pixels] if kind == "images" else files[name])
    packed, arrays = pack(make_files(8)), make_arrays(8)
    pairs = [(arrays[s, "images"].swapaxes(1, 2), arrays[s, "labels"]) for s in ("train", "test")]
    digest = nb.sha256("".join(nb.data_digest(*pair) for pair in pairs).encode())
    shipped = dict(zip(nb.SHIPPED, map(nb.sha256, packed.values()), strict=True))
    constants = {"OFFICIAL": digests, "OFFICIAL_SLICE": slices, "SHIPPED": shipped}
    for name, value in {**constants, "RECONSTRUCTED": digest}.items():
        monkeypatch.setattr(nb, name, value)


def complaint(error, path):
    """Return the text of a caught error, having checked that it says where, and what was wrong."""
    text = str(error.value)
    assert str(path) in text and "found" in text.partition("expected")[2], text
    return text
