"""Draw the pictures of tests/pictures, which stand in for a reader's photos and scans.

No camera and no font is involved. Every character is a few strokes, written down below as points
that a smooth curve runs through. A seeded hand adds slant, jitter and pressure, a pen turns the
curve into ink on a page with texture, and a camera looks at it from a tilt, in uneven light, with
a shadow, noise and JPEG compression. They were drawn without a look at any model's answers.

`python tests/draw_pictures.py` rewrites them, and the picture of several characters. The name of
a file begins with its character (`lower_a_...` for a lower-case one).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent / "pictures"
TEXT_PICTURE = Path(__file__).parent / "text" / "two_lines.jpg"
TEXT = "Read 234\nHand 78"

# Each character's strokes, which "/" parts: points x,y in hundredths of its height, x to the right,
# y down. A curve runs smoothly through the points; a point given twice is a corner.
STROKES = {
    "2": "8,25 20,6 42,2 58,15 55,35 35,62 6,95 6,95 30,93 66,96",
    "3": "8,12 30,0 52,10 50,32 26,45 26,45 52,52 60,75 42,96 18,97 2,84",
    "4": "40,0 22,34 4,62 4,62 34,62 68,59 / 47,34 45,70 44,100",
    "7": "3,5 30,5 60,2 60,2 42,45 26,100",
    "8": "50,12 30,0 12,14 20,34 42,50 58,74 40,98 14,94 6,74 26,50 48,32 53,17 46,7",
    "A": "0,100 20,46 36,0 / 36,0 54,50 74,102 / 14,64 40,62 62,63",
    "B": "6,2 7,50 5,98 / 4,4 35,0 52,14 44,36 10,46 10,46 50,52 62,74 44,95 3,99",
    "E": "8,0 5,50 5,98 / 7,2 30,2 56,0 / 6,47 30,46 46,45 / 5,97 30,97 60,95",
    "G": "62,16 42,0 16,12 2,46 10,82 34,99 58,90 67,60 67,60 54,60 40,61",
    "H": "4,0 5,50 6,100 / 60,2 60,50 62,98 / 6,50 30,49 61,46",
    "J": "40,30 42,66 36,94 20,100 5,90 / 42,4 42.5,5 43,6",
    "K": "5,0 6,50 7,100 / 58,2 34,32 9,55 / 20,45 42,74 64,100",
    "R": "6,4 6,50 5,100 / 3,6 34,0 54,16 44,40 8,50 8,50 34,74 60,100",
    "a": "52,16 30,2 7,24 3,62 20,94 42,80 53,16 53,16 53,68 60,93 72,92",
    "d": "48,54 28,43 5,62 6,88 26,100 44,86 51,62 / 53,0 52,50 54,100",
    "e": "6,53 30,51 57,45 57,45 50,12 26,2 4,30 7,76 32,98 62,82",
    "n": "5,3 6,50 7,98 / 7,52 22,13 42,5 55,26 56,98",
    "t": "30,0 28,50 30,86 42,98 56,91 / 4,34 30,33 57,30",
}


@dataclass
class Pen:
    """Ink of one kind, and how it lies."""

    colour: tuple
    width: float  # in units of the character's height
    pressure: float = 0.1  # how much the width swings along a stroke
    grain: float = 0.0  # how much of the paper's tooth shows through, 0-1
    opacity: float = 0.95


PENS = {
    "ball": Pen((34, 48, 128), 0.018, 0.25, 0.15, 0.9),
    "black_ball": Pen((40, 38, 44), 0.022, 0.25, 0.15, 0.9),
    "felt": Pen((24, 24, 28), 0.075, 0.08, 0.0, 0.97),
    "red_felt": Pen((176, 32, 38), 0.06, 0.08, 0.0, 0.95),
    "marker": Pen((20, 22, 30), 0.115, 0.06, 0.0, 0.97),
    "pencil": Pen((78, 78, 84), 0.026, 0.3, 0.65, 0.75),
    "chalk": Pen((228, 230, 222), 0.055, 0.15, 0.75, 0.95),
    "gel": Pen((236, 232, 214), 0.035, 0.15, 0.1, 0.95),
}


@dataclass
class Scene:
    """One picture: what is written, with which pen, on what, and how it is taken."""

    name: str
    size: tuple  # width, height in pixels
    pen: str
    seed: int
    height: float = 0.6  # of the character, in units of the picture's height
    centre: tuple = (0.5, 0.5)  # of the character, in units of the picture
    paper: tuple = (244, 242, 235)
    texture: float = 2.0  # grey levels of paper structure
    slant: float = 0.0  # horizontal shear of the handwriting
    turn: float = 0.0  # degrees, clockwise
    tilt: float = 0.0  # perspective: how much smaller the far edge looks
    light: float = 0.0  # brightness lost across the picture, 0-1
    light_from: float = 0.0  # direction that the light comes from, degrees
    shadow: float = 0.0  # brightness lost in a cast shadow, 0-1
    ruled: float = 0.0  # distance of the printed lines in units of the picture's height
    squared: bool = False  # lines both ways
    blur: float = 0.5  # of the lens, pixels
    noise: float = 1.5  # of the sensor, grey levels
    mode: str = "RGB"  # RGB, L, or RGBA: a drawing with a transparent background
    quality: int = 85  # of the JPEG


# The white "H" and the "8" are small screenshots, the "R" comes from a drawing program.
SCENES = [
    Scene("2_ball_pen_ruled.jpg", (1600, 1200), "ball", 2, 0.42, (0.45, 0.53), turn=-3, tilt=0.06,
          light=0.3, light_from=200, ruled=0.085, blur=1.0, noise=3, quality=70),
    Scene("3_felt_pen_scan.png", (300, 400), "felt", 3, 0.7, mode="L", texture=1, noise=0.5),
    Scene("4_pencil_dim.jpg", (800, 600), "pencil", 4, 0.6, (0.53, 0.47), texture=4, slant=0.12,
          tilt=0.05, light=0.5, light_from=120, blur=0.8, noise=3),
    Scene("7_chalk_board.jpg", (1024, 768), "chalk", 7, 0.62, paper=(44, 62, 52), texture=6,
          slant=0.1, light=0.35, light_from=300, noise=3),
    Scene("8_tiny.png", (60, 60), "felt", 8, 0.72, mode="L", slant=0.15, texture=1, noise=2),
    Scene("A_phone_shadow.jpg", (1200, 1600), "felt", 10, 0.4, turn=4, tilt=0.1,
          light=0.3, light_from=30, shadow=0.45, blur=1.2, noise=3, quality=75),
    Scene("B_marker_uneven.jpg", (600, 800), "marker", 11, 0.5, (0.56, 0.45), light=0.6,
          light_from=250, tilt=0.04, noise=3),
    Scene("E_ball_pen_tilted.jpg", (640, 480), "black_ball", 14, 0.55, turn=9, tilt=0.12,
          light=0.25, light_from=80, noise=2.5),
    Scene("G_pencil_ruled.jpg", (900, 700), "pencil", 16, 0.5, texture=3, ruled=0.13,
          light=0.2, turn=2, noise=2),
    Scene("H_white_on_black.png", (120, 90), "gel", 17, 0.7, paper=(18, 18, 20), texture=2,
          mode="L", slant=0.1),
    Scene("J_dotted_pencil.jpg", (480, 640), "pencil", 19, 0.55, slant=0.15,
          light=0.3, light_from=160, texture=3, noise=2),
    Scene("K_low_quality.jpg", (320, 240), "felt", 20, 0.6, light=0.2, noise=5, quality=12),
    Scene("R_transparent.png", (500, 500), "red_felt", 27, 0.65, mode="RGBA"),
    Scene("lower_a_brown_paper.jpg", (700, 525), "felt", 36, 0.45, (0.42, 0.55), texture=9,
          paper=(178, 146, 108), slant=0.1, light=0.3, light_from=45, noise=3),
    Scene("lower_d_gel_on_navy.jpg", (640, 640), "gel", 38, 0.6, paper=(36, 42, 78), texture=5,
          slant=0.2, light=0.3, light_from=210, tilt=0.05, noise=2.5),
    Scene("lower_e_small.png", (90, 120), "black_ball", 39, 0.5, mode="L", texture=2, noise=2),
    Scene("lower_n_phone_shadow.jpg", (1280, 960), "ball", 43, 0.4, (0.55, 0.5), turn=-5,
          tilt=0.08, light=0.2, light_from=330, shadow=0.35, blur=1.2, noise=3, quality=75),
    Scene("lower_t_marker_ruled.jpg", (800, 1000), "felt", 46, 0.45, (0.48, 0.52), ruled=0.08,
          slant=0.08, turn=-2, light=0.35, light_from=100, noise=2.5, quality=80),
]  # fmt: skip


def curve(points, step=0.004):
    """Points along a smooth (Catmull-Rom) curve; a doubled point is a corner."""
    corners = np.flatnonzero((points[1:] == points[:-1]).all(1)) + 1
    path = []
    for piece in np.split(points, corners):
        p = np.pad(piece, ((1, 1), (0, 0)), "edge")
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False):
            t = np.linspace(0, 1, max(2, int(np.hypot(*(c - b)) / step)))[:, None]
            path.append(
                0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2)
                + 0.5 * (3 * b - a - 3 * c + d) * t**3
            )
    return np.concatenate(path)


def rotation(degrees):
    """The matrix that turns clockwise, as y points down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def write(character, rng, slant, turn):
    """The strokes as a hand writes them, centred on (0, 0), one unit high."""
    strokes = []
    for stroke in STROKES[character].split(" / "):
        points = np.array([point.split(",") for point in stroke.split()], float) / 100
        new = np.append(True, (points[1:] != points[:-1]).any(1))
        shifts = rng.normal(0, 0.014, (new.sum(), 2))
        path = curve(points + shifts[new.cumsum() - 1])  # a doubled point stays doubled
        along = np.linspace(0, 1, len(path))
        for axis in range(2):  # a slow tremor
            for wave in (2, 4, 7):
                phase = rng.uniform(0, 2 * np.pi)
                size = 0.006 / wave * rng.normal()
                path[:, axis] += size * np.sin(2 * np.pi * wave * along + phase)
        strokes.append(path)
    low = np.min([s.min(0) for s in strokes], 0)
    high = np.max([s.max(0) for s in strokes], 0)
    shear = np.array([[1, -slant], [0, 1]])
    return [(s - (low + high) / 2) @ shear.T @ rotation(turn).T for s in strokes]


