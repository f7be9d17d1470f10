"""Measure what the notebook's section 7 reads in a folder of real pictures.

    python tests/measure_pictures.py FOLDER

FOLDER holds manifest.csv (path, label, kind) of pictures of one character each,
lines.csv (path, text, characters stand apart) of pictures of several, and blank/
without any. A refusal counts as wrong. Look-alikes (0O 1IL 5S 2Z 9qg Ff) are merged, a
small letter that EMNIST does not tell from its capital may be read either way.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import ROOT, load_notebook

LOOK_ALIKES = str.maketrans("OILSZqgF", "0115299f")
CASELESS = str.maketrans("OILSZQG", "0115299")
# The columns of the two tables; "path" counts the pictures, sure is from 90 % on.
MEASURES = {"path": "count", "right": "mean", "merged": "mean", "digits": "mean"}
MEASURES |= {"refused": "sum", "sure": "sum", "merged of sure": "mean"}
OF_TEXTS = {"path": "count", "several told": "sum", "whole": "sum"}
OF_TEXTS |= {"wrong": "sum", "length": "sum"}


def rows_of(path):
    """The rows of a CSV file as dictionaries."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def attempt(read, path, model, **options):
    """What a function of the notebook reads in a picture, or a text why it does not."""
    try:
        return read(path, model, show=False, **options)
    except (OSError, ValueError) as error:
        return f"(refused: {error})"


def read_picture(nb, path, model):
    """The probabilities of all characters, {} if the picture is refused."""
    answer = attempt(nb.predict_image, path, model, top=len(nb.CHARACTERS))
    return {} if isinstance(answer, str) else dict(answer)


def most_probable(answer):
    """The most probable character of an answer, "" if there is none."""
    return max(answer, key=answer.get, default="")


def edits(read, text):
    """The least number of characters to insert, delete or replace."""
    row = list(range(len(text) + 1))
    for first in read:
        new = [row[0] + 1]
        for index, second in enumerate(text):
            replaced = row[index] + (first != second)
            new.append(min(row[index + 1] + 1, new[-1] + 1, replaced))
        row = new
    return row[-1]


def measure_characters(nb, folder, model):
    """Read every picture of manifest.csv; print the table."""
    rows = rows_of(folder / "manifest.csv")
    for row in rows:
        start = time.perf_counter()
        answer = read_picture(nb, folder / row["path"], model)
        row["seconds"] = time.perf_counter() - start
        label = row["label"] if row["label"] in nb.CHARACTERS else row["label"].upper()
        best = most_probable(answer)
        row["right"] = best == label
        row["merged"] = best.translate(LOOK_ALIKES) == label.translate(LOOK_ALIKES)
        row["refused"] = not answer
        if label.isdigit():
            digits = {key: value for key, value in answer.items() if key.isdigit()}
            row["digits"] = float(most_probable(digits) == label)
        row["sure"] = answer.get(best, 0) >= 0.9
        if row["sure"]:
            row["merged of sure"] = float(row["merged"])
    rows = pd.DataFrame(rows)
    both = pd.concat([rows.assign(kind="all"), rows])
    print(both.groupby("kind").agg(MEASURES).round(3).to_string())
    median, worst = rows["seconds"].quantile((0.5, 1))
    print(f"seconds a picture: median {median:.2f}, worst {worst:.2f}")


def measure_texts(nb, folder, model):
    """Read every picture of lines.csv; print each and the totals."""
    rows = rows_of(folder / "lines.csv")
    for row in rows:
        path, text = folder / row["path"], row["text"]
        row["several told"] = "read_text" in attempt(nb.predict_image, path, model)
        among = "0123456789" if text.replace(" ", "").isdigit() else None
        read = attempt(nb.read_text, path, model, among=among)
        wanted = "".join(text.split()).upper().translate(CASELESS)
        row["length"] = len(wanted)
        row["wrong"] = edits("".join(read.split()).upper().translate(CASELESS), wanted)
        row["whole"] = row["wrong"] == 0
        print(f"    {row['path']} {text!r}: {read!r}, {row['wrong']} wrong")
    table = pd.DataFrame(rows).groupby("characters stand apart").agg(OF_TEXTS)
    table["error rate"] = table["wrong"] / table["length"]
    print(table.round(3).to_string())


def main(folder):
    """Measure both models that read pictures."""
    nb = load_notebook()
    nb.PROFILE = "full"  # takes models as they are
    nb.PUBLISHED = ROOT / "pretrained"
    for key in ("custom_robust", "custom_with_da"):
        model = nb.load_model(key)
        model.predict_on_batch(np.zeros((1, 28, 28, 1), np.float32))  # compiled
        print(f"{key} on {folder}")
        measure_characters(nb, folder, model)
        blanks = sorted((folder / "blank").glob("*.*"))
        refused = [not read_picture(nb, path, model) for path in blanks]
        print(f"blank pictures refused: {sum(refused)} of {len(refused)}")
        measure_texts(nb, folder, model)
        right = []
        for path in sorted((ROOT / "tests" / "pictures").glob("*.*")):
            read = most_probable(read_picture(nb, path, model))
            right.append(read == path.name.removeprefix("lower_")[0])
        print(f"drawn pictures: {sum(right)} of {len(right)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
