"""The reader's own picture: what is refused, what must not matter, and what is read."""

import dataclasses
import io
import struct
import warnings
import zlib
from pathlib import Path

import draw_pictures
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

PRETRAINED = Path(__file__).parent.parent / "pretrained"
PICTURES = sorted((Path(__file__).parent / "pictures").iterdir())
READ_AT_LEAST = 16  # of the 18 committed pictures, by the published custom model


@pytest.fixture(scope="module")
def ink():
    """An R in felt pen, (300, 240), 0-1: smooth strokes on nothing."""
    rng = np.random.RandomState(0)
    strokes = draw_pictures.write("R", rng, slant=0.1, turn=0)
    pen = draw_pictures.PENS["felt"]
    return draw_pictures.ink_layer(strokes, pen, (300, 240), 180, (120, 150), rng)


def on_paper(ink, paper=240, colour=30):
    """Ink 0-1 as grey levels, uint8."""
    return np.round(paper + (colour - paper) * ink).astype(np.uint8)


def encoded(picture, kind="PNG", **options):
    """The bytes of a picture file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG file that promises a picture of this size and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def assert_alike(one, other, limit=6):
    """Two images (28, 28) differ by at most `limit` grey levels on average."""
    difference = np.abs(one.astype(float) - other).mean()
    assert difference <= limit, f"expected within {limit} grey levels; found {difference:.1f}"


def seen(nb, picture, tmp_path, kind="PNG", **options):
    """What the model is shown of a Pillow image that is saved and read again."""
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(picture, kind, **options))
    return nb.picture_steps(path)["28 x 28"]


# ---------------------------------------------------------------------------- what is refused


def damaged(kind, keep):
    """The first part of a good picture file."""
    noise = np.random.RandomState(1).randint(0, 256, (80, 80), np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    return whole[: int(len(whole) * keep)]


def paper(texture=0.0, shade=0.0, level=230):
    """A blank page as PNG bytes, with noise and light that falls off to one side."""
    noise = np.random.RandomState(2).normal(0, 1, (200, 300)) * texture
    page = (level + noise) * np.linspace(1, 1 - shade, 300)
    return encoded(Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)))


BAD = {
    "empty.png": (b"", "found an empty file"),
    "text.png": (b"not a picture at all", "begins with b'not a pi'"),
    "error_page.jpg": (b"<!DOCTYPE html><html>404</html>", "begins with b'<!DOCTYP'"),
    "other_kind.png": (encoded(Image.new("L", (9, 9)), "GIF"), "begins with b'GIF87a"),
    "only_a_start.png": (b"\x89PNG\r\n\x1a\n", "expected a (whole|PNG or JPEG) picture"),
    "cut_off.png": (damaged("PNG", 0.5), "found it damaged"),
    "cut_off.jpg": (damaged("JPEG", 0.5), "found it damaged"),
    "large.png": (png_header(8000, 7000), "at most 50 megapixels; found 8000 x 7000"),
    "larger.png": (png_header(12000, 10000), "at most 50 megapixels; found 12000 x 10000"),
    "bomb.png": (png_header(50000, 50000), "at most 50 megapixels; found 2500000000 pixels"),
    "transparent.png": (encoded(Image.new("RGBA", (50, 50), (9, 9, 9, 0))), "fully transparent"),
    "white.png": (paper(level=255), "no ink found"),
    "black.png": (paper(level=0), "no ink found"),
    "one_pixel.png": (encoded(Image.new("L", (1, 1), 200)), "no ink found"),
    "grainy.png": (paper(texture=6), "no ink found"),
    "shaded.png": (paper(texture=2, shade=0.6), "no ink found"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_picture_is_named_and_leaves_nothing(nb, name, tmp_path):
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=message) as caught:
            nb.predict_image(path, model=None)
    assert not told
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == content


@pytest.mark.parametrize("make, found", [(False, "no such file"), (True, "a folder")])
def test_missing_picture(nb, make, found, tmp_path):
    path = tmp_path / "letter.png"
    if make:
        path.mkdir()
    with pytest.raises(FileNotFoundError, match=f"letter.png: expected a PNG or JPEG.*{found}"):
        nb.predict_image(path, model=None)


@pytest.mark.parametrize("name", [s.name for s in draw_pictures.SCENES if s.mode != "RGBA"])
def test_the_same_page_with_nothing_on_it_holds_no_character(nb, name, tmp_path):
    """Every drawn picture again, its texture, printed lines, light and shadow, but no ink."""
    scene = next(scene for scene in draw_pictures.SCENES if scene.name == name)
    invisible = dataclasses.replace(draw_pictures.PENS[scene.pen], opacity=0)
    path = tmp_path / "blank.png"
    draw_pictures.draw_picture(scene, invisible).save(path)
    with pytest.raises(ValueError, match=r"blank\.png: no ink found"):
        nb.picture_steps(path)


# ------------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize(
    "paper, colour", [(255, 0), (200, 90), (90, 20), (15, 235), (60, 200), (0, 255)]
)
def test_brightness_and_polarity_do_not_matter(nb, ink, paper, colour):
    expected = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink))))
    other = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink, paper, colour))))
    assert_alike(expected, other)


@pytest.mark.parametrize("width, height", [(120, 150), (480, 600), (2400, 3000)])
def test_size_does_not_matter(nb, ink, width, height, tmp_path):
    picture = Image.fromarray(on_paper(ink))
    expected = seen(nb, picture, tmp_path)
    assert_alike(expected, seen(nb, picture.resize((width, height)), tmp_path))


def test_light_place_specks_and_neighbours_do_not_matter(nb, ink):
    expected = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink))))
    page = np.pad(ink, ((200, 60), (40, 400)))
    rng = np.random.RandomState(3)
    for y, x in rng.randint(3, [s - 3 for s in page.shape], (40, 2)):
        page[y : y + 2, x : x + 2] = 1  # specks
    page[220:420, -90:-70] = 1  # a stroke of the next character
    page[:, -12:] = 1  # the edge of the table
    page[100:135, 400:] = 1  # a bar, heavier than the character, that runs off the picture
    light = np.linspace(1, 0.35, page.shape[1]) * np.linspace(1, 0.8, page.shape[0])[:, None]
    other = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(page) * light)))
    assert_alike(expected, other)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "I;16", "CMYK"])
def test_mode_does_not_matter(nb, ink, mode, tmp_path):
    grey = Image.fromarray(on_paper(ink))
    expected = seen(nb, grey, tmp_path)
    if mode == "I;16":
        picture = Image.fromarray(on_paper(ink).astype(np.uint16) * 257)
    elif mode == "1":
        picture = grey.point(lambda value: 255 * (value > 128)).convert("1")
    else:
        picture = grey.convert("RGB").convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    assert_alike(expected, seen(nb, picture, tmp_path, kind))
    grey = nb.read_picture(tmp_path / f"picture.{kind.lower()}")
    assert 230 <= grey.max() <= 255 and 0 <= grey.min() <= 40


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 40), (250, 230, 60)])
def test_transparent_drawing_reads_like_paper(nb, ink, colour, tmp_path):
    expected = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink))))
    layers = [np.full(ink.shape, value, np.uint8) for value in colour]
    alpha = np.round(ink * 255).astype(np.uint8)
    assert_alike(expected, seen(nb, Image.fromarray(np.dstack([*layers, alpha])), tmp_path))


def test_palette_transparency_and_a_photo_with_a_hole(nb, ink, tmp_path):
    expected = nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink))))
    palette = Image.fromarray((ink > 0.5).astype(np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])
    assert_alike(expected, seen(nb, palette, tmp_path, transparency=0), 8)
    alpha = np.full(ink.shape, 255, np.uint8)
    alpha[:40, :40] = 0  # a cut corner
    alpha[250:285, 190:225] = 0
    photo = Image.fromarray(np.dstack([on_paper(ink), alpha]))
    assert_alike(expected, seen(nb, photo, tmp_path))


@pytest.mark.parametrize(
    "orientation, undo", [(3, "ROTATE_180"), (6, "ROTATE_90"), (8, "ROTATE_270")]
)
def test_rotation_flag_of_a_photo_is_obeyed(nb, ink, orientation, undo, tmp_path):
    upright = Image.fromarray(on_paper(ink))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(Image.Transpose[undo])
    expected = seen(nb, upright, tmp_path, "JPEG")
    assert_alike(expected, seen(nb, stored, tmp_path, "JPEG", exif=exif))


def test_pen_width_does_not_matter_below_emnists(nb):
    images = []
    for width in (0.01, 0.03, 0.08):
        rng = np.random.RandomState(0)
        strokes = draw_pictures.write("R", rng, slant=0.1, turn=0)
        pen = draw_pictures.Pen((0, 0, 0), width, pressure=0)
        ink = draw_pictures.ink_layer(strokes, pen, (600, 480), 400, (240, 300), rng)
        images.append(nb.to_emnist(nb.widen_strokes(nb.isolate_ink(on_paper(ink)))))
    assert_alike(images[0], images[2], 10)
    assert_alike(images[1], images[2], 10)


def test_a_dot_belongs_to_its_letter(nb):
    path = next(path for path in PICTURES if path.name.startswith("J_dotted"))
    rows = nb.picture_steps(path)["28 x 28"].max(axis=1) > 60
    gap = np.flatnonzero(~rows[np.flatnonzero(rows)[0] : np.flatnonzero(rows)[-1]])
    assert gap.size, "the dot of the j is gone"


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
    assert len(plt.get_fignums()) == show
    plt.close("all")


def test_pictures_are_those_that_the_program_draws(nb):
    assert [path.name for path in PICTURES] == sorted(scene.name for scene in draw_pictures.SCENES)
    assert all(nb.character_of(path) in nb.CHARACTERS for path in PICTURES)
    assert sum(path.stat().st_size for path in PICTURES) < 1.5e6
    for scene in draw_pictures.SCENES:
        if scene.name.endswith(".png"):
            with Image.open(draw_pictures.FOLDER / scene.name) as committed:
                drawn = np.asarray(draw_pictures.draw_picture(scene), float)
                assert np.abs(drawn - np.asarray(committed)).mean() < 1


def test_published_model_reads_the_pictures(nb):
    published = nb.Published(PRETRAINED, None, nb.sha256(PRETRAINED / "SHA256SUMS"))
    model = nb.load_model(published, "custom", "with_da")
    read = {path.name: nb.predict_image(path, model, 1, False)[0] for path in PICTURES}
    wrong = {name: answer for name, answer in read.items() if answer[0] != nb.character_of(name)}
    assert len(read) - len(wrong) >= READ_AT_LEAST, f"read wrong: {wrong}"
