"""The published models, the README and the committed notebook say the same."""

import html
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import RECONSTRUCTED, ROOT, cells

PRETRAINED = ROOT / "pretrained"
RESULTS = json.loads((PRETRAINED / "results.json").read_text())
RECORDS = json.loads((PRETRAINED / "histories.json").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = [f"{name}_{variant}" for name, model in RESULTS["models"].items()
          for variant in ("without_da", "with_da") if variant in model]  # fmt: skip
LINES = """
import json, keras, numpy
keras.utils.get_file = lambda origin: origin.replace({url!r}, {folder!r})
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


def test_records_are_of_the_published_files(nb):
    """All six models are published; and nothing is told of the machine they were made on."""
    assert set(MODELS) == set(nb.MODELS) <= set(RECORDS)
    for key, record in RECORDS.items():
        assert all((PRETRAINED / name).is_file() for name in record["files"]), key
        assert len(record["history"]) == record["made_from"]["epochs"], key
    for path in PRETRAINED.rglob("*.json"):
        assert not re.search("Traceback|site-packages", json.dumps(json.loads(path.read_bytes())))


def test_what_is_published_is_what_a_full_run_would_compute(nb, monkeypatch):
    """Or it would be computed again."""
    monkeypatch.setattr(nb, "DATA_DIGEST", RESULTS["data"]["digests"])
    trials, pairs = {}, []
    sizes = {"search": nb.FULL["search"], "finals": {"images": None, **nb.FULL["finals"]}}
    for step, size in sizes.items():
        trials[step] = nb.read_json(PRETRAINED / f"tuning/{step}.json")["trials"]
        for each in (trial["made_from"] for trial in trials[step]):
            how = each["network"], each["learning_rate"], True, size["epochs"], size["images"]
            pairs.append((each, nb.provenance("custom", *how)))
    best = max(trials["finals"], key=lambda trial: trial["recall"])["made_from"]
    expected = {"neighbours": list(nb.neighbours(best).values())}
    for name, grid in nb.FULL["rates"].items():
        assert nb.RATES[name] in grid
        expected[f"{name}_rate"] = [nb.provenance(name, {}, rate, True, 4, 8_000) for rate in grid]
    for step, news in expected.items():
        olds = [t["made_from"] for t in nb.read_json(PRETRAINED / f"tuning/{step}.json")["trials"]]
        assert all(any(nb.same(old, new) for old in olds) for new in news), step
        assert all(any(nb.same(old, new) for new in news) for old in olds), step
    rates = {**nb.RATES, "custom": best["learning_rate"]}
    plan = nb.planned({"custom": best["network"]}, rates)
    assert plan.keys() == RECORDS.keys()
    pairs += [(RECORDS[key]["made_from"], plan[key]) for key in RECORDS]
    assert all(nb.same(old, new) for old, new in pairs)
    assert len(pairs) > 60


def test_readme_shows_results_json(nb):
    summary = nb.summary(RESULTS).astype(str)
    block = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.S)[1]
    head, _, *rows = (line.strip("| ").split(" | ") for line in block.strip().splitlines())
    assert (head, rows) == (list(summary), summary.values.tolist())
    found = {key: entry for key, _, entry in nb.entries(RESULTS)}
    pairs = itertools.product(("custom", *nb.OTHERS), nb.TEST_SETS)
    said = [f"{100 * found[f'{name}_with_da'][test]['accuracy']:.1f}" for name, test in pairs]
    assert re.findall(r"\d+\.\d", README.split("**")[1]) == said


def test_committed_notebook_shows_results_json(nb):
    outputs = [output.get("data", {}) for cell in cells("code") for output in cell["outputs"]]
    shown = "\n".join("".join(data.get(kind, "")) for data in outputs for kind in data)
    expected = [*nb.summary(RESULTS).astype(str).values.flat, *nb.conclusions(RESULTS)]
    assert not [text for text in expected if text not in shown]
    verdicts = [html.escape(nb.verdict(entry)) for entry in RESULTS["paired"]]
    tables = "".join("".join(data.get("text/html", "")) for data in outputs)
    assert not [text for text in verdicts if text not in tables]


def test_results_agree_with_each_other(nb):
    """Differences with accuracies; what is read of undistorted images with that of all of them."""
    found = {key: entry for key, _, entry in nb.entries(RESULTS)}
    for key in MODELS:
        assert found[key]["validation_recall"] == RECORDS[key]["validation_recall"], key
    for pair in RESULTS["paired"]:
        first, second = (found[pair[n]][pair["test"]]["accuracy"] for n in ("first", "second"))
        assert pair["difference"] == pytest.approx(first - second, abs=2e-6), pair
        count = pair["gain"] + pair["loss"]
        assert pair["p"] == pytest.approx(nb.stats.binomtest(pair["gain"], count).pvalue), pair
        difference = (pair["gain"] - pair["loss"]) / RESULTS["data"]["test_images"]
        assert pair["difference"] == pytest.approx(difference, abs=1e-6)
    holm = nb.holm([pair["p"] for pair in RESULTS["paired"]])
    assert [pair["p_holm"] for pair in RESULTS["paired"]] == pytest.approx(holm)
    for key, curves in RESULTS["robustness"]["right"].items():
        share = curves["rotation, degrees"][0] / RESULTS["robustness"]["images"]
        assert share == pytest.approx(found[key]["test"]["accuracy"], abs=0.05), key
