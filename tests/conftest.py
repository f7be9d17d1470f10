"""Fixtures: the notebook's own definitions, never a copy of them, and what several files need."""

import ast
import json
import linecache
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "emnist.ipynb"
RECONSTRUCTED = ROOT / "data" / "reconstructed"
TINY = {"widths": [4, 6, 8], "depths": [1, 1, 2], "stride": 2, "dense": 0, "dropout": 0.2}


def cells(kind):
    """Return the committed notebook's cells of a kind, "code" or "markdown"."""
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def code_cells():
    """Return the sources of the notebook's code cells, in order."""
    return ["".join(cell["source"]) for cell in cells("code")]


def defines(node):
    """Return whether a statement imports, defines or sets a constant, and takes no time. The only
    `try` outside of functions and loops is that around the imports."""
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [part.id for part in ast.walk(ast.Tuple(targets)) if isinstance(part, ast.Name)]
        return all(name.isupper() for name in names)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Try)


def run_cell(module, source, number=0, chosen=lambda node: True):
    """Execute the chosen statements of a cell in `module`, with its lines in tracebacks."""
    file = f"<{module.__name__} cell {number}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    body = [node for node in ast.parse(source, file).body if chosen(node)]
    exec(compile(ast.Module(body, []), file, "exec"), module.__dict__)


def load_notebook(name="notebook"):
    """Return a new module with the notebook's definitions and a few made-up images as its data."""
    module = sys.modules[name] = types.ModuleType(name)
    module.splits = {"train": examples(4, 0), "validation": examples(1, 1)}
    module.versions, module.screen = {"backend": "none"}, os.dup(2)  # what it restores
    for number, source in enumerate(code_cells()):
        run_cell(module, source, number, defines)
    return module


def run_cell_with(module, text):
    """Execute the whole cell in which `text` stands."""
    (source,) = [source for source in code_cells() if text in source]
    run_cell(module, source)


def examples(count, seed):
    """Return `count` noisy copies of each of 47 random pictures, and labels: easily learnt."""
    clean = np.random.RandomState(42).choice([0.0, 255.0], (47, 7, 7)).repeat(4, 1).repeat(4, 2)
    labels = np.tile(np.arange(47), count).astype(np.uint8)
    noisy = clean[labels] + np.random.RandomState(seed).normal(0, 40, (len(labels), 28, 28))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def untimed(record):
    """Return a list of dictionaries without the seconds, which no two runs share."""
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in record]


def arrays(net):
    """Return a network's weights as bytes, to be compared to the last bit."""
    return [weight.tobytes() for weight in net.get_weights()]


def shrink(nb, put=setattr):
    """Let `nb` compute everything itself, with a tiny budget, below the current folder."""
    budget = {"batch": 46, "images": {}, "seeds": {"with_da": 2}, "rates": {}}
    budget |= {"search": {"trials": 3, "images": 94, "epochs": 1}, "finals": {"epochs": 2}}
    budget["epochs"] = dict.fromkeys(nb.BUDGET["epochs"], 2)
    changed = {"PROFILE": "quick", "ONLY": set(), "BUDGET": budget, "RUN": Path("runs/quick")}
    for name, value in {**changed, "PUBLISH": Path("runs/quick/pretrained")}.items():
        put(nb, name, value)


@pytest.fixture(scope="session")
def nb():
    """The notebook's definitions, loaded once."""
    return load_notebook()


@pytest.fixture
def small(nb, tmp_path, monkeypatch):
    """The notebook with a tiny budget, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    shrink(nb, monkeypatch.setattr)
    return nb
