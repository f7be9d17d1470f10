"""The notebook whole: as it is committed, and executed from top to bottom."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, RECONSTRUCTED, ROOT, cells, code_cells, load_notebook
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from servers import Server

SECTIONS = ["Setup", "Data Preparation", "View Data", "Model Creation"]
SECTIONS += ["Data Augmentation on test set", "Downloading Pre-trained Models"]
SECTIONS += ["Comparison among the models", "Predictions"]
LINES = 1380  # of code: 1,300 and the drawing pad's 80
NOWHERE = "http://127.0.0.1:9/"
URLS = ("DATA_URL", "NIST_URL", "RECONSTRUCTED_URL", "MODELS_URL")


def size(source):
    """Return the number of lines of code: not blank, docstrings not counted."""
    lines = {number for number, line in enumerate(source.splitlines(), 1) if line.strip()}
    for node in ast.walk(ast.parse(source)):
        documented = ast.FunctionDef, ast.ClassDef, ast.Module
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def execute(folder, **environment):
    """Execute the notebook alone in `folder` with EMNIST_* set as given; return it executed."""
    shutil.copy(NOTEBOOK, folder / "emnist.ipynb")
    clean = {name: text for name, text in os.environ.items() if not name.startswith("EMNIST_")}
    kernel = {**clean, "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}
    book = nbformat.read(folder / "emnist.ipynb", as_version=4)
    client = NotebookClient(book, timeout=3000, resources={"metadata": {"path": str(folder)}})
    client.execute(env=kernel)
    return book


def texts(cells):
    """Return all text that executed cells show, as one string."""
    parts = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        parts += [data.get("text/markdown", ""), data.get("text/html", ""), output.get("text", "")]
    return "\n".join("".join(part) for part in parts)


def assert_clean(cells):
    """Counts 1..N; no error, nothing on stderr, no warning."""
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
    assert "Warning" not in texts(cells)


def test_sections_are_numbered_and_in_order():
    prose = "".join("".join(cell["source"]) + "\n" for cell in cells("markdown"))
    assert re.findall(r"^## (.+)$", prose, re.M) == [f"{n}. {s}" for n, s in enumerate(SECTIONS)]


def test_it_is_short_and_the_lesson_comes_first():
    sizes = [size(source) for source in code_cells()]
    assert sum(sizes) <= LINES
    assert len(sizes) <= 90 and max(sizes) <= 40
    drawn = [n for n, c in enumerate(cells("code")) if "image/png" in json.dumps(c["outputs"])]
    assert sum(sizes[: drawn[0] + 1]) <= 60, "the result's chart"
    assert sum(sizes[: drawn[1] + 1]) <= 250, "the first characters"
    assert NOTEBOOK.stat().st_size < 2_000_000


def test_committed_outputs_are_of_one_clean_run():
    assert_clean(cells("code"))
    text = texts(cells("code"))
    assert "the reconstructed split" in text
    said = r"^(.+): measured here and recorded, accuracies differ by (\S+) at most\.$"
    gaps = {title: float(gap) for title, gap in re.findall(said, text, re.M)}
    assert set(gaps) == {"Test set", "Augmented test set"}
    assert all(gap <= 0.0005 for gap in gaps.values()), gaps
    places = (str(ROOT.parent) + "/", str(Path.home()) + "/", "/tmp/", "../")
    assert not [place for place in places if place in NOTEBOOK.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
def test_quick_runs_from_scratch(tmp_path, backend):
    pytest.importorskip(backend)
    (tmp_path / "data").mkdir()
    shutil.copytree(RECONSTRUCTED, tmp_path / "data" / "reconstructed")
    servers = {f"EMNIST_{name}": NOWHERE for name in URLS}
    book = execute(tmp_path, EMNIST_PROFILE="quick", KERAS_BACKEND=backend, **servers)
    assert_clean([cell for cell in book.cells if cell.cell_type == "code"])
    results = json.loads((tmp_path / "runs/quick/pretrained/results.json").read_text())
    assert set(results["models"]) == {"custom", "resnet50v2", "mobilenetv2"}
    assert all({"with_da", "without_da"} <= set(model) for model in results["models"].values())
    assert (tmp_path / "runs/quick/Comparison.PNG").stat().st_size > 10_000
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"emnist.ipynb", "runs", "data"}, "quick writes to runs/ alone"


@pytest.mark.slow
def test_alone_with_a_server_as_its_only_source(tmp_path):
    """The default profile in an empty folder: data and models come from a loopback server."""
    files = {f"data/{path.name}": path.read_bytes() for path in RECONSTRUCTED.iterdir()}
    models = [path for path in (ROOT / "pretrained").rglob("*") if path.is_file()]
    files |= {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in models}
    with zipfile.ZipFile(other := io.BytesIO(), "w") as archive:
        archive.writestr("gzip/other.gz", b"not these")
    with Server(files | {"gzip.zip": other.getvalue()}) as server:
        places = [server.url + name for name in ("none", "gzip.zip", "data", "pretrained/")]
        names = [f"EMNIST_{name}" for name in URLS]
        book = execute(tmp_path, **dict(zip(names, places, strict=True)))
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert_clean(code)
    assert "the reconstructed split" in texts(code)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"emnist.ipynb", "runs", "data", "pretrained"}
    left = [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert not left, "no temporary file is left"


def test_without_any_source_one_clear_error_within_a_minute(tmp_path):
    begin = time.monotonic()
    with pytest.raises(CellExecutionError) as caught:
        execute(tmp_path, **{f"EMNIST_{name}": NOWHERE for name in URLS})
    assert "expected data; found none" in str(caught.value)
    assert "EMNIST_DIR" in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert time.monotonic() - begin < 60


def test_unknown_profile_is_refused():
    command = [sys.executable, "-c", "\n".join(code_cells()[:5])]
    environment = {**os.environ, "EMNIST_PROFILE": "fast"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert "expected pretrained, quick or full; found 'fast'" in done.stderr


def test_settings(monkeypatch):
    urls = {
        f"{name}_URL": f"https://{name}" for name in ("DATA", "NIST", "RECONSTRUCTED", "MODELS")
    }
    expected = {"PROFILE": "quick", "EMNIST_DIR": "folder", "MODELS_SHA256": "12ab", **urls}
    for name, value in {**expected, "TRAIN": " finals,lenet5_with_da, "}.items():
        monkeypatch.setenv(name if name == "EMNIST_DIR" else f"EMNIST_{name}", value)
    other = vars(load_notebook("other"))
    assert {name: other[name] for name in expected} == expected
    assert other["ONLY"] == {"finals", "lenet5_with_da"} and other["BUDGET"] is other["QUICK"]
