"""Fixtures: the notebook's own code, loaded from its definition cells, never a copy of it."""

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
REAL_DATA = os.environ.get("EMNIST_DIR")
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason="EMNIST_DIR is not set")


def definition_cells():
    """Return the sources of the cells that only define things (tagged so), in order."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells
            if "definitions" in cell["metadata"].get("tags", [])]  # fmt: skip


def load_notebook(name="notebook"):
    """Execute the definition cells in one new module and return it.

    The configuration is read from the environment, so set `EMNIST_*` before.
    """
    module = types.ModuleType(name)
    sys.modules[name] = module
    for number, source in enumerate(definition_cells()):
        file = f"<{name} cell {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile(source, file, "exec"), module.__dict__)
    return module


def examples(count, seed):
    """Return `count` noisy copies of each of 47 random pictures, and labels: easily learnt."""
    noise = np.random.RandomState(seed)
    clean = np.random.RandomState(42).choice([0.0, 255.0], (47, 7, 7)).repeat(4, 1).repeat(4, 2)
    labels = np.tile(np.arange(47), count).astype(np.uint8)
    noisy = clean[labels] + noise.normal(0, 40, (len(labels), 28, 28))
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def untimed(history):
    """Return a history without the seconds."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


@pytest.fixture(scope="session")
def nb():
    """The notebook's definitions, loaded once."""
    return load_notebook()


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty folder as the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def published_custom(nb):
    """The published custom model with DA, loaded from pretrained/ as section 5 does."""
    folder = ROOT / "pretrained"
    published = nb.Published(folder, None, nb.sha256(folder / "SHA256SUMS"))
    return nb.load_model(published, "custom", "with_da")
