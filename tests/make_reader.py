"""Put pretrained/reader.py together from the cells of emnist.ipynb that read pictures.

python tests/make_reader.py

The file reads a photo outside of the notebook. Change its functions in the notebook
and run this again; a test tells when it was forgotten.
"""

import ast
import json

from conftest import NOTEBOOK, ROOT

EARLIER = ("SIZE =", "CHARACTERS =", "def draw_grid")  # what earlier sections define
FIRST = "### Your own picture"
LAST = "#### Pictures to try"
HEADER = '''"""Read handwritten characters in a picture: reader.py my_photo.jpg

Made by tests/make_reader.py from the cells of emnist.ipynb; change them there.
"""

import argparse
import math
import sys
from pathlib import Path

import keras
import numpy as np
from scipy import ndimage

try:
    import matplotlib.pyplot as plt
except ImportError:
    plt = None  # needed for figures only, as with show=True
'''
FOOTER = '''
def load_reader():
    """Load the network that the notebook reads pictures with, from beside this file."""
    folder = Path(__file__).resolve().parent
    model = keras.models.model_from_json((folder / "custom_arch.json").read_text())
    model.load_weights(folder / "weights" / "custom_robust.weights.h5")
    return model


def main():
    """Read the picture that the command line names and print the answer."""
    parser = argparse.ArgumentParser(description="Read handwritten characters.")
    parser.add_argument("picture", help="a photo or scan")
    parser.add_argument("--among", help="the possible characters, as in 0123456789")
    parser.add_argument("--text", action="store_true", help="read several characters")
    arguments = parser.parse_args()
    path = arguments.picture
    try:
        *_, character, lines = find_writing(path)
        if arguments.text or is_text(lines, character.shape[0]):
            print(read_text(path, load_reader(), arguments.among, show=False))
        else:
            answer = predict_image(path, load_reader(), 5, False, arguments.among)
            for letter, probability in answer:
                print(f"{letter} {probability:.1%}")
    except (OSError, ValueError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
'''


def make_reader():
    """Return the text of reader.py: its imports, what it needs, the cells, a main."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    starts = ["".join(cell["source"]).split("\n")[0] for cell in cells]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    earlier = []
    for source in ("".join(cell["source"]) for cell in code):
        for node in ast.parse(source).body:
            text = ast.get_source_segment(source, node)
            if text.startswith(EARLIER):
                earlier.append(text)
    chosen = cells[starts.index(FIRST) : starts.index(LAST)]
    sources = ["".join(cell["source"]) for cell in chosen if cell in code]
    return "\n\n\n".join([HEADER, *earlier, *sources, FOOTER])


if __name__ == "__main__":
    path = ROOT / "pretrained" / "reader.py"
    path.write_text(make_reader(), encoding="utf-8", newline="\n")
