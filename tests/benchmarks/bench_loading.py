"""Time the reading of EMNIST's training images, next to the loader of the original project.

    pip install python-mnist
    EMNIST_DIR=path/to/emnist python tests/benchmarks/bench_loading.py [repeats]

Prints a Markdown table: the median seconds of 5 repeats (or as many as asked for) to read the
training images and labels of EMNIST_DIR into NumPy arrays, from gzipped and from plain files, with
the notebook's own functions and with `python-mnist`, a parser in pure Python. Processor seconds do
not count what other programs take; the last column is their ratio. The plain files are unpacked
into a temporary folder first, files are warm in the page cache, and what the two loaders return is
compared, so a fast wrong answer does not count.
"""

import functools
import gzip
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import load_notebook


def python_mnist():
    """Return the class MNIST of `python-mnist`, or end with a word on how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compares texts with `is`
            from mnist import MNIST
    except ImportError:
        raise SystemExit(
            "python-mnist is needed for the comparison: pip install python-mnist"
        ) from None
    return MNIST


def read_with_notebook(nb, folder):
    """Read the training images, upright, and labels as `read_folder` does."""
    paths = {kind: nb.find_file(folder, nb.FILES["train", kind]) for kind in nb.MAGIC}
    images, labels = (nb.parse_idx(nb.read_bytes(paths[kind]), kind, paths[kind]) for kind in paths)
    return np.ascontiguousarray(images.swapaxes(1, 2)), labels


def read_with_python_mnist(MNIST, folder, packed, upright):
    """Read the same with `python-mnist`, and make arrays of its lists."""
    loader = MNIST(str(folder))
    loader.select_emnist("balanced")
    loader.gz, loader.emnistRotate = packed, upright
    images, labels = loader.load_training()
    return np.array(images, np.uint8).reshape(-1, 28, 28), np.array(labels, np.uint8)


def write_folders(nb, source, target):
    """Write the training files of `source` gzipped and plain; return the two folders."""
    folders = {True: Path(target) / "gz", False: Path(target) / "plain"}
    for folder in folders.values():
        folder.mkdir()
    for kind in nb.MAGIC:
        name = nb.FILES["train", kind]
        path = nb.find_file(source, name)
        plain = nb.read_bytes(path)
        (folders[False] / name).write_bytes(plain)
        packed = path.read_bytes() if path.suffix == ".gz" else gzip.compress(plain)
        (folders[True] / f"{name}.gz").write_bytes(packed)
    return folders


def measure(readers, repeats):
    """Return the median (seconds, processor seconds) of every reader.

    `readers`: {row: (function without arguments, what it must return)}. They take turns, so that
    another load on the machine meets all of them alike.
    """
    seconds = {row: [] for row in readers}
    for _ in range(repeats):
        for row, (read, expected) in readers.items():
            begin = time.perf_counter(), time.process_time()
            found = read()
            end = time.perf_counter(), time.process_time()
            seconds[row].append(np.subtract(end, begin))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)
            del found
    return {row: np.median(times, axis=0) for row, times in seconds.items()}


def main():
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if not os.environ.get("EMNIST_DIR"):
        raise SystemExit("EMNIST_DIR: expected a folder with the EMNIST files; found it not set")
    MNIST, nb = python_mnist(), load_notebook()
    with tempfile.TemporaryDirectory() as target:
        folders = write_folders(nb, os.environ["EMNIST_DIR"], target)
        upright = read_with_notebook(nb, folders[False])
        as_stored = upright[0].swapaxes(1, 2), upright[1]
        readers = {}
        for packed, folder in folders.items():
            files = "gzipped" if packed else "plain"
            read = functools.partial(read_with_notebook, nb, folder)
            readers["this notebook", files, "yes"] = read, upright
            for turned, expected in (("yes", upright), ("no", as_stored)):
                read = functools.partial(
                    read_with_python_mnist, MNIST, folder, packed, turned == "yes"
                )
                readers["python-mnist", files, turned] = read, expected
        medians = measure(readers, repeats)
    print(f"Reading {len(upright[1]):,} training images and labels, median of {repeats}:\n")
    print("| loader | files | turned upright | seconds | processor seconds | times as long |")
    print("|---|---|---|---:|---:|---:|")
    for (loader, files, turned), (seconds, processor) in medians.items():
        ratio = processor / medians["this notebook", files, "yes"][1]
        print(f"| {loader} | {files} | {turned} | {seconds:.2f} | {processor:.2f} | {ratio:.0f} |")


if __name__ == "__main__":
    main()
