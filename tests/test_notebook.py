"""The notebook whole: executed from top to bottom, and as it is committed."""

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, REAL_DATA, ROOT, needs_real_data
from nbclient import NotebookClient

SECTIONS = [
    "0. Setup",
    "1. Data Preparation",
    "2. View Data",
    "3. Model Creation",
    "4. Data Augmentation on test set",
    "5. Downloading Pre-trained Models",
    "6. Comparison among the models",
    "7. Predictions",
]
PRETRAINED = ROOT / "pretrained"


def committed():
    """Return the committed notebook's cells."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def execute(folder, **environment):
    """Execute the notebook alone in `folder` with EMNIST_* set as given; return it executed."""
    shutil.copy(NOTEBOOK, folder / "emnist.ipynb")
    clean = {name: text for name, text in os.environ.items() if not name.startswith("EMNIST_")}
    kernel = {**clean, "MPLBACKEND": "module://matplotlib_inline.backend_inline", **environment}
    book = nbformat.read(folder / "emnist.ipynb", as_version=4)
    client = NotebookClient(book, timeout=3000, resources={"metadata": {"path": str(folder)}})
    client.execute(env=kernel)
    return book


def texts(book):
    """Return all text that the executed notebook shows, as one string."""
    parts = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            parts.append(data.get("text/markdown") or data.get("text/html") or "")
            parts.append(output.get("text", ""))
    return "\n".join(parts)


def assert_clean(cells):
    """Counts 1..N; no error, nothing on stderr, nothing printed, no warning."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] in ("display_data", "execute_result"), output


@contextlib.contextmanager
def server(folder):
    """Serve `folder` on loopback; yield the URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def test_sections_are_numbered_and_in_order():
    prose = "".join(
        "".join(cell["source"]) + "\n" for cell in committed() if cell["cell_type"] == "markdown"
    )
    assert re.findall(r"^## (.+)$", prose, re.M) == SECTIONS


def test_committed_outputs_are_of_one_clean_run():
    assert_clean(committed())
    assert NOTEBOOK.stat().st_size < 3_000_000


def test_committed_notebook_names_no_local_path():
    text = NOTEBOOK.read_text(encoding="utf-8")
    for place in (str(ROOT.parent) + "/", str(Path.home()) + "/", "/tmp/", "../shared"):
        assert place not in text, place


def test_definition_cells_only_define():
    import ast

    allowed = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AugAssign,
        ast.Expr,
        ast.If,
        ast.With,
        ast.Assert,
    )
    for cell in committed():
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "definitions" not in cell["metadata"].get("tags", []):
            continue
        for node in ast.parse(source).body:
            assert isinstance(node, allowed), source[:200]
            assert "display(" not in ast.unparse(node) or isinstance(
                node, ast.FunctionDef | ast.ClassDef
            )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
def test_quick_runs_from_scratch(tmp_path, backend):
    pytest.importorskip(backend)
    source = {"EMNIST_DIR": REAL_DATA} if REAL_DATA else {"EMNIST_DATA_URL": "http://127.0.0.1:9/",
              "EMNIST_NIST_URL": "http://127.0.0.1:9/"}  # fmt: skip
    nowhere = {"EMNIST_MODELS_URL": "http://127.0.0.1:9/"}
    book = execute(tmp_path, EMNIST_PROFILE="quick", KERAS_BACKEND=backend, **source, **nowhere)
    assert backend in texts(book)
    assert_clean(book.cells)
    results = json.loads((tmp_path / "runs/quick/published/results.json").read_text())
    assert set(results["models"]) == {"custom", "resnet50v2", "mobilenetv2"}
    assert all({"with_da", "without_da"} <= set(model) for model in results["models"].values())
    assert (tmp_path / "runs/quick/Comparison.PNG").stat().st_size > 10_000
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"emnist.ipynb", "runs"}, "quick writes to runs/ alone"


def test_alone_with_a_server_as_its_only_source(tmp_path, nb):
    """The default profile in an empty folder: data and models come from a loopback server."""
    site, alone = tmp_path / "site", tmp_path / "alone"
    alone.mkdir()
    nb.write_stand_in(site / "data", train_per_class=4, test_per_class=4, seed=1)
    published = PRETRAINED.is_dir()
    if published:
        shutil.copytree(PRETRAINED, site / "pretrained")
    with server(site) as url:
        book = execute(
            alone,
            EMNIST_DATA_URL=url + "data/",
            EMNIST_ALLOW_UNOFFICIAL="1",
            EMNIST_NIST_URL=url + "none.zip",
            EMNIST_MODELS_URL=url + "pretrained/",
        )
    assert_clean(book.cells)
    text = texts(book)
    assert "the project's space" in text
    assert {path.name for path in alone.iterdir()} <= {"emnist.ipynb", "runs", "data", "pretrained"}
    assert (alone / "data" / "emnist-balanced-test-labels-idx1-ubyte").is_file()
    assert not list((alone / "data").glob(".*")), "no temporary file is left"
    assert published == ("Training with augmentation changes" in text)


@needs_real_data
def test_real_data_are_named_for_what_they_are(nb):
    assert nb.name_of({**nb.read_folder(REAL_DATA), "stand_in": False}) == "the reconstructed split"
