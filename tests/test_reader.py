"""Reading drawn handwriting: what is read, what is refused, what must not matter."""

import dataclasses
import io
import itertools
import shutil
import struct
from types import SimpleNamespace

import draw_pictures
import matplotlib.pyplot as plt
import measure_pictures
import numpy as np
import pytest
from conftest import load_notebook, run_cell_with, run_python
from idx_files import write
from make_reader import READER, make_reader
from PIL import Image

PICTURES = sorted(draw_pictures.FOLDER.iterdir())
PLAIN = draw_pictures.Scene("A.png", (320, 240), "felt", 1, 0.5, light=0.2, noise=2)


def encoded(picture, kind="PNG", **options):
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def draw(text="A", pen=None, **changes):
    """A page with a character or several, 320 x 240 pixels if nothing else is said."""
    scene = dataclasses.replace(PLAIN, **{"name": f"{text[0]}.png", **changes})
    pen = dataclasses.replace(draw_pictures.PENS[scene.pen], **(pen or {}))
    return draw_pictures.draw_picture(scene, pen, text if len(text) > 1 else None)


def saved(picture, folder, name="picture.png"):
    path = folder / name
    path.write_bytes(picture if isinstance(picture, bytes) else encoded(picture))
    return path


def alike(character):
    return character.translate(measure_pictures.LOOK_ALIKES)


LARGE = {"size": (800, 600)}
SQUARED = {"squared": True, "ruled": 0.07, **LARGE}
PLACES = itertools.product((0.15, 0.5, 0.85), (0.24, 0.5, 0.76))
READABLE = {
    **{f"at {x}, {y}": ("R", {"centre": (x, y)}) for x, y in PLACES},
    "filling the picture": ("A", {"height": 0.97}),
    "small on a large page": ("3", {"size": (1200, 900), "height": 0.1}),
    "on grainy paper": ("K", {"texture": 9, "noise": 7}),
    "on ruled paper": ("G", {"ruled": 0.08, "turn": 2, **LARGE}),
    "on squared paper": ("4", SQUARED),
    "thin on squared paper": ("7", {"pen": {"width": 0.02}, "turn": -1, **SQUARED}),
    "with a thin pen": ("e", {"pen": {"width": 0.012}, **LARGE}),
    "with a thick pen": ("8", {"pen": {"width": 0.2}}),
    "in chalk": ("n", {"pen": {"colour": (230, 230, 220)}, "paper": (40, 60, 50)}),
    "in half a shadow": ("d", {"shadow": 0.5}),
    "24 pixels high": ("2", {"size": (24, 24), "height": 0.75}),
}


@pytest.mark.parametrize("name", READABLE)
def test_one_character_is_read(nb, model, name, tmp_path):
    character, scene = READABLE[name]
    path = saved(draw(character, **scene), tmp_path)
    answer = nb.predict_image(path, model, show=False)
    assert alike(answer[0][0]) == alike(character), answer


PAPER = {
    "an empty page": {},
    "an empty grainy page": {"texture": 9, "noise": 7},
    "a shadow": {"shadow": 0.5, "noise": 1},
    "ruled paper": {"ruled": 0.1, **LARGE},
    "squared paper": {"ruled": 0.1, "squared": True, **LARGE},
}
MARKS = {  # rows and columns of a page of 240 x 320 pixels
    "a line across": np.s_[118:122],
    "a line below": np.s_[200:203, 20:300],
    "a margin line": np.s_[:, 90:93],
    "the edge of a table": np.s_[:22],
    "its edge at the side": np.s_[:, :30],
    "a stroke at the edge": np.s_[:20, 100:106],
}
BLANK = {name: draw(pen={"opacity": 0}, **scene) for name, scene in PAPER.items()}
BLANK["white"] = Image.new("L", (300, 200), 255)
BLANK["one pixel"] = Image.new("L", (1, 1), 200)
for name, place in MARKS.items():
    BLANK[name] = np.array(BLANK["an empty page"])
    BLANK[name][place] = 60


@pytest.mark.parametrize("name", BLANK)
def test_a_page_without_a_character_is_refused(nb, name, tmp_path):
    path = saved(BLANK[name], tmp_path)
    for read in (nb.predict_image, nb.read_text):
        with pytest.raises(ValueError, match=f"^{path}: expected .*; found ") as error:
            read(path, model=None)
        assert name not in MARKS or "no ink" not in str(error.value)


@pytest.mark.parametrize("name", [*MARKS][1:])
def test_what_lies_beside_a_character_is_passed_over(nb, model, name, tmp_path):
    page = np.array(draw("A"))
    page[MARKS[name]] = 60
    answer = nb.predict_image(saved(page, tmp_path), model, show=False)
    assert answer[0][0] == "A"


