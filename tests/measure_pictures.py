"""Measure what the notebook's section 7 reads in a folder of real pictures.

    python tests/measure_pictures.py FOLDER [--model custom_robust]

FOLDER holds manifest.csv (path, label, kind) of pictures of one character each, and may
hold lines.csv (path, text, characters stand apart) of pictures of several and blank/
without any. A refusal counts as wrong. Look-alikes (0O 1IL 5S 2Z 9qg Ff) are merged, a
small letter that EMNIST does not tell from its capital may be read either way. Not run
by CI: the pictures are not the project's to ship.
"""

import argparse
import csv
import re
import sys
import time
from pathlib import Path

import keras
import numpy as np
from conftest import ROOT, load_notebook

LOOK_ALIKES = str.maketrans("OILSZqgF", "0115299f")
CASELESS = str.maketrans("OILSZQG", "0115299")


def load_model(key):
    """Load the published custom network `key`."""
    published = ROOT / "pretrained"
    architecture = (published / "custom_arch.json").read_text()
    model = keras.models.model_from_json(architecture)
    model.load_weights(published / "weights" / f"{key}.weights.h5")
    return model


def rows_of(path):
    """The rows of a CSV file as dictionaries, or none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def canonical(label, characters):
    """The character of EMNIST that a label stands for."""
    return label if label in characters else label.upper()


def read_picture(nb, path, model):
    """Read one picture: the probabilities of all characters, or why it was refused."""
    try:
        answer = nb.predict_image(path, model, top=len(nb.CHARACTERS), show=False)
    except (OSError, ValueError) as error:
        return {}, str(error)
    return dict(answer), ""


def edits(read, text):
    """The least number of characters to insert, delete or replace."""
    row = list(range(len(text) + 1))
    for count, first in enumerate(read, 1):
        new = [count]
        for index, second in enumerate(text):
            new.append(
                min(row[index + 1] + 1, new[-1] + 1, row[index] + (first != second))
            )
        row = new
    return row[-1]


def measure_characters(nb, folder, model):
    """Read every picture of manifest.csv; print the table."""
    results, seconds = [], []
    for row in rows_of(folder / "manifest.csv"):
        start = time.perf_counter()
        answer, reason = read_picture(nb, folder / row["path"], model)
        seconds.append(time.perf_counter() - start)
        label = canonical(row["label"], nb.CHARACTERS)
        best = max(answer, key=answer.get, default="")
        digits = {letter: value for letter, value in answer.items() if letter.isdigit()}
        results.append(
            {
                "path": row["path"], "kind": row["kind"], "label": label, "read": best,
                "source": Path(row["path"]).parts[0], "reason": reason,
                "right": best == label,
                "merged": best.translate(LOOK_ALIKES) == label.translate(LOOK_ALIKES),
                "digit": max(digits, key=digits.get, default="") == label,
                "sure": answer.get(best, 0) >= 0.9,
            }
        )  # fmt: skip

    def share(name, chosen):
        return f"{np.mean([result[name] for result in chosen]):.3f}" if chosen else "-"

    print(
        f"{'':16} pictures sources  right merged digits refused  sure, of those merged"
    )
    kinds = sorted({result["kind"] for result in results})
    for kind in ["all", *kinds]:
        chosen = [result for result in results if kind in ("all", result["kind"])]
        digits = [result for result in chosen if result["label"].isdigit()]
        sure = [result for result in chosen if result["sure"]]
        refused = sum(bool(result["reason"]) for result in chosen)
        sources = len({result["source"] for result in chosen})
        columns = f"{share('right', chosen)}  {share('merged', chosen)}"
        columns += f"  {share('digit', digits)}"
        print(
            f"{kind:16} {len(chosen):8} {sources:7}  {columns} {refused:7} "
            f"{len(sure):5} {share('merged', sure)}"
        )
    print(
        f"seconds a picture: median {np.median(seconds):.2f}, worst {max(seconds):.2f}"
    )
    return results


def measure_texts(nb, folder, model):
    """Read every picture of lines.csv; print each and the totals."""
    rows = rows_of(folder / "lines.csv")
    told = {"yes": 0, "no": 0}
    whole = wrong = total = 0
    for row in rows:
        path, text, apart = (
            folder / row["path"],
            row["text"],
            row["characters stand apart"],
        )
        told[apart] += "read_text" in read_picture(nb, path, model)[1]
        among = "0123456789" if re.fullmatch(r"[\d ]+", text) else None
        try:
            read = nb.read_text(path, model, among=among, show=False)
        except (OSError, ValueError) as error:
            read = f"(refused: {error})"
        wanted = "".join(text.split()).upper().translate(CASELESS)
        count = edits("".join(read.split()).upper().translate(CASELESS), wanted)
        if apart == "yes":
            whole += count == 0
            wrong += count
            total += len(wanted)
        print(f"    {row['path']} (apart: {apart}) {text!r}: {read!r}, {count} wrong")
    apart = sum(row["characters stand apart"] == "yes" for row in rows)
    print(
        f"several characters told: {told['yes']} of {apart} apart, "
        f"{told['no']} of the others"
    )
    print(
        f"texts apart: {whole} of {apart} whole, error rate {wrong / max(1, total):.3f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="custom_robust")
    parser.add_argument("--wrong", action="store_true", help="list what is read wrong")
    options = parser.parse_args()
    if not (options.folder / "manifest.csv").is_file():
        sys.exit(f"{options.folder}: expected a folder with manifest.csv; found none")
    nb = load_notebook()
    model = load_model(options.model)
    model.predict_on_batch(np.zeros((1, 28, 28, 1), np.float32))  # compiled
    print(f"{options.model} on {options.folder}")
    results = measure_characters(nb, options.folder, model)
    blanks = sorted((options.folder / "blank").glob("*.*"))
    refused = [bool(read_picture(nb, path, model)[1]) for path in blanks]
    print(f"blank pictures refused: {sum(refused)} of {len(refused)}")
    measure_texts(nb, options.folder, model)
    drawn = sorted((ROOT / "tests" / "pictures").glob("*.*"))
    answers = [read_picture(nb, path, model)[0] for path in drawn]
    right = [
        max(answer, key=answer.get, default="") == path.name.removeprefix("lower_")[0]
        for path, answer in zip(drawn, answers, strict=True)
    ]
    print(f"drawn pictures: {sum(right)} of {len(right)}")
    if options.wrong:
        for result in results:
            if not result["merged"]:
                print(
                    "   ", *(result[key] for key in ("path", "label", "read", "reason"))
                )


if __name__ == "__main__":
    main()
