"""Fixtures: the notebook's own definitions, never a copy of them, for all tests."""

import ast
import contextlib
import json
import linecache
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path(os.environ.get("EMNIST_NOTEBOOK", ROOT / "emnist.ipynb"))
RECONSTRUCTED = ROOT / "data" / "reconstructed"
TINY = {"widths": [4, 6, 8], "depths": [1, 1, 2], "stride": 2, "dense": 0}


def cells(kind):
    """Return the committed notebook's cells of a kind, "code" or "markdown"."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def code_cells():
    """Return the sources of the notebook's code cells, in order."""
    return ["".join(cell["source"]) for cell in cells("code")]


def cell_with(text):
    """Return the source of the only code cell in which `text` stands."""
    (source,) = [source for source in code_cells() if text in source]
    return source


def cells_until(text):
    """Return the sources of the code cells up to that in which `text` stands."""
    sources = code_cells()
    return sources[: sources.index(cell_with(text)) + 1]


def is_definition(node):
    """Return whether a statement imports, defines or sets constants, and takes no
    time. The only `try` outside of functions that counts is that around the imports."""
    if isinstance(node, ast.Try):
        return isinstance(node.body[0], ast.Import)
    if isinstance(node, ast.Assign):
        return all(ast.unparse(target).isupper() for target in node.targets)
    kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
    return isinstance(node, kinds)


def run_statements(module, source, name, chosen=lambda node: True):
    """Execute the chosen statements of a cell in `module`, with its lines in
    tracebacks; constants that are made from data of an earlier cell are left out."""
    file = f"<{module.__name__} {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    for node in filter(chosen, ast.parse(source, file).body):
        try:
            exec(compile(ast.Module([node], []), file, "exec"), module.__dict__)
        except NameError:
            if not isinstance(node, ast.Assign):
                raise


def load_notebook(name="notebook"):
    """Return a new module with the notebook's definitions and a few made-up images."""
    module = sys.modules[name] = types.ModuleType(name)
    module.screen = os.dup(2)  # what the cell that imports Keras restores
    for number, source in enumerate(code_cells()):
        run_statements(module, source, f"cell {number}", is_definition)
    module.train_images, module.train_labels = examples(4, seed=0)
    module.val_images, module.val_labels = examples(1, seed=1)
    module.test_images, module.test_labels = examples(2, seed=2)
    module.DATA_DIGEST = "made up"
    return module


def run_cell_with(module, text):
    """Execute the whole cell in which `text` stands."""
    run_statements(module, cell_with(text), f"cell with {text[:20]!r}")


def examples(count, seed):
    """Return `count` noisy copies of each of 47 random pictures, and their labels."""
    clean = np.random.RandomState(42).choice([0.0, 255.0], (47, 7, 7))
    clean = clean.repeat(4, axis=1).repeat(4, axis=2)
    labels = np.tile(np.arange(47), count).astype(np.uint8)
    noise = np.random.RandomState(seed).normal(0, 40, (len(labels), 28, 28))
    return np.clip(clean[labels] + noise, 0, 255).astype(np.uint8), labels


def run_python(*arguments, **options):
    """Run Python with these arguments; return the ended process with its output."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def nb():
    """The notebook's definitions, loaded once."""
    return load_notebook()


@pytest.fixture(scope="session")
def model(nb):
    """The published network that reads pictures."""
    with contextlib.chdir(ROOT):
        return nb.load_model("custom_robust")


@pytest.fixture
def small(nb, tmp_path, monkeypatch):
    """The notebook as a quick run, in an empty folder that it writes below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nb, "PROFILE", "quick")
    monkeypatch.setattr(nb, "QUICK", True)
    monkeypatch.setattr(nb, "RUNS", Path("runs/quick"))
    monkeypatch.setattr(nb, "PUBLISHED", Path("runs/quick/pretrained"))
    return nb
