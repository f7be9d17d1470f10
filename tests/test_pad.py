"""The drawing pad: its Python side, its cell, and the whole of it in a real browser.

pytest tests/test_pad.py -m slow     draws in Chromium, and leaves runs/pad.png
python tests/test_pad.py             makes tests/pad.png of it, which the notebook shows
"""

import base64
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from unittest.mock import Mock

import draw_pictures
import nbformat
import numpy as np
import pytest
from conftest import ROOT, cell_with, cells
from PIL import Image, ImageDraw
from test_reader import encoded

SHOT = ROOT / "runs" / "pad.png"
STILL = ROOT / "tests" / "pad.png"
ODD = {
    "nothing": [],
    "a dot": [[[140, 140]]],
    "a line across": [[[0, 140], [280, 140]]],
    "a scribble": [np.random.RandomState(0).randint(0, 281, (60, 2)).tolist()],
}


def drawn(character, seed):
    """A character's strokes as drawn by hand: lists of [x, y] in the pad's pixels."""
    rng = np.random.RandomState(seed)
    size = rng.uniform(120, 220)
    slant = rng.uniform(-0.1, 0.25)
    strokes = draw_pictures.write(character, rng, slant, turn=rng.uniform(-6, 6))
    return [(140 + size * stroke[::12]).tolist() for stroke in strokes]


def pad_cell(draw):
    """The source of the cell that shows the pad, switched on or off."""
    return cell_with("draw = False").replace("False", str(draw), 1)


def answered(nb, network, strokes):
    """Return the pixels (28, 28, 4) and lines of the answer to strokes on the pad."""
    canvas = Image.new("RGBA", (280, 280))
    pen = ImageDraw.Draw(canvas)
    for points in strokes:
        pen.line([tuple(point) for point in points], fill="black", width=10)
        for x, y in points:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill="black")
    url = "data:image/png;base64," + base64.b64encode(encoded(canvas)).decode()
    widget = Mock()
    nb.reader_model = network
    nb.answer_drawing(widget, url, [])
    (answer,) = widget.send.call_args.args
    pixels = np.reshape(answer["pixels"], (28, 28, 4))
    assert (pixels[..., 3] == 255).all() and np.ptp(pixels[..., :3], axis=2).max() == 0
    return pixels, answer["bars"].removesuffix("<br>").split("<br>")


def test_nine_in_ten_characters_are_read(nb, model):
    merged = dict(zip(nb.CHARACTERS, nb.MERGED, strict=True))
    wrong = {}
    for character, seed in itertools.product(draw_pictures.STROKES, range(3)):
        _, lines = answered(nb, model, drawn(character, seed))
        if merged[lines[0][0]] != merged[character]:
            wrong[character, seed] = lines[0]
    assert len(wrong) <= 3 * len(draw_pictures.STROKES) / 10, f"read wrong: {wrong}"


@pytest.mark.parametrize("name", ODD)
def test_odd_drawings_get_an_answer(nb, model, name):
    pixels, lines = answered(nb, model, ODD[name])
    assert pixels[..., 0].any() == (name != "nothing")
    assert lines == ["nothing drawn"] if name == "nothing" else len(lines) == 5


def test_only_who_draws_needs_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)  # importing it fails
    exec(pad_cell(draw=False), {})
    with pytest.raises(ImportError, match="anywidget"):
        exec(pad_cell(draw=True), {})


def test_notebook_shows_a_still_picture_of_the_pad():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    assert "](tests/pad.png)" in text and STILL.stat().st_size < 40_000
    picture = Image.open(STILL).convert("L")
    assert min(picture.size) >= 280 and np.ptp(np.asarray(picture)) > 200


SETUP = f"""
import os, sys
os.chdir({str(ROOT)!r})
sys.path.insert(0, "tests")
from conftest import load_notebook
notebook = load_notebook()
globals().update(vars(notebook))
reader_model = notebook.reader_model = load_model("custom_robust")
most_probable(reader_model, np.zeros((28, 28), np.uint8))  # compiled, as by cells before
"""
RUN_ALL = "jupyterapp.commands.execute('notebook:run-all-cells')"
WATCH = """
window.answers = 0;
window.pad = document.querySelector("canvas");
window.bars = pad.parentElement.querySelector("div");
pad.scrollIntoView({ block: "center" });
new MutationObserver(() => { answers += 1; }).observe(bars, { childList: true });
"""


