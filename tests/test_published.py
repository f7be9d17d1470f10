"""The published files, the README and the notebook's text say the same."""

import dataclasses
import itertools
import json
import re
import shutil
import subprocess
from unittest.mock import patch

import numpy as np
import pytest
from conftest import RECONSTRUCTED, ROOT, cells, run_cell_with
from idx_files import read, write
from test_data import TRAINING_DIGEST
from test_models import COSTS

PRETRAINED = ROOT / "pretrained"
TESTS = ("test", "augmented_test")
COMPARED = r"(custom|resnet50v2|mobilenetv2)_(with_da|without_da|robust)(_seed\d+)?"
pytestmark = pytest.mark.skipif(
    not (PRETRAINED / "predictions.npz").exists(), reason="not published yet"
)


def read_json(name):
    return json.loads((PRETRAINED / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results():
    return read_json("results.json")


@pytest.fixture(scope="module")
def histories():
    return read_json("histories.json")


@pytest.fixture(scope="module")
def variants(results):
    """The entries of results.json by the keys of their models."""
    found = {}
    for name, model in results["models"].items():
        for variant in model.keys() & {"without_da", "with_da", "robust"}:
            found[f"{name}_{variant}"] = model[variant]
    return found


@pytest.fixture(scope="module")
def published(nb):
    """The notebook with the reconstructed split and the published answers."""
    data = nb.read_emnist(RECONSTRUCTED)
    with np.load(PRETRAINED / "predictions.npz") as arrays:
        predictions = dict(arrays)
    keys = dict.fromkeys(name.split("/")[0] for name in predictions)
    values = {"data": data, "predictions": predictions, "TRAININGS": keys}
    values["test_labels"] = data["test-labels"]
    with patch.multiple(nb, create=True, **values):
        yield nb


def test_sums_are_complete_and_pinned(nb):
    """Every file is listed with its digest, and the digest of the list is pinned."""
    files = read(PRETRAINED)
    sums = files.pop("SHA256SUMS")
    assert nb.sha256(sums) == nb.MODELS_SHA256, "pin the new digest"
    del files["README.md"]
    lines = sums.decode().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    assert listed == {name: nb.sha256(content) for name, content in files.items()}


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="Linux has this program")
def test_only_what_a_run_published_is_listed(nb, tmp_path):
    """By the command of pretrained/README.md; no leftovers of file managers are."""
    published = ["custom_arch.json", "results.json", "predictions.npz", "reader.py"]
    published += ["x.keras", "tuning/search.json", "weights/x.weights.h5"]
    strays = [".DS_Store", "tuning/Thumbs.db", ".ipynb_checkpoints/results.json"]
    strays += ["results.json~", "weights/.partial-x/y.h5", "._x.json", "README.md"]
    folder = tmp_path / "pretrained"
    write(folder, dict.fromkeys([*published, *strays, "SHA256SUMS"], b"x"))
    card = (PRETRAINED / "README.md").read_text()
    (command,) = re.findall(r"^cd pretrained .* > SHA256SUMS$", card, re.M)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    lines = [f"{nb.sha256(b'x')}  {name}\n" for name in published]
    assert (folder / "SHA256SUMS").read_text() == "".join(lines)


def test_scores_follow_from_predictions(published, results, variants):
    """Of the test images that results.json names, to a millionth."""
    data = published.data
    digest = published.data_digest(data["test-images"], data["test-labels"])
    assert results["data"]["test_digest"] == digest
    assert len(variants) == 7
    for key, entry in variants.items():
        for test in TESTS:
            found = published.score(key, test)
            expected = dict(entry[test])
            assert found.pop("ci95") == pytest.approx(expected.pop("ci95"), abs=1e-6)
            assert found == pytest.approx(expected, abs=1e-6), (key, test)
            accuracies = published.seed_accuracies(key, test)
            seeds = 5 if key in ("custom_without_da", "custom_with_da") else 1
            assert len(accuracies) == seeds


@pytest.mark.parametrize("variant", ("without_da", "with_da", "robust"))
def test_validation_scores(published, histories, monkeypatch, variant):
    """The last of the history, but for an answer that another processor may tip."""
    held_out = published.stratified(published.data["train-labels"], 0.1)
    for part in ("images", "labels"):
        held = published.data[f"train-{part}"][held_out]
        monkeypatch.setattr(published, f"val_{part}", held)
    monkeypatch.chdir(ROOT)
    key = f"custom_{variant}"
    found = published.validation_score(published.load_model(key))
    expected = histories[key]["history"][-1]["val_accuracy"]
    assert found == pytest.approx(expected, abs=2e-3)


def test_differences_in_the_text(published):
    """Those of the table, which follow from the predictions, and their p-values."""
    run_cell_with(published, 'method="holm"')
    outputs = str([cell["outputs"] for cell in cells("code")])
    conclusions = " ".join(texts()["conclusions"].split())
    for row, p_value in zip(published.rows, published.corrected, strict=True):
        assert row[3] in outputs and f"<td>{p_value:.2g}</td>" in outputs
        if row[0] == "Custom CNN with DA" and not row[1].startswith("Custom"):
            assert row[3] in conclusions and f"(p = {p_value:.2g})" in conclusions


def test_robustness_begins_at_the_accuracy(published, results):
    """Nothing is changed at strength 0, so the answers there are the published ones."""
    robustness = results["robustness"]
    chosen = published.stratified(published.data["test-labels"], 20)
    assert robustness["images"] == len(chosen) == 940
    assert len(robustness["right"]) == 7
    for key, counts in robustness["right"].items():
        right = int(published.is_right(key, "test")[chosen].sum())
        for kind, (_, strengths) in published.DISTORTIONS.items():
            at_zero = counts[kind][strengths.index(0)]
            assert abs(at_zero - right) <= 2, (key, kind)
            assert max(counts[kind]) <= 940 and len(counts[kind]) == len(strengths)


def test_histories(nb, histories):
    """With augmentation 30 epochs, without it 6; the robust network has its own."""
    for key, entry in histories.items():
        assert len(entry["history"]) == entry["training"]["epochs"], key
        if match := re.fullmatch(COMPARED, key):
            planned = {"with_da": 30, "without_da": 6}.get(match[2])
            assert planned in (None, entry["training"]["epochs"]), key
            assert entry["data"] == TRAINING_DIGEST
            assert all((PRETRAINED / name).is_file() for name in nb.model_files(key))


def test_published_models_load(nb, histories, variants, monkeypatch):
    """All seven of the comparison, and whatever else has both a record and files."""
    monkeypatch.chdir(ROOT)
    for key in histories.keys() | variants.keys():
        if key in variants or (PRETRAINED / nb.model_files(key)[-1]).exists():
            parameters = nb.load_model(key).count_params()
            assert parameters == COSTS[nb.split_key(key)[0]][0], key


def test_what_is_published_is_what_a_full_run_would_train(published, histories):
    """Or it would be trained again."""
    trials = read_json("tuning/finals.json")["trials"]
    best = max(trials, key=lambda record: record["score"])
    with patch.object(published, "best", best, create=True):
        run_cell_with(published, 'custom = Training("custom"')
        run_cell_with(published, 'TRAININGS["mobilenetv2_56px_with_da"]')
    for key, training in published.TRAININGS.items():
        expected = json.loads(json.dumps(dataclasses.asdict(training)))
        assert histories[key]["training"] == expected, key


def texts():
    """Return the README and the notebook's text, {where: text}."""
    prose = ["".join(cell["source"]) for cell in cells("markdown")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (conclusions,) = [text for text in prose if "### What to conclude" in text]
    return {"README": readme, "answer": prose[0], "conclusions": conclusions}


def known_percentages(published, results, variants):
    """Return all percentages that the results hold, as texts such as "90.4"."""
    shares = []
    for test in TESTS:
        shares.append(published.is_right("mobilenetv2_56px_with_da", test).mean())
        for key in ("custom_without_da", "custom_with_da"):
            shares.append(published.seed_accuracies(key, test).mean() / 100)
        for entry in variants.values():
            shares += [entry[test][field] for field in entry[test] if field != "ci95"]
            shares += entry[test]["ci95"]
    for kinds in results["robustness"]["right"].values():
        for counts in kinds.values():
            shares += [count / results["robustness"]["images"] for count in counts]
    return {f"{100 * share:.1f}" for share in shares}


@pytest.mark.parametrize("where", ("README", "answer", "conclusions"))
def test_numbers_in_the_text(published, results, variants, where):
    """Every percentage of one decimal from 60 to 99.9 is one that was measured, every
    number of parameters that of a model; the README tells those of all three."""
    counts = {f"{model['params']:,}" for model in results["models"].values()}
    said = re.findall(r"(\d+(?:,\d{3})+)\s+parameters", texts()[where])
    assert set(said) <= counts
    if where == "README":
        assert not [count for count in counts if count not in texts()[where]]
    pictures = r"## Your own handwriting.*?(?=\n## )"  # measured elsewhere
    unmeasured = rf"```.*?```|https?://\S+|arXiv:\S+|{pictures}"
    text = re.sub(unmeasured, "", texts()[where], flags=re.S)
    said = re.findall(r"(?<![\d.,])([6-9]\d\.\d)(?![\d.])", text)
    known = known_percentages(published, results, variants)
    assert not [number for number in said if number not in known]
    if where != "conclusions":
        assert f"{100 * variants['custom_with_da']['test']['accuracy']:.1f}" in said


def test_chart_and_tables(nb, results, variants):
    """The costs at the top; the accuracies with intervals there and in section 6."""
    chart = (ROOT / "Comparison.PNG").read_bytes()
    assert chart.startswith(b"\x89PNG") and len(chart) > 10_000
    top = "".join(cells("markdown")[1]["source"])
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    shown = ["".join(each.get("data", {}).get("text/html", "")) for each in outputs]
    for key, entry in variants.items():
        accuracies = [nb.percent(entry[test]) for test in TESTS]
        assert all(accuracy in "".join(shown) for accuracy in accuracies), key
        costs = results["models"][nb.split_key(key)[0]]
        row = [nb.title_of(key), f"{costs['params']:,}", f"{costs['mflops']:.0f}"]
        assert f"| {' | '.join(row + accuracies)} |" in top


def test_speeds_in_the_text(results):
    """How many times as fast the custom network is, and the images per second."""
    speeds = results["images_per_second"]
    for name in results["models"]:
        assert f"| {speeds[name]['256']:,.0f} |" in texts()["README"]
    rivals = ("resnet50v2", "mobilenetv2", "mobilenetv2_56px")
    for name, size in itertools.product(rivals, ("1", "256")):
        ratio = speeds["custom"][size] / speeds[name][size]
        said = f"{ratio:.1f}" if ratio < 5 else f"{ratio:.0f}"
        number = rf"\b{re.escape(said)}\b"
        assert re.search(number, texts()["conclusions"]), (size, name)
