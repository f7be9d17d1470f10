"""Made-up EMNIST files: real IDX bytes, put together without the notebook's code."""

import gzip
import io
import zipfile

import numpy as np

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
MAPPING = "emnist-balanced-mapping.txt"
CODES = "".join(f"{number} {ord(c)}\n" for number, c in enumerate(CHARACTERS)).encode()
NAMES = {
    f"{split}-{kind}": f"emnist-balanced-{split}-{kind}-idx{dimensions}-ubyte"
    for split in ("train", "test")
    for kind, dimensions in (("images", 3), ("labels", 1))
}
HTML_PAGE = b"\n <!DOCTYPE html>\n<html><h1>503 Service Unavailable</h1></html>\n"


def idx(array):
    """Return images (N, 28, 28) or labels (N,) as the bytes of an IDX file."""
    head = np.array([2048 + array.ndim, *array.shape], ">u4")
    return head.tobytes() + array.astype(np.uint8).tobytes()


def make_arrays(seed=0):
    """Return random arrays, as they lie in the files: {key: uint8 array}."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", 94), ("test", 47)):
        images = random.integers(0, 256, (count, 28, 28))
        arrays[f"{split}-images"] = images.astype(np.uint8)
        arrays[f"{split}-labels"] = ((np.arange(count) + seed) % 47).astype(np.uint8)
    return arrays


def make_files(seed=0):
    """Return the five files of a data set as {name: bytes}."""
    arrays = make_arrays(seed)
    return {MAPPING: CODES, **{NAMES[key]: idx(arrays[key]) for key in NAMES}}


def pack(files):
    """Return `files` as NIST packs them: {name.gz: bytes}, the mapping as it is."""
    packed = {MAPPING: files[MAPPING]}
    for name in NAMES.values():
        packed[f"{name}.gz"] = gzip.compress(files[name], mtime=0)
    return packed


def make_zip(files):
    """Return a zip file like NIST's: a folder of packed files, with larger ones."""
    large = gzip.compress(bytes(range(256)) * 800, 0)
    others = {f"emnist-{name}.gz": large for name in "abyz"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted({**files, **others}.items()):
            archive.writestr(f"gzip/{name}", content)
    return buffer.getvalue()


def write(folder, files):
    """Write `files`, {relative path: bytes}, into `folder` and return it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    """Return what stands in `folder` and below as {relative path: bytes}."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
