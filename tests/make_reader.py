"""Put the functions of emnist.ipynb that read pictures into pretrained/reader.py.

python tests/make_reader.py

The file reads a photo outside of the notebook. Its imports and its command line are
its own, its functions are the notebook's. Change them in the notebook and run this
again; a test tells when it was forgotten.
"""

import ast
import json

from conftest import NOTEBOOK, ROOT, code_cells

EARLIER = ("SIZE =", "CHARACTERS =", "def draw_grid")  # what earlier sections define
FIRST = "### Your own picture"
LAST = "#### Pictures to try"
READER = ROOT / "pretrained" / "reader.py"


def make_reader():
    """Return the text of reader.py with the functions as they are in the notebook."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    starts = ["".join(cell["source"]).split("\n")[0] for cell in cells]
    earlier = []
    for source in code_cells():
        for node in ast.parse(source).body:
            text = ast.get_source_segment(source, node)
            if text.startswith(EARLIER):
                earlier.append(text)
    section = cells[starts.index(FIRST) : starts.index(LAST)]
    chosen = ["".join(c["source"]) for c in section if c["cell_type"] == "code"]
    text = READER.read_text(encoding="utf-8")
    imports = text[: text.index("SIZE =")]
    command_line = text[text.index("\ndef load_reader") :]
    return imports + "\n\n\n".join([*earlier, *chosen, command_line])


if __name__ == "__main__":
    READER.write_text(make_reader(), encoding="utf-8", newline="\n")
