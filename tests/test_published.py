"""The published models, the README and the committed notebook say the same."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import NOTEBOOK, RECONSTRUCTED, ROOT

PRETRAINED = ROOT / "pretrained"
RESULTS = json.loads((PRETRAINED / "results.json").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = [(name, variant) for name, model in RESULTS["models"].items()
          for variant in ("without_da", "with_da") if variant in model]  # fmt: skip


def readme_code(mark):
    """Return the README's code block under the comment `mark`."""
    return re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", README, re.S)[1]


def load_by_readme(name, variant):
    """Return lines that load a model as the README says, from the files in pretrained/."""
    code = readme_code("load apart")
    if name == "mobilenetv2":
        code = code[: code.index("model = ")] + readme_code("load whole")
    code = re.sub(r'base = ".*"', "base = ''", code).replace("custom_arch", f"{name}_arch")
    code = re.sub(r"(custom|mobilenetv2)_with_da", f"{name}_{variant}", code)
    return f"import wget\nwget.download = lambda url: {str(PRETRAINED) + os.sep!r} + url\n" + code


def run_clean(code, *arguments, backend="tensorflow"):
    """Run Python code in a process of its own; return the JSON that it prints last."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def test_files(nb, tmp_path_factory):
    """Files with the reconstructed split's test images and labels."""
    images, labels = nb.read_folder(RECONSTRUCTED)["test"]
    assert nb.data_digest(images, labels) == RESULTS["data"]["test_digest"]
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "images.npy", images[..., None])
    np.save(folder / "labels.npy", labels)
    return str(folder / "images.npy"), str(folder / "labels.npy")


CHECK = """
import json, sys
import numpy as np
images, labels = np.load(sys.argv[1]), np.load(sys.argv[2])
{}
print(); print(json.dumps(accuracy))
"""


def assert_reproduced(name, variant, files, backend):
    """The README's lines, in a clean process, give the recorded accuracy."""
    code = load_by_readme(name, variant) + CHECK.format(readme_code("evaluate"))
    record = RESULTS["models"][name][variant]["test"]["accuracy"]
    assert run_clean(code, *files, backend=backend) == pytest.approx(record, abs=0.0005)


def test_readme_lines_reproduce_the_custom_networks_accuracy(test_files):
    assert_reproduced("custom", "with_da", test_files, "tensorflow")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
@pytest.mark.parametrize("name, variant", MODELS)
def test_readme_lines_reproduce_every_accuracy(name, variant, backend, test_files):
    pytest.importorskip(backend)
    assert_reproduced(name, variant, test_files, backend)


def test_sums_are_complete_and_pinned(nb):
    lines = (PRETRAINED / "SHA256SUMS").read_text().splitlines()
    listed = dict(line.split("  ", 1)[::-1] for line in lines)
    files = {path.relative_to(PRETRAINED).as_posix() for path in PRETRAINED.rglob("*")
             if path.is_file()} - {"SHA256SUMS"}  # fmt: skip
    assert set(listed) == files
    assert all(nb.sha256(PRETRAINED / name) == digest for name, digest in listed.items())
    assert nb.sha256(PRETRAINED / "SHA256SUMS") == nb.MODELS_SHA256, "pin the new digest"
    assert all((PRETRAINED / name).stat().st_size < 48_000_000 for name in files)


def test_histories_name_the_published_files():
    records = json.loads((PRETRAINED / "histories.json").read_text())
    for key, record in records.items():
        assert all((PRETRAINED / name).is_file() for name in record["files"]), key
        assert len(record["history"]) == record["made_from"]["epochs"], key
    assert {f"{name}_{variant}" for name, variant in MODELS} <= set(records)


def test_records_tell_nothing_of_the_machine_they_were_made_on():
    for path in PRETRAINED.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        json.loads(text)  # it is whole
        assert "Traceback" not in text and "site-packages" not in text, path


def test_readme_shows_results_json(nb):
    block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.S)[1]
    rows = [line.strip("| ").split(" | ") for line in block.strip().splitlines()[2:]]
    expected = nb.summary(RESULTS).head(8).astype(str).values.tolist()
    assert rows == expected and all(cell for row in rows for cell in row)


def test_committed_notebook_shows_results_json(nb):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = "\n".join("".join(data.get(kind, "")) for data in outputs for kind in data)
    for row in nb.summary(RESULTS).head(8).astype(str).values.tolist():
        assert all(cell in shown for cell in row), row
    for sentence in nb.conclusions(RESULTS):
        assert sentence in shown


def test_results_have_the_promised_keys():
    for model in RESULTS["models"].values():
        assert {"params", "mflops", "images_per_second"} <= set(model)
        for variant in {"without_da", "with_da"} & set(model):
            for test in ("test", "augmented_test"):
                scores = model[variant][test]
                assert {"accuracy", "ci95", "macro_f1", "top3", "nll", "ece"} <= set(scores)
                assert scores["ci95"][0] < scores["accuracy"] < scores["ci95"][1]
    assert RESULTS["generations"] and "reconstructed" in RESULTS["data"]["name"]
