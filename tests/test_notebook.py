"""The notebook as a whole: as it is committed, and executed from top to bottom."""

import ast
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, ROOT, cells, cells_until, code_cells, run_python
from idx_files import read
from nbclient import NotebookClient
from servers import Server

SECTIONS = ["Setup", "Data Preparation", "View Data", "Model Creation"]
SECTIONS += ["Data Augmentation on test set", "Downloading Pre-trained Models"]
SECTIONS += ["Comparison among the models", "Predictions"]


def count_lines(source):
    """Return the number of lines of code, without blank lines and docstrings."""
    lines = {n for n, line in enumerate(source.splitlines(), start=1) if line.strip()}
    documented = ast.FunctionDef | ast.ClassDef | ast.Module
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def prose():
    return ["".join(cell["source"]) for cell in cells("markdown")]


def shown(code):
    """Return all text that executed code cells show."""
    parts = []
    for output in (output for cell in code for output in cell.get("outputs", [])):
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/plain", "")]
        parts += [data.get("text/markdown", ""), data.get("text/html", "")]
    return "\n".join("".join(part) for part in parts)


def assert_clean(code):
    """Counts from 1 to N, no error, nothing on standard error, no warning."""
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error", output
        assert output.get("name") != "stderr", output
    assert "Warning" not in shown(code)


def test_sections():
    found = re.findall(r"^## (.+)$", "\n".join(prose()), re.MULTILINE)
    assert found == [f"{number}. {title}" for number, title in enumerate(SECTIONS)]


def test_size():
    sizes = [count_lines(source) for source in code_cells()]
    words = sum(len(text.split()) for text in prose())
    assert sum(sizes) <= 1277
    assert words >= 5 * sum(sizes)
    assert statistics.median(sizes) <= 10
    assert max(sizes) <= 35
    assert NOTEBOOK.stat().st_size <= 1_200_000


def test_text_and_code_are_plain():
    """No `|=` on dictionaries, no picture attached to a text, no placeholder left."""
    for source in code_cells():
        for node in ast.walk(ast.parse(source)):
            changed = isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr)
            assert not changed, ast.unparse(node)
    assert "attachment" not in json.dumps(cells("markdown"))
    text = "\n".join(prose() + code_cells())
    assert not re.findall(r"@@\w*@@|TODO|FIXME|XXX", text)


@pytest.mark.parametrize("command", (["check"], ["format", "--check", "--diff"]))
def test_ruff(command, tmp_path):
    copy = shutil.copy(NOTEBOOK, tmp_path / "emnist.ipynb")
    config = shutil.copy(ROOT / ".ruff.toml", tmp_path / ".ruff.toml")
    done = run_python("-m", "ruff", *command, "--config", config, copy, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_chart_comes_first():
    """The result is shown before the code by which it was found."""
    before = 0
    for cell in cells("code"):
        before += count_lines("".join(cell["source"]))
        if "image/png" in json.dumps(cell["outputs"]):
            break
    assert before <= 15


def test_committed_outputs_are_of_one_clean_run():
    assert_clean(cells("code"))
    assert "the reconstructed split" in shown(cells("code"))
    text = NOTEBOOK.read_text(encoding="utf-8")
    places = f"{ROOT.parent}/", f"{Path.home()}/", "/tmp/", "/home/", "/root/", "../"
    assert not [place for place in places if place in text]


def test_setup_on_jax():
    """On a machine without a graphics card, too."""
    pytest.importorskip("jax")
    then = ["print(HARDWARE)", "keras.utils.set_random_seed(1)"]
    source = "\n".join([*cells_until("HARDWARE = "), *then])
    done = run_python("-c", source, env={**os.environ, "KERAS_BACKEND": "jax"})
    assert done.returncode == 0 and "cores" in done.stdout, done.stderr
    assert done.stderr == "", "TensorFlow's messages are shown"


def execute(folder, **environment):
    """Execute a copy of the notebook in `folder`, with EMNIST_* only as given."""
    shutil.copy(NOTEBOOK, folder / "emnist.ipynb")
    others = {k: v for k, v in os.environ.items() if not k.startswith("EMNIST_")}
    others.pop("MPLBACKEND", None)
    book = nbformat.read(folder / "emnist.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(book, timeout=3000, resources=resources)
    client.execute(env={**others, **environment})
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
def test_quick_run(tmp_path, backend):
    """Every step for real, in a copy of the repository, which is left as it was."""
    pytest.importorskip(backend)
    for folder in ("data", "pretrained"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    before = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    code = execute(tmp_path, EMNIST_PROFILE="quick", KERAS_BACKEND=backend)
    assert_clean(code)
    published = tmp_path / "runs" / "quick" / "pretrained"
    results = json.loads((published / "results.json").read_text())
    variants = {name: set(model) for name, model in results["models"].items()}
    both = {"params", "mflops", "with_da", "without_da"}
    assert variants.pop("custom") == both | {"robust"}
    assert variants == {"resnet50v2": both, "mobilenetv2": both}
    assert (tmp_path / "runs" / "quick" / "Comparison.PNG").exists()
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"emnist.ipynb", "runs", "data", "pretrained"}
    for path, stat in before.items():
        assert path.stat().st_mtime == stat.st_mtime, path


@pytest.mark.slow
def test_alone_with_a_server(tmp_path):
    """The default run in an empty folder downloads the data and models it needs."""
    files = {}
    for folder in ("data", "pretrained"):
        for name, content in read(ROOT / folder).items():
            files[f"{folder}/{name}"] = content
    with Server(files) as server:
        code = execute(tmp_path, EMNIST_URL=server.url)
    assert_clean(code)
    assert "the reconstructed split" in shown(code)
    assert "is left out" not in shown(code)
    written = {path.name for path in tmp_path.iterdir()}
    assert written <= {"emnist.ipynb", "runs", "data", "pretrained"}
    assert not [path for path in tmp_path.rglob(".*") if ".partial" in path.name]