def wait_for(page, condition):
    """Return as soon as `condition()` is true; errors count as not yet."""
    ui = pytest.importorskip("selenium.webdriver.support.ui")
    ui.WebDriverWait(page, 120, 0.1, [Exception]).until(lambda _: condition())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A Chromium that shows the pad in JupyterLab, as Selenium's driver."""
    chromium = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium or no chromedriver on the PATH")
    for package in ("anywidget", "jupyterlab"):
        pytest.importorskip(package)
    webdriver = pytest.importorskip("selenium.webdriver")
    folder = tmp_path_factory.mktemp("lab")
    pad_cells = [*map(nbformat.v4.new_code_cell, (SETUP, pad_cell(True)))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = nbformat.v4.new_notebook(cells=pad_cells, metadata=kernel)
    nbformat.write(book, folder / "pad.ipynb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"""{sys.executable} -m jupyterlab --no-browser --ip=127.0.0.1 --port={port}
        --allow-root --IdentityProvider.token=secret --LabApp.expose_app_in_browser=True
        --LabApp.news_url=None --ServerApp.root_dir={folder} --ServerApp.port_retries=0"""
    names = ("CONFIG", "DATA", "RUNTIME")
    home = {f"JUPYTER_{name}_DIR": str(folder / name) for name in names}
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in f"""headless no-sandbox disable-gpu no-first-run disable-sync window-size=1400,1000
        disable-background-networking user-data-dir={folder}/user""".split():
        options.add_argument(f"--{name}")
    with (folder / "log").open("w") as log:
        streams = {"stdout": log, "stderr": log}
        server = subprocess.Popen(command.split(), env=os.environ | home, **streams)
    url = f"http://127.0.0.1:{port}/lab/tree/pad.ipynb?token=secret"
    status = """const [book] = jupyterapp.shell.widgets("main");
        jupyterapp.shell.activateById(book.id);
        return book.sessionContext.session.kernel.status"""
    try:
        with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
            wait_for(browser, lambda: browser.get(url) or True)
            wait_for(browser, lambda: browser.execute_script(status) == "idle")
            browser.execute_script(RUN_ALL)
            wait_for(browser, lambda: browser.find_element("tag name", "canvas"))
            browser.execute_script(WATCH)
            yield browser
    finally:
        server.terminate()
        server.wait(30)


def draw_on(page, strokes):
    """Clear the pad, draw; return the last answer's lines and its number."""
    page.find_element("xpath", "//button[text()='clear']").click()
    shown = "return bars.innerText"
    wait_for(page, lambda: page.execute_script(shown) == "nothing drawn")
    page.execute_script("window.answers = 0")
    corner = page.find_element("tag name", "canvas").rect
    webdriver = pytest.importorskip("selenium.webdriver")
    for stroke in strokes:
        chain = webdriver.ActionChains(page, duration=15)
        pointer = chain.w3c_actions.pointer_action
        for number, (x, y) in enumerate(np.clip(stroke, 1, 279)):
            pointer.move_to_location(round(corner["x"] + x), round(corner["y"] + y))
            if not number:
                pointer.pointer_down()
        pointer.pointer_up()
        chain.perform()
    time.sleep(1)
    return page.execute_script("return [bars.innerText.trim().split('\\n'), answers]")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ODD, "7", "e", "A"])
def test_drawings_in_a_browser_are_read(page, name):
    answer, answers = draw_on(page, ODD[name] if name in ODD else drawn(name, 0))
    assert answer == ["nothing drawn"] if name == "nothing" else len(answer) == 5
    assert "Traceback" not in page.find_element("tag name", "body").text
    if name not in ODD:
        assert answer[0].startswith(name)
        assert answers == len(drawn(name, 0)), "expected one after each stroke"
        SHOT.parent.mkdir(exist_ok=True)
        SHOT.write_bytes(page.find_element("xpath", "//canvas/..").screenshot_as_png)


if __name__ == "__main__":  # 32 colours are enough
    picture = Image.open(SHOT).convert("RGB").quantize(32)
    picture.save(STILL, "PNG", optimize=True)