@pytest.mark.parametrize("scene", draw_pictures.SCENES, ids=lambda scene: scene.name)
def test_the_same_page_with_nothing_on_it_is_refused(nb, scene, tmp_path):
    invisible = dataclasses.replace(draw_pictures.PENS[scene.pen], opacity=0)
    path = saved(draw_pictures.draw_picture(scene, invisible), tmp_path)
    with pytest.raises(ValueError, match=r"picture\.png: expected .*; found "):
        nb.predict_image(path, model=None)


WORDS = {"HEAR": 0.25, "78": 0.4, "Read 234\nHand 78": 0.2, "474\nHAt": 0.3}


@pytest.mark.parametrize("text", WORDS)
def test_several_characters(nb, model, text, tmp_path):
    picture = draw(text, size=(900, 560), height=WORDS[text], pen={"width": 0.04})
    path = saved(picture, tmp_path)
    found = f"^{path}: expected a character; found several.*read_text"
    with pytest.raises(ValueError, match=found):
        nb.predict_image(path, model)
    plt.close("all")
    read = nb.read_text(path, model)
    assert alike(read) == alike(text)
    assert len(plt.get_fignums()) == 1
    plt.close("all")
    if text == "78":
        assert nb.read_text(path, model, among="78", show=False) == text


def test_a_dot_belongs_to_its_letter(nb, model):
    path = draw_pictures.FOLDER / "J_dotted_pencil.jpg"
    assert nb.read_text(path, model, show=False) == "J"
    rows = np.flatnonzero(nb.picture_steps(path)["28 x 28"].max(axis=1) > 60)
    assert np.diff(rows).max() > 1, "the dot of the j is gone"


def said(probabilities, characters):
    """A model that answers these probabilities, {character: probability}."""
    answer = np.zeros((1, 47))
    for character, probability in probabilities.items():
        answer[0, characters.index(character)] = probability
    return SimpleNamespace(predict_on_batch=lambda images: answer)


@pytest.mark.parametrize("show", [False, True])
def test_answer_figure_and_among(nb, show):
    plt.close("all")
    probabilities = {"A": 0.5, "g": 0.3, "9": 0.15, "4": 0.05}
    model = said(probabilities, nb.CHARACTERS)
    answer = nb.predict_image(PICTURES[0], model, top=2, show=show)
    assert answer == [("A", pytest.approx(0.5)), ("g", pytest.approx(0.3))]
    assert [len(plt.figure(n).axes) for n in plt.get_fignums()] == [5] * show
    plt.close("all")
    answer = nb.predict_image(PICTURES[0], model, show=False, among="0123456789")
    assert answer[:2] == [("9", pytest.approx(0.75)), ("4", pytest.approx(0.25))]
    for among, unknown in (("19é", "é"), ("", "")):
        found = f"among: expected .*; found '{unknown}'"
        for read in (nb.predict_image, nb.read_text):
            with pytest.raises(ValueError, match=found):
                read(PICTURES[0], model, show=False, among=among)


INK = np.asarray(draw("R", mode="L", size=(240, 300), height=0.6, light=0, noise=0))
INK = (255 - INK.astype(float)).clip(40, 220) / 180 - 40 / 180
GREY = Image.fromarray((240 - 210 * INK).astype(np.uint8))
PALETTE = GREY.quantize(2)


def turned(flag, undo):
    """A photo that is stored turned, and says so."""
    exif = Image.Exif()
    exif[0x0112] = flag
    return encoded(GREY.transpose(undo), "JPEG", exif=exif)


def drawing(colour):
    """The R in a colour, with a transparent ground."""
    alpha = np.round(INK * 255)
    return np.dstack([Image.new("RGB", GREY.size, colour), alpha]).astype(np.uint8)


