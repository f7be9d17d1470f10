"""The reader's own picture: what is refused, what must not matter, and what is read."""

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import draw_pictures
import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

PICTURES = sorted(draw_pictures.FOLDER.iterdir())


def published_model():
    """The published custom network with DA."""
    network = keras.models.model_from_json((ROOT / "pretrained/custom_arch.json").read_text())
    network.load_weights(ROOT / "pretrained/custom_with_da.weights.h5")
    return network


@pytest.fixture(scope="session")
def model():
    return published_model()


def encoded(picture, kind="PNG", **options):
    """The bytes of a picture file; an array is a picture, too."""
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


# ---------------------------------------------------------------------------- what is refused


def png_header(width, height):
    """A PNG file that promises a picture of this size and holds next to nothing."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"]
    body = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def paper(texture=0.0, shade=0.0, level=230):
    """A blank page as PNG bytes, with noise and light that falls off to one side."""
    page = level + np.random.RandomState(2).normal(0, 1, (200, 300)) * texture
    return encoded(np.clip(page * np.linspace(1, 1 - shade, 300), 0, 255).astype(np.uint8))


NOISE = np.random.RandomState(1).randint(0, 256, (80, 80), np.uint8)
BAD = {
    "empty.png": (b"", "whole PNG or JPEG picture .* found 0 bytes"),
    "error_page.jpg": (b"<!DOCTYPE html><html>404</html>", "cannot identify image"),
    "other_kind.png": (encoded(NOISE, "GIF"), "PNG or JPEG picture .* cannot identify image"),
    "only_a_start.png": (b"\x89PNG\r\n\x1a\n", "expected a whole PNG or JPEG picture"),
    "cut_off.png": (encoded(NOISE)[:3000], "expected a whole PNG.* truncated"),
    "cut_off.jpg": (encoded(NOISE, "JPEG")[:3000], "expected a whole PNG.* truncated"),
    "large.png": (png_header(8000, 7000), "50 megapixels; found .* 8000 x 7000 pixels"),
    "bomb.png": (png_header(50000, 50000), "50 megapixels; found .*2500000000 pixels"),
    "transparent.png": (encoded(Image.new("RGBA", (50, 50), (9, 9, 9, 0))), "fully transparent"),
    "white.png": (paper(level=255), "found no ink"),
    "black.png": (paper(level=0), "found no ink"),
    "one_pixel.png": (encoded(Image.new("L", (1, 1), 200)), "found no ink"),
    "grainy.png": (paper(texture=6), "found no ink"),
    "shaded.png": (paper(texture=2, shade=0.6), "found no ink"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_named_and_leaves_nothing(nb, name, tmp_path):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    plt.close("all")
    with pytest.raises(ValueError, match=message) as caught:
        nb.predict_image(tmp_path / name, model=None)
    assert str(tmp_path / name) in str(caught.value)
    assert not plt.get_fignums() and [file.name for file in tmp_path.iterdir()] == [name]
    with pytest.raises(FileNotFoundError, match=r"gone.png: expected a PNG.*; found no such file"):
        nb.predict_image(tmp_path / "gone.png", model=None)
    with pytest.raises(FileNotFoundError, match="found a folder"):
        nb.predict_image(tmp_path, model=None)


@pytest.mark.parametrize("scene", draw_pictures.SCENES, ids=lambda scene: scene.name)
def test_the_same_page_with_nothing_on_it_holds_no_character(nb, scene, tmp_path):
    """Every drawn picture again, its texture, printed lines, light and shadow, but no ink."""
    invisible = dataclasses.replace(draw_pictures.PENS[scene.pen], opacity=0)
    draw_pictures.draw_picture(scene, invisible).save(tmp_path / "blank.png")
    with pytest.raises(ValueError, match=r"blank\.png: .*(found no ink|fully transparent)"):
        nb.picture_steps(tmp_path / "blank.png")


@pytest.mark.parametrize("ink", [np.zeros((9, 9)), np.ones((9, 9)), np.zeros((0, 9)), np.arange(9)])
def test_conversion_refuses_what_is_no_ink(nb, ink):
    with pytest.raises(ValueError, match="expected finite ink"):
        nb.to_emnist(ink)


# ------------------------------------------------------------------------ what must not matter


def drawn_r(pen, height=300):
    """An R in some pen, (height, 0.8 height), 0-1: smooth strokes on nothing."""
    rng = np.random.RandomState(0)
    strokes = draw_pictures.write("R", rng, slant=0.1, turn=0)
    shape, centre = (height, height * 4 // 5), (height * 0.4, height * 0.5)
    return draw_pictures.ink_layer(strokes, pen, shape, 0.6 * height, centre, rng)


INK = drawn_r(draw_pictures.PENS["felt"])


def on_paper(ink=INK, paper=240, colour=30):
    """Ink 0-1 as grey levels, uint8."""
    return np.round(paper + (colour - paper) * ink).astype(np.uint8)


def drawing(*colour):
    """The R in a colour on nothing, (H, W, 4)."""
    layers = [np.full(INK.shape, value) for value in colour]
    return np.dstack([*layers, np.round(INK * 255)]).astype(np.uint8)


def crowded():
    """The R small, in a slanting light, with 40 specks and what else a photo shows of a desk."""
    page = np.pad(INK, ((200, 60), (40, 400)))
    for y, x in np.random.RandomState(3).randint(3, [s - 3 for s in page.shape], (40, 2)):
        page[y : y + 2, x : x + 2] = 1
    page[220:420, -90:-70] = 1  # a stroke of the next character
    page[:, -12:] = 1  # the edge of the table
    page[100:135, 400:] = 1  # a bar, heavier than the character, that runs off the picture
    light = np.linspace(1, 0.35, page.shape[1]) * np.linspace(1, 0.8, page.shape[0])[:, None]
    return (on_paper(page) * light).astype(np.uint8)


def turned(flag, undo):
    """A photo that is stored turned, and says so."""
    exif = Image.Exif()
    exif[0x0112] = flag
    return encoded(GREY.transpose(Image.Transpose[undo]), "JPEG", exif=exif)


def with_holes():
    """A photo of which a corner and a piece are cut out."""
    alpha = np.full(INK.shape, 255, np.uint8)
    alpha[:40, :40] = alpha[250:285, 190:225] = 0
    return np.dstack([on_paper(), alpha])


GREY = Image.fromarray(on_paper())
PALETTE = Image.fromarray((INK > 0.5).astype(np.uint8))
PALETTE.putpalette([255, 255, 255, 0, 0, 0])
WIDTH = {width: draw_pictures.Pen((0, 0, 0), width, pressure=0) for width in (0.01, 0.03)}
SAME = {
    **{
        f"colour {ink} on {ground}": on_paper(INK, ground, ink)
        for ground, ink in [(255, 0), (200, 90), (90, 20), (15, 235), (60, 200), (0, 255)]
    },
    **{f"{side} pixels wide": GREY.resize((side, side * 5 // 4)) for side in (120, 480, 2400)},
    **{mode: GREY.convert("RGB").convert(mode) for mode in ("P", "RGB", "LA", "RGBA")},
    "black and white": GREY.point(lambda value: 255 * (value > 128)).convert("1"),
    "16 bits": on_paper().astype(np.uint16) * 257,
    "CMYK": encoded(GREY.convert("CMYK"), "JPEG"),
    "drawn in black": drawing(0, 0, 0),
    "drawn in white": drawing(255, 255, 255),
    "drawn in yellow": drawing(250, 230, 60),
    "palette with a transparent ground": encoded(PALETTE, transparency=0),
    "holes": with_holes(),
    "upside down": turned(3, "ROTATE_180"),
    "on its left side": turned(6, "ROTATE_90"),
    "on its right side": turned(8, "ROTATE_270"),
    "light, specks and neighbours": crowded(),
    **{f"pen {width} wide": on_paper(drawn_r(pen, 600)) for width, pen in WIDTH.items()},
}


@pytest.mark.parametrize("name", SAME)
def test_does_not_matter(nb, name, tmp_path):
    for file, picture in {"plain.png": GREY, "other.png": SAME[name]}.items():
        content = picture if isinstance(picture, bytes) else encoded(picture)
        (tmp_path / file).write_bytes(content)
    plain, other = (
        nb.picture_steps(tmp_path / file)["28 x 28"].astype(float)
        for file in ("plain.png", "other.png")
    )
    difference, limit = np.abs(plain - other).mean(), 10 if name.startswith("pen") else 8
    assert difference <= limit, f"expected within {limit} grey levels; found {difference:.1f}"


def test_a_dot_belongs_to_its_letter(nb):
    path = next(path for path in PICTURES if path.name.startswith("J_dotted"))
    rows = np.flatnonzero(nb.picture_steps(path)["28 x 28"].max(axis=1) > 60)
    assert np.diff(rows).max() > 1, "the dot of the j is gone"


# --------------------------------------------------------------------------------- what is read


class Parrot:
    """A model that always gives the same answer, and remembers what it was asked."""

    def predict_on_batch(self, images):
        self.images = images
        return np.eye(47)[[10]] * 0.7 + np.eye(47)[[36]] * 0.3


@pytest.mark.parametrize("show", [False, True])
def test_answer_and_figure(nb, show):
    model = Parrot()
    plt.close("all")
    answer = nb.predict_image(PICTURES[0], model, top=3, show=show)
    assert [character for character, _ in answer[:2]] == ["A", "a"] and len(answer) == 3
    assert answer[0][1] == pytest.approx(0.7) and isinstance(answer[0][1], float)
    assert model.images.shape == (1, 28, 28, 1) and model.images.max() == 255
    assert [len(plt.figure(number).axes) for number in plt.get_fignums()] == [6] * show
    plt.close("all")


def test_pictures_are_those_that_the_program_draws():
    assert [path.name for path in PICTURES] == sorted(scene.name for scene in draw_pictures.SCENES)
    for scene in draw_pictures.SCENES:
        if scene.name.endswith(".png"):
            with Image.open(draw_pictures.FOLDER / scene.name) as committed:
                drawn = np.asarray(draw_pictures.draw_picture(scene), float)
                assert np.abs(drawn - np.asarray(committed)).mean() < 1


def read_wrong(nb, model, paths):
    """What is read in those pictures whose character is not: {name: answer}."""
    read = {path.name: nb.predict_image(path, model, 1, False)[0] for path in paths}
    return {n: answer for n, answer in read.items() if answer[0] != n.removeprefix("lower_")[0]}


def test_published_model_reads_the_pictures(nb, model):
    wrong = read_wrong(nb, model, PICTURES)
    assert len(PICTURES) - len(wrong) >= 17, f"read wrong: {wrong}"


@pytest.mark.slow
def test_published_model_reads_the_pictures_of_other_hands(nb, model, tmp_path):
    """The committed pictures again, each in five other hands."""
    for scene in draw_pictures.SCENES:
        for seed in range(1, 6):
            name, other = Path(scene.name), dataclasses.replace(scene, seed=seed * 1000)
            draw_pictures.draw_picture(other).save(tmp_path / f"{name.stem}_{seed}{name.suffix}")
    wrong = read_wrong(nb, model, sorted(tmp_path.iterdir()))
    assert len(wrong) <= 5, f"read wrong, of 90: {wrong}"