def field(shape, cells, rng):
    """Smooth noise (H, W), mean 0, deviation 1, `cells` bumps on the longer side."""
    small = [max(2, round(n * cells / max(shape))) + 2 for n in shape]
    noise = Image.fromarray(rng.normal(0, 1, small).astype(np.float32))
    return np.asarray(noise.resize(shape[::-1], Image.Resampling.BICUBIC))


def ink_layer(strokes, pen, shape, height, centre, rng):
    """How much ink lies where: (H, W), 0-1."""
    zoom = max(2, min(8, round(600 / shape[0])))  # drawn finer: no jagged edges
    canvas = Image.new("L", (shape[1] * zoom, shape[0] * zoom))
    draw = ImageDraw.Draw(canvas)
    for path in strokes:
        along = np.linspace(0, 1, len(path))
        phase = rng.uniform(0, 2 * np.pi, 2)
        waves = 2 * np.pi * np.array([[1.3], [3.1]]) * along + phase[:, None]
        swing = np.sin(waves).sum(0)
        radius = pen.width * (1 + pen.pressure * 0.5 * swing) * height * zoom / 2
        at = path * height * zoom + np.array(centre) * zoom
        for (x, y), r in zip(at, np.maximum(radius, 0.5), strict=True):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    ink = np.asarray(canvas.resize(shape[::-1], Image.Resampling.BOX), np.float32) / 255
    tooth = field(shape, max(shape) / 2.5, rng)
    tooth = tooth + 0.6 * field(shape, max(shape) / 8, rng)
    return ink * pen.opacity * np.clip(1 - pen.grain * (0.35 + 0.6 * tooth), 0, 1)