SAME = {
    **{kind: encoded(GREY, kind) for kind in ("JPEG", "BMP", "TIFF", "GIF", "WEBP")},
    **{mode: GREY.convert("RGB").convert(mode) for mode in ("P", "RGB", "LA", "RGBA")},
    "black and white": GREY.point(lambda value: 255 * (value > 128)).convert("1"),
    "16 bits": np.asarray(GREY).astype(np.uint16) * 257,
    "CMYK": encoded(GREY.convert("CMYK"), "JPEG"),
    "two frames": encoded(GREY, "GIF", save_all=True, append_images=[PALETTE]),
    "light on dark": Image.fromarray((20 + 220 * INK).astype(np.uint8)),
    **{f"drawn in {name}": drawing(name) for name in ("black", "white", "gold")},
    "a transparent palette": encoded(PALETTE, transparency=PALETTE.getpixel((0, 0))),
    "upside down": turned(3, Image.Transpose.ROTATE_180),
    "on its left side": turned(6, Image.Transpose.ROTATE_90),
    **{f"{w} pixels wide": GREY.resize((w, w * 5 // 4)) for w in (120, 2400)},
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_does_not_matter(nb, name, tmp_path):
    seen = []
    for picture in (GREY, SAME[name]):
        path = saved(picture, tmp_path)
        seen.append(nb.picture_steps(path)["28 x 28"].astype(float))
    difference = np.abs(seen[0] - seen[1]).mean()
    assert difference <= 8, f"expected within 8 grey levels; found {difference:.1f}"


def gif_header(width, height):
    """A GIF file that promises a picture of this size and holds next to nothing."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + bytes(3)


NOISE = np.random.RandomState(1).randint(0, 256, (80, 80), np.uint8)
BAD = {
    "empty.png": (b"", "cannot identify image"),
    "other_kind.png": (encoded(NOISE, "PPM"), "cannot identify image"),
    "cut_off.png": (encoded(NOISE)[:3000], "truncated"),
    "cut_off.jpg": (encoded(NOISE, "JPEG")[:3000], "truncated"),
    "photo.heic": (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC.*export"),
    "large.gif": (gif_header(8000, 8000), "8000 x 8000 pixels"),
    "bomb.gif": (gif_header(50000, 50000), "pixels"),
    "clear.png": (encoded(Image.new("RGBA", (50, 50), (9, 9, 9, 0))), "transparent"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_and_leaves_nothing(nb, name, tmp_path):
    content, found = BAD[name]
    path = saved(content, tmp_path, name)
    plt.close("all")
    for read in (nb.predict_image, nb.read_text):
        with pytest.raises(ValueError, match=f"^{path}: expected .*; found .*{found}"):
            read(path, model=None)
    assert not plt.get_fignums()
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_no_file_and_a_path_from_home(nb, tmp_path, monkeypatch):
    missing = {tmp_path / "gone.png": "no such file", tmp_path: "a folder"}
    for path, found in missing.items():
        with pytest.raises(FileNotFoundError, match=f"^{path}: .*; found {found}"):
            nb.predict_image(path, model=None)
    monkeypatch.setenv("HOME", str(draw_pictures.FOLDER.parent))
    assert "28 x 28" in nb.picture_steps(f"~/pictures/{PICTURES[0].name}")


MEASURE = """
import re, sys, reader
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
reader.picture_steps(sys.argv[1])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind, side", [("JPEG", 14000), ("PNG", 7700)])
def test_a_huge_picture_takes_little_memory(nb, kind, side, tmp_path):
    GREY.convert("RGB").resize((side, side)).save(tmp_path / "huge", kind)
    shutil.copy(READER, tmp_path)
    done = run_python("-c", MEASURE, "huge", cwd=tmp_path)
    assert int(done.stdout) < 300_000, "kilobytes more than Keras takes"


def test_conversion_refuses_what_is_no_ink(nb):
    for ink in (np.zeros((9, 9)), np.ones((9, 9)), np.zeros((0, 9)), np.arange(9)):
        with pytest.raises(ValueError, match=r"expected .*ink"):
            nb.to_emnist(ink)


def test_geometry_of_the_conversion(nb):
    """A square fills 45 of the 56 pixels of a scan, which is blurred and sampled."""
    image = nb.to_emnist(np.pad(np.full((90, 90), 255.0), 50))
    edge = [0, 4, 127, 250, *[254] * 20, 217, 37, 0, 0]
    assert np.minimum(image[14], 254).tolist() == edge


def test_drawn_pictures_are_read(nb, model):
    names = sorted(scene.name for scene in draw_pictures.SCENES)
    assert [path.name for path in PICTURES] == names
    wrong = []
    for path in PICTURES:
        answer = nb.predict_image(path, model, top=1, show=False)[0]
        if answer[0] != path.name.removeprefix("lower_")[0]:
            wrong.append((path.name, answer))
    assert len(wrong) <= 1, wrong


def test_reader_file_is_the_notebooks():
    assert READER.read_text(encoding="utf-8") == make_reader(), "run make_reader.py"


def test_reader_file_runs(tmp_path):
    cases = [
        [draw_pictures.FOLDER / "4_pencil_dim.jpg", "--among", "0123456789"],
        [draw_pictures.TEXT_PICTURE],
        [saved(BLANK["white"], tmp_path)],
    ]
    done = [run_python(READER, *case) for case in cases]
    assert [process.returncode for process in done] == [0, 0, 1], done
    assert done[0].stdout.startswith("4 ")
    assert done[1].stdout.strip() == draw_pictures.TEXT
    assert "picture.png: expected" in done[2].stderr


def test_stray_and_broken_files(model, tmp_path, monkeypatch, capsys):
    """Each costs its own place, and hidden files are not looked at."""
    nb = load_notebook("strays")
    nb.models = {nb.READER: model}
    strays = dict.fromkeys((".DS_Store", "._2.jpg", "Thumbs.db", "x.png"), b"stray")
    shutil.copy(PICTURES[0], write(tmp_path / "tests" / "pictures", strays))
    monkeypatch.chdir(tmp_path)
    run_cell_with(nb, "example = Path(")
    run_cell_with(nb, "panels = []")
    assert [title[0] for title in nb.titles[1::2]] == [PICTURES[0].name[0]]
    assert len(nb.panels) == 2
    left_out = capsys.readouterr().out
    assert "x.png" in left_out and ".DS_Store" not in left_out
