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
RECORDS = json.loads((PRETRAINED / "histories.json").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = [f"{name}_{variant}" for name, model in RESULTS["models"].items()
          for variant in ("without_da", "with_da") if variant in model]  # fmt: skip
LINES = """
import json, numpy, wget
wget.download = lambda url: url.replace({url!r}, {folder!r})
{load}
images, labels = numpy.load("images.npy"), numpy.load("labels.npy")
{evaluate}
print(); print(json.dumps(accuracy))
"""


@pytest.fixture(scope="session")
def folder(nb, tmp_path_factory):
    """A folder with the reconstructed split's test images and labels."""
    images, labels = nb.read_folder(RECONSTRUCTED)["test"]
    assert nb.data_digest(images, labels) == RESULTS["data"]["test_digest"]
    folder = tmp_path_factory.mktemp("images")
    np.save(folder / "images.npy", images[..., None])
    np.save(folder / "labels.npy", labels)
    return folder


def assert_reproduced(nb, key, folder, backend):
    """The README's lines, in a clean process, give the recorded accuracy."""
    blocks = dict(re.findall(r"<!-- ([\w ]+) -->\n```python\n(.*?)```", README, re.S))
    (name, variant, _), load = nb.parsed(key), blocks["load apart"]
    if name == "mobilenetv2":
        load = load[: load.index("model = ")] + blocks["load whole"]
    load = load.replace("custom_arch", f"{name}_arch")
    load = re.sub(r"(custom|mobilenetv2)_with_da", key, load)
    places = {"url": f"{nb.REPOSITORY}pretrained/", "folder": f"{PRETRAINED}{os.sep}"}
    code = LINES.format(load=load, evaluate=blocks["evaluate"], **places)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
    streams = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, **streams)
    assert done.returncode == 0, done.stderr[-2000:]
    record = RESULTS["models"][name][variant]["test"]["accuracy"]
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(record, abs=0.0005)


def test_readme_lines_reproduce_the_custom_networks_accuracy(nb, folder):
    assert_reproduced(nb, "custom_with_da", folder, "tensorflow")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
@pytest.mark.parametrize("key", MODELS)
def test_readme_lines_reproduce_every_accuracy(nb, key, backend, folder):
    pytest.importorskip(backend)
    assert_reproduced(nb, key, folder, backend)


def test_sums_are_complete_and_pinned(nb):
    sums = PRETRAINED / "SHA256SUMS"
    listed = dict(line.split("  ", 1)[::-1] for line in sums.read_text().splitlines())
    files = [path for path in PRETRAINED.rglob("*") if path.is_file() and path != sums]
    assert listed == {path.relative_to(PRETRAINED).as_posix(): nb.sha256(path) for path in files}
    assert nb.sha256(sums) == nb.MODELS_SHA256, "pin the new digest"
    assert all(path.stat().st_size < 48_000_000 for path in files)


def test_records_are_of_the_published_files():
    """And tell nothing of the machine they were made on."""
    assert set(MODELS) <= set(RECORDS)
    for key, record in RECORDS.items():
        assert all((PRETRAINED / name).is_file() for name in record["files"]), key
        assert len(record["history"]) == record["made_from"]["epochs"], key
    for path in PRETRAINED.rglob("*.json"):
        assert not re.search("Traceback|site-packages", json.dumps(json.loads(path.read_bytes())))


def test_readme_shows_results_json(nb):
    summary = nb.summary(RESULTS).head(8).astype(str)
    block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.S)[1]
    head, _, *rows = (line.strip("| ").split(" | ") for line in block.strip().splitlines())
    assert (head, rows) == (list(summary), summary.values.tolist())


def test_committed_notebook_shows_results_json(nb):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    shown = "\n".join("".join(data.get(kind, "")) for data in outputs for kind in data)
    expected = [*nb.summary(RESULTS).head(8).astype(str).values.flat, *nb.conclusions(RESULTS)]
    assert not [text for text in expected if text not in shown]


def test_results_have_the_promised_keys(nb):
    assert RESULTS["generations"]
    for key, model, entry in nb.entries(RESULTS):
        assert {"params", "mflops"} <= set(model), key
        for test in nb.TEST_SETS:
            assert {"accuracy", "ci95", "macro_f1", "top3", "nll", "ece"} <= set(entry[test]), key
            assert entry[test]["ci95"][0] < entry[test]["accuracy"] < entry[test]["ci95"][1], key
        if key in MODELS:
            assert entry["validation_recall"] == RECORDS[key]["validation_recall"], key


def test_results_agree_with_each_other(nb):
    """Differences with accuracies; what is read of undistorted images with that of all of them."""
    found = {key: entry for key, _, entry in nb.entries(RESULTS)}
    for pair in RESULTS["paired"]:
        first, second = (
            found[pair[which]][pair["test"]]["accuracy"] for which in ("first", "second")
        )
        assert pair["difference"] == pytest.approx(first - second, abs=2e-6), pair
    for key, curves in RESULTS["robustness"]["right"].items():
        share = curves["rotation, degrees"][0] / RESULTS["robustness"]["images"]
        assert share == pytest.approx(found[key]["test"]["accuracy"], abs=0.05), key