def page(scene, shape, rng):
    """The empty page, (H, W, 3) in grey levels: colour, structure, printed lines."""
    rough = sum(field(shape, cells, rng) for cells in (6, 40, 200, max(shape) / 2)) / 2
    sheet = np.array(scene.paper, np.float32) + scene.texture * rough[..., None]
    if scene.ruled:
        step = scene.ruled * scene.size[1]
        thick = max(1.0, 0.0022 * scene.size[1])
        y, x = np.arange(shape[0])[:, None, None], np.arange(shape[1])[:, None]
        for place in (y, x) if scene.squared else (y,):
            near = np.abs((place + 0.3 * step) % step - step / 2)
            line = np.clip(thick / 2 + 0.5 - near, 0, 1) * 0.6
            sheet = sheet * (1 - line) + np.array((120, 150, 205), np.float32) * line
    return sheet


def look_at(sheet, size, tilt, turn, rng):
    """The page as a camera sees it that is held at a tilt: a perspective view."""
    width, height = size
    margin = (np.array(sheet.size) - size) / 2
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    pull = np.array([(-1, 0), (1, 0), (-0.2, 0), (0.2, 0)]) * tilt * width / 2
    pull = pull if rng.uniform() < 0.5 else pull[[3, 2, 1, 0]] * (-1, 1)
    middle = np.array([width / 2, height / 2])
    source = (corners + pull - middle) @ rotation(turn) + middle + margin
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    view = np.linalg.solve(np.array(rows), np.array(values))
    kind = Image.Transform.PERSPECTIVE
    return sheet.transform(size, kind, view, Image.Resampling.BICUBIC)


