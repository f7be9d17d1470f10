"""The published models, the README and the committed notebook say the same."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import NOTEBOOK, REAL_DATA, ROOT, needs_real_data

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
    if name == "mobilenetv2":
        code = "import keras, numpy as np, wget\nbase = ''\n" + readme_code("load whole")
        code = code.replace("mobilenetv2_with_da", f"mobilenetv2_{variant}")
    else:
        code = re.sub(r'base = ".*"', "base = ''", readme_code("load apart"))
        code = code.replace("custom_with_da", f"{name}_{variant}")
        code = code.replace("custom_arch", f"{name}_arch")
    return f"import wget\nwget.download = lambda url: {str(PRETRAINED) + os.sep!r} + url\n" + code


def run_clean(code, *arguments, backend=None):
    """Run Python code in a process of its own; return the JSON that it prints last."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if backend:
        environment["KERAS_BACKEND"] = backend
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def inputs_file(nb, tmp_path_factory):
    """A .npy file with the fixed inputs."""
    path = tmp_path_factory.mktemp("inputs") / "inputs.npy"
    np.save(path, nb.fixed_inputs()[..., None].astype("float32"))
    return str(path)


PREDICT = """
import json, sys
images = np.load(sys.argv[1])
print(); print(json.dumps(model.predict(images, verbose=0).astype(float).tolist()))
"""


@pytest.mark.parametrize("name, variant", MODELS)
def test_readme_lines_reproduce_recorded_outputs(name, variant, inputs_file):
    found = run_clean(load_by_readme(name, variant) + PREDICT, inputs_file)
    np.testing.assert_allclose(found, RESULTS["fixed_outputs"][f"{name}_{variant}"], atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name, variant", MODELS)
def test_the_same_on_jax(name, variant, inputs_file):
    pytest.importorskip("jax")
    found = run_clean(load_by_readme(name, variant) + PREDICT, inputs_file, backend="jax")
    np.testing.assert_allclose(found, RESULTS["fixed_outputs"][f"{name}_{variant}"], atol=2e-3)


@needs_real_data
@pytest.mark.parametrize("name, variant", MODELS)
def test_readme_lines_reproduce_recorded_accuracy(name, variant, nb, tmp_path):
    data = nb.read_folder(REAL_DATA)
    images, labels = data["test"]["images"], data["test"]["labels"]
    if nb.sha256(images.tobytes() + labels.tobytes()) != RESULTS["data"]["test_digest"]:
        pytest.skip("EMNIST_DIR holds other test images than the record's")
    np.save(tmp_path / "images.npy", images[..., None])
    np.save(tmp_path / "labels.npy", labels)
    code = (
        load_by_readme(name, variant)
        + "\nimport json, sys\nimages, labels = np.load(sys.argv[1]), np.load(sys.argv[2])\n"
        + readme_code("evaluate")
        + "\nprint(); print(json.dumps([loss, accuracy]))"
    )
    _, accuracy = run_clean(code, str(tmp_path / "images.npy"), str(tmp_path / "labels.npy"))
    record = RESULTS["models"][name][variant]["test"]["accuracy"]
    assert accuracy == pytest.approx(record, abs=0.001)


def test_sums_are_complete_and_pinned(nb):
    lines = (PRETRAINED / "SHA256SUMS").read_text().splitlines()
    listed = dict(line.split("  ", 1)[::-1] for line in lines)
    files = {path.relative_to(PRETRAINED).as_posix() for path in PRETRAINED.rglob("*")
             if path.is_file()} - {"SHA256SUMS"}  # fmt: skip
    assert set(listed) == files
    assert all(nb.sha256(PRETRAINED / name) == digest for name, digest in listed.items())
    assert nb.sha256(PRETRAINED / "SHA256SUMS") == nb.PUBLISHED_DIGEST, "pin the new digest"
    assert all((PRETRAINED / name).stat().st_size < 48_000_000 for name in files)


def test_records_tell_nothing_of_the_machine_they_were_made_on():
    for path in PRETRAINED.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        json.loads(text)  # it is whole
        assert "Traceback" not in text and "site-packages" not in text, path


def test_readme_shows_results_json(nb):
    block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.S)[1]
    expected = nb.table(nb.result_rows(RESULTS), nb.RESULT_HEADER).data
    assert expected in block
    assert RESULTS["generation"] in block and RESULTS["data"]["name"] in block


def test_committed_notebook_shows_results_json(nb):
    shown = "\n".join(
        "".join(output.get("data", {}).get("text/markdown", ""))
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        for output in cell.get("outputs", [])
    )
    assert shown.count(nb.table(nb.result_rows(RESULTS), nb.RESULT_HEADER).data) == 2
    assert "**differs**" not in shown
    for sentence in (
        nb.conclusions(RESULTS).data.splitlines() if "BIG_PARAMETERS" in vars(nb) else []
    ):
        assert sentence in shown


def test_results_have_the_promised_keys():
    for model in RESULTS["models"].values():
        assert {"params", "mflops"} <= set(model)
        for variant in ("without_da", "with_da"):
            for test in ("test", "augmented_test"):
                scores = model[variant][test]
                assert {"accuracy", "ci95", "macro_f1", "top3", "nll", "ece"} <= set(scores)
                assert scores["ci95"][0] < scores["accuracy"] < scores["ci95"][1]


def test_custom_model_reads_the_stand_in(nb):
    images, labels = nb.draw_stand_in(40, seed=3)
    published = nb.Published(PRETRAINED, None, nb.sha256(PRETRAINED / "SHA256SUMS"))
    model = nb.load_model(published, "custom", "with_da")
    assert model.count_params() <= 1_159_121
    assert (nb.predict(model, images).argmax(1) == labels).mean() >= 0.75