def daylight(scene, rng):
    """Brightness (H, W), about 0-1: light from one side, dim corners, a shadow."""
    width, height = scene.size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    angle = np.radians(scene.light_from)
    light = 1 - scene.light * (0.5 - (x * np.cos(angle) + y * np.sin(angle)) / 1.42)
    light *= 1 - 0.35 * scene.light * (x**2 + y**2) * 2
    if scene.shadow:  # of a hand and the phone: a wavy edge, softer further away
        edge = rng.uniform(-0.1, 0.1) + 0.5 * x
        edge += 0.06 * np.sin(7 * x + rng.uniform(0, 6))
        soft = 0.006 + 0.025 * np.abs(x + 0.5)
        light *= 1 - scene.shadow / (1 + np.exp(-(y - edge) / soft))
    return light


def write_text(text, rng, slant, gap=0.3, line=1.6):
    """The strokes of several characters, each one unit high (a, e and n less) and
    `gap` units from the next, in lines `line` units apart, centred on (0, 0)."""
    strokes = []
    for row, words in enumerate(text.split("\n")):
        right = 0.0
        for character in words:
            if character == " ":
                right += 0.7
                continue
            size = 0.7 if character in "aen" else 1.0
            parts = [size * part for part in write(character, rng, slant, 0)]
            ends = np.concatenate(parts)[:, 0]
            shift = np.array([right - ends.min(), row * line + (1 - size) / 2])
            strokes += [part + shift for part in parts]
            right += np.ptp(ends) + gap
    points = np.concatenate(strokes)
    return [part - (points.min(0) + points.max(0)) / 2 for part in strokes]


def draw_picture(scene, pen=None, text=None):
    """The picture of a scene, perhaps with another pen, or a text for its character."""
    rng = np.random.RandomState(scene.seed)
    width, height = scene.size
    pen = pen or PENS[scene.pen]
    flat = scene.mode == "RGBA"  # a drawing: no page, no camera
    if text:
        strokes = write_text(text, rng, scene.slant)
    else:
        character = scene.name.removeprefix("lower_")[0]
        strokes = write(character, rng, scene.slant, scene.turn * flat)
    room = 1.0 if flat else 1.4  # the page reaches beyond the frame
    shape = (round(height * room), round(width * room))
    centre = (np.array(scene.centre) - 0.5) * scene.size + (shape[1] / 2, shape[0] / 2)
    ink = ink_layer(strokes, pen, shape, scene.height * height, centre, rng)
    if flat:
        colour = np.broadcast_to(np.array(pen.colour, np.uint8), (*shape, 3))
        alpha = np.round(ink * 255).astype(np.uint8)
        return Image.fromarray(np.dstack([colour, alpha]))
    ink = ink[..., None]
    sheet = page(scene, shape, rng) * (1 - ink) + np.float32(pen.colour) * ink
    sheet = Image.fromarray(np.clip(sheet, 0, 255).astype(np.uint8))
    seen = look_at(sheet, scene.size, scene.tilt, scene.turn, rng)
    seen = seen.filter(ImageFilter.GaussianBlur(scene.blur))
    picture = np.asarray(seen, np.float32) * daylight(scene, rng)[..., None]
    picture += rng.normal(0, scene.noise, picture.shape)
    picture = Image.fromarray(np.clip(np.round(picture), 0, 255).astype(np.uint8))
    return picture.convert(scene.mode)


TEXT_SCENE = Scene("two_lines.jpg", (900, 560), "ball", 3, 0.22, slant=0.1, turn=-1, tilt=0.03,
                   light=0.3, light_from=40, texture=2, noise=2, quality=80)  # fmt: skip

if __name__ == "__main__":  # rewrite every picture
    TEXT_PICTURE.parent.mkdir(exist_ok=True)
    draw_picture(TEXT_SCENE, text=TEXT).save(TEXT_PICTURE, quality=TEXT_SCENE.quality)
    for scene in SCENES:
        options = {"quality": scene.quality, "optimize": scene.name.endswith("png")}
        draw_picture(scene).save(FOLDER / scene.name, **options)
