"""Read handwritten characters in a picture: reader.py my_photo.jpg

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



SIZE = 28


CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"


def draw_grid(images, columns, titles=None, colors=None):
    """Draw images in a grid of so many columns, each under its title in its colour."""
    rows = math.ceil(len(images) / columns)
    height = 10 / columns * rows * (1.3 if titles else 1)
    figure = plt.figure(figsize=(10, height), layout="constrained")
    for number, image in enumerate(images):
        axis = figure.add_subplot(rows, columns, number + 1)
        axis.set_axis_off()
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if titles:
            color = colors[number] if colors else "black"
            axis.set_title(titles[number], color=color, fontsize=10)
    plt.show()


from PIL import Image, ImageOps
from scipy import stats
from skimage import measure, morphology


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
WORK = 1000  # pixels: no step needs a picture with a longer side
SMALL = 160  # pixels: the longer side that smaller pictures are enlarged to


def decode_picture(path):
    """Decode the picture file `path`, of any mode, and turn it upright as its EXIF
    says.

    Returns a Pillow RGBA image, its longer side at most 1,000 pixels. Raises whatever
    Pillow does, and ValueError if it is HEIC, fully transparent, or has more than 200
    megapixels (JPEG) or 60 (others).
    """
    with path.open("rb") as file:
        if file.read(12)[4:8] == b"ftyp":
            raise ValueError("HEIC or a like format, which Photos exports as JPEG")
    Image.MAX_IMAGE_PIXELS = 200_000_000  # as phones take; Pillow's own limit is 89
    with Image.open(path, formats=FORMATS) as picture:
        limit = 200e6 if picture.format in ("JPEG", "MPO") else 60e6
        if picture.width * picture.height > limit:
            raise ValueError(f"a picture of {picture.width} x {picture.height} pixels")
        picture.draft(None, (WORK, WORK))
        if picture.mode.startswith("I"):  # 16 bits a pixel
            picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
        if picture.mode in ("1", "P"):  # colours by number cannot be averaged
            picture = picture.convert("RGBA")
        picture = picture.reduce(math.ceil(max(picture.size) / WORK))
        picture = ImageOps.exif_transpose(picture).convert("RGBA")
    if picture.getextrema()[3][1] < 26:  # of 255
        raise ValueError("a fully transparent picture")
    return picture


def open_picture(path):
    """Open the picture file `path` as `decode_picture` does.

    Raises FileNotFoundError if there is no such file, and ValueError if it is HEIC,
    empty, no picture, damaged, too large or fully transparent; both name the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected a picture file; found {found}")
    try:
        return decode_picture(path)
    except Exception as error:  # a decoder may raise anything
        wish = "a whole JPEG picture (200 megapixels), PNG, WebP, BMP, TIFF or GIF (60)"
        raise ValueError(f"{path}: expected {wish}; found {error}") from error


def resized(image, size):
    """Resize a float image (H, W) to the shape `size`, or to a longer side of `size`
    pixels.

    Bicubic interpolation, kept within the range of the image's values; returns float32.
    """
    if np.ndim(size) == 0:
        size = [max(1, round(side * size / max(image.shape))) for side in image.shape]
    image = np.asarray(image, np.float32)
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(small).clip(image.min(), image.max())


def grey_levels(picture):
    """Return the grey levels of a Pillow RGBA image on a ground that it can be seen on.

    float32 (H, W), 0-255, its longer side at least 160 pixels.
    """
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    grey = np.asarray(picture.convert("L"), np.float32)
    ground = np.median(grey[alpha >= alpha.max() / 2])
    if alpha.mean() < 0.5:
        ground = 0 if ground >= 128 else 255
    grey = alpha * grey + (1 - alpha) * np.float32(ground)
    return resized(grey, max(SMALL, *grey.shape))


def is_light_on_dark(grey, ground):
    """Return whether the ink in grey levels (H, W) is lighter than its ground (H, W).

    Both are compared as logarithms, so that a shadow, which divides the light by some
    factor, changes nothing.
    """
    sharpness = np.square(np.gradient(np.log(grey + 16))).sum(axis=0)
    return np.sum(sharpness * np.log((grey + 16) / (ground + 16))) > 0


def measure_darkness(grey):
    """Measure how far each pixel of grey levels (H, W) is from its paper, towards ink.

    Returns float32 (H, W), relative to the paper's brightness and about 0 on paper, and
    the noise of that on paper, at least 0.01.
    """
    small = resized(grey, 160)
    median = ndimage.median_filter(resized(small, 48), 25, mode="nearest")
    ground = resized(median, small.shape)
    light = is_light_on_dark(small, ground)
    reach = 53  # pixels, a third of the picture: wider than any stroke
    padded = np.pad(ground, reach, mode="symmetric")
    padded[reach:-reach, reach:-reach] = small
    remove_strokes = ndimage.grey_opening if light else ndimage.grey_closing
    paper = remove_strokes(padded, reach)[reach:-reach, reach:-reach]
    paper = resized(paper, grey.shape)
    darkness = (grey - paper if light else paper - grey) / (paper + 48)
    low, base = np.quantile(darkness, (0.05, 0.25))  # paper, even if half of it is ink
    return darkness - base, max(base - low, 0.01)


def ruled_lines(darkness, noise):
    """Estimate what printed lines, at most 6 degrees off the level, add to darkness (H,
    W).

    Returns float32 (H, W), all 0 unless there are at least three lines, a twelfth of
    the height or more from the upper and lower edge.
    """
    block = math.ceil(max(darkness.shape) / 160)
    small = measure.block_reduce(darkness, block, np.max)
    height, width = small.shape
    columns = np.arange(width)
    lines = np.zeros_like(small)
    for slope in np.linspace(-0.1, 0.1, 21):
        shift = np.round(slope * (columns - width // 2)).astype(int)
        rows = (np.arange(height)[:, None] + shift) % height
        level = np.quantile(small[rows, columns], 0.2, axis=1, keepdims=True)
        level = level - ndimage.grey_opening(level, (7, 1))
        level[level < 3 * noise] = 0
        lines[rows, columns] = np.maximum(lines[rows, columns], level)
    middle = lines[height // 12 : -(height // 12) - 1, width // 2] > 0
    if np.count_nonzero(np.diff(middle)) < 5:  # a line has two sides
        return np.zeros_like(darkness)
    return resized(ndimage.grey_dilation(lines, (3, 1)), darkness.shape)


def find_ink(grey):
    """Find the ink in grey levels (H, W): float32 (H, W), from 0 on paper to 255.

    Raises ValueError if nothing stands out: by 11 % of the paper's brightness, and ten
    times as much as the grain of the paper.
    """
    darkness, noise = measure_darkness(grey)
    if max(grey.shape) > SMALL:  # a picture of few pixels does not show printed lines
        across = ruled_lines(darkness, noise)
        down = ruled_lines(darkness.T, noise).T
        darkness = darkness - 1.5 * (across + down)
    if np.quantile(darkness, 0.999) < 0.11:
        raise ValueError("no ink: nothing stands out from paper and printed lines")
    if darkness.max() < 10 * noise:
        raise ValueError("marks that are hardly darker than the grain of the paper")
    typical = np.quantile(darkness[darkness > 6 * noise], 0.95)
    threshold = max(0.6 * typical, 6 * noise)
    ink = 255 * (darkness / threshold - 0.5).clip(0, 1)
    margin = math.ceil(0.015 * min(ink.shape))
    return np.pad(ink[margin:-margin, margin:-margin], margin)


def is_stray(piece, shape):
    """Return whether a piece (of `regionprops`) in a picture of a shape is no
    handwriting: a thin line from edge to edge, a band along an edge, or a small or
    solid thing there."""
    start, stop = np.reshape(piece.bbox, (2, 2))
    share = (stop - start) / shape  # of the picture's height and width
    margin = 0.015 * min(shape) + 3
    distances = np.array([start, shape - stop])  # from the picture's four edges
    length = max(piece.image.shape)
    at_edge = (distances < margin).any(axis=0)
    across = (distances < margin).all(axis=0).any()
    line = across and share.min() < 0.3 and piece.area < 0.08 * length * max(shape)
    band = (at_edge & (share < 0.12) & (share[::-1] > 3 * share)).any()
    blob = piece.image.shape[0] < length and piece.solidity > 0.8  # wide, without gaps
    return line or band or (at_edge.any() and (length < 0.2 * min(shape) or blob))


def find_pieces(ink):
    """Find the pieces of ink (H, W), 0-255, that may be handwriting.

    Returns their labels, int (H, W), and the list of their measurements by
    `regionprops`, the heaviest first. Raises ValueError if there are none.
    """
    labels = measure.label(ndimage.grey_dilation(ink, 3) > 77, connectivity=2)
    pieces = measure.regionprops(labels, intensity_image=ink)
    pieces = [piece for piece in pieces if not is_stray(piece, ink.shape)]
    if not pieces:
        raise ValueError("only lines, or things at the picture's edge")
    return labels, sorted(pieces, key=lambda piece: -piece.image_intensity.sum())


def main_character(ink, labels, pieces):
    """Return the ink of the main character, float32, 0-255, cropped to it.

    Raises ValueError if no piece has the shape of a character or they are all too
    small.
    """
    upright = [piece for piece in pieces if np.divide(*piece.image.shape) > 0.25]
    if not upright or upright[0].image_intensity.sum() < 25 * max(ink.shape):
        raise ValueError("only lines or specks")
    size = max(upright[0].image.shape)
    parts = [piece for piece in pieces if piece.image.shape[1] <= 2 * size]
    mask = np.isin(labels, [part.label for part in parts])
    close = ndimage.maximum_filter(mask, (size // 2 + 1, size // 8 + 1))
    groups = measure.regionprops(measure.label(close) * mask, intensity_image=ink)
    return max(groups, key=lambda group: group.image_intensity.sum()).image_intensity


CROP = 180  # pixels: the character's longer side while its strokes are changed


def cropped(ink, longer):
    """Crop ink (H, W) on 0 to all that exceeds a quarter of its maximum, and resize
    that to a longer side of `longer` pixels, aspect ratio kept; float32."""
    box = ndimage.find_objects((ink > ink.max() / 4).astype(int))[0]
    return resized(ink[box], longer)


def even_strokes(ink):
    """Crop ink (H, W), 0-255, to the character and give its strokes EMNIST's width.

    Returns float32 (H, W), 0-255: 180 pixels at the longer side and a border of 20
    pixels.
    """
    ink = np.pad(cropped(ink, CROP), 20)
    width = 2 * ink.sum() / np.hypot(*np.gradient(ink)).sum()
    if width > 0.18 * CROP:
        ink = 255 * morphology.skeletonize(ink > 127).astype(np.float32)
        width = 1
    radius = max(0, (0.13 * CROP - width) / 2)
    steps = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    disk = np.hypot(steps, steps[:, None]) <= radius
    return ndimage.grey_dilation(ink, footprint=disk)


def to_emnist(ink):
    """Convert a character, (H, W) of any size, white ink (0-255) on black, to uint8
    (28, 28).

    The conversion is EMNIST's (Cohen, Afshar, Tapson, van Schaik 2017,
    arXiv:1702.05373), as its pixels show it: a scan of 56 x 56 pixels with 45 of ink,
    blurred by a Gaussian of one pixel, sampled at every second. The paper says bicubic
    interpolation. Raises ValueError if the image is empty, blank or not finite.
    """
    ink = np.asarray(ink, np.float32)
    if ink.ndim != 2 or not ink.size or not 0 < np.ptp(ink) < np.inf or ink.max() <= 0:
        raise ValueError(f"expected ink (H, W) on 0; found {ink.shape}, maybe blank")
    ink = cropped(ink.clip(0), 45)
    points = 2 * np.arange(SIZE)[:, None] + 0.5  # of the image, in pixels of the scan
    rows, columns = (points - (56 - side) // 2 - np.arange(side) for side in ink.shape)
    image = stats.norm.pdf(rows) @ ink @ stats.norm.pdf(columns).T
    return (255 * image / image.max()).astype(np.uint8)  # cut off, as EMNIST's are


def find_letters(ink, labels, pieces):
    """Join pieces to letters; return their measurements, a list by `regionprops`."""
    pieces = sorted(pieces, key=lambda piece: max(piece.image.shape))
    weight = np.cumsum([piece.area for piece in pieces])
    size = max(pieces[np.searchsorted(weight, weight[-1] / 2)].image.shape)
    joined = labels * np.isin(labels, [piece.label for piece in pieces])
    for number, piece in enumerate(pieces):
        for larger in pieces[number + 1 :]:
            start = np.maximum(piece.bbox[:2], larger.bbox[:2])
            down, sideways = start - np.minimum(piece.bbox[2:], larger.bbox[2:])
            overlap = -sideways / min(piece.image.shape[1], larger.image.shape[1])
            if down < 0.3 * size and overlap > 0.5:
                joined[joined == piece.label] = larger.label
                break
    letters = measure.regionprops(joined, intensity_image=ink)
    return [each for each in letters if 0.4 < max(each.image.shape) / size < 3]


def find_lines(letters):
    """Sort letters into lines: a list of lists, from top to bottom and left to
    right."""
    lines = []
    feet = -1
    for letter in sorted(letters, key=lambda letter: letter.centroid[0]):
        if letter.centroid[0] > feet:
            lines.append([])
        lines[-1].append(letter)
        feet = np.median([letter.bbox[2] for letter in lines[-1]])
    return [sorted(line, key=lambda letter: letter.bbox[1]) for line in lines]


def is_text(lines, height):
    """Return whether lines of letters are several characters, not one that is broken;
    height is that of the main character in pixels."""
    for line in lines:
        tallest = max(letter.image.shape[0] for letter in line)
        least = max(0.4 * tallest, 0.25 * height)
        like = [letter for letter in line if letter.image.shape[0] > least]
        if len(like) > 1 and like[-1].bbox[3] - like[0].bbox[1] > 1.25 * tallest:
            return True
    return False


def find_writing(path):
    """Find what is written in the picture at `path`.

    Returns the picture (Pillow RGBA); its grey levels and its ink, float32 (H, W),
    0-255; the ink of the main character, cropped; and the lines of letters, as
    `find_lines` does. Raises as `open_picture`, and ValueError if there is no
    handwriting.
    """
    picture = open_picture(path)
    grey = grey_levels(picture)
    try:
        ink = find_ink(grey)
        labels, pieces = find_pieces(ink)
        character = main_character(ink, labels, pieces)
    except ValueError as error:
        raise ValueError(f"{path}: expected handwriting; found {error}") from error
    return picture, grey, ink, character, find_lines(find_letters(ink, labels, pieces))


def picture_steps(path):
    """Return what each step makes of a picture of one character: {name: array}, the
    last of them `28 x 28`. Raises as `find_writing`, and ValueError if it shows several
    characters."""
    picture, grey, ink, character, lines = find_writing(path)
    if is_text(lines, character.shape[0]):
        raise ValueError(f"{path}: expected a character; found several: use read_text")
    steps = {"picture": np.asarray(picture), "grey": grey, "ink": ink}
    steps["even strokes"] = even_strokes(character)
    steps["28 x 28"] = to_emnist(steps["even strokes"])
    return steps


def most_probable(model, image, top=5, among=None):
    """Return what the model reads in an image, uint8 (28, 28): the `top` most probable
    of the characters in the string `among` (default: all 47), as a list of (character,
    probability).

    Raises ValueError if `among` is empty or holds a character that the model does not
    know.
    """
    among = CHARACTERS if among is None else among
    unknown = "".join(letter for letter in among if letter.upper() not in CHARACTERS)
    if unknown or not among:
        raise ValueError(f"among: expected some of {CHARACTERS}; found {unknown!r}")
    letters = {letter if letter in CHARACTERS else letter.upper() for letter in among}
    letters = sorted(letters, key=CHARACTERS.index)
    image = image[None, :, :, None].astype(np.float32)
    probabilities = np.asarray(model.predict_on_batch(image), np.float64)[0]
    probabilities = probabilities[[CHARACTERS.index(letter) for letter in letters]]
    probabilities = probabilities.clip(1e-30) / probabilities.clip(1e-30).sum()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(letters[index], float(probabilities[index])) for index in best]


def predict_image(path, model, top=5, show=True, among=None):
    """Read the handwritten character in a picture, dark on light or light on dark.

    Parameters: path, the picture file; model, from (N, 28, 28, 1), 0-255, to (N, 47)
    probabilities; top, how many characters to return; show, whether to draw every step;
    among, a string of the characters that are possible (default: all 47).
    Returns a list of (character, probability), the most probable first. Raises
    FileNotFoundError or ValueError, as `picture_steps` and `most_probable` do.
    """
    steps = picture_steps(path)
    answer = most_probable(model, steps["28 x 28"], top, among)
    if show:
        titles = [*steps]
        titles[-1] = f"{titles[-1]}: {answer[0][0]} {answer[0][1]:.1%}"
        draw_grid([*steps.values()], 5, titles)
    return answer


def read_text(path, model, among=None, show=True):
    """Read the handwritten characters in a picture, which have to stand apart.

    Parameters as in `predict_image`. Returns the text, with spaces where the gaps are
    wide and line breaks between lines. Raises as `find_writing` and `most_probable` do.
    """
    picture, _, ink, _, lines = find_writing(path)
    text = ""
    answers = []
    for line in lines:
        space = 0.5 * np.median([letter.image.shape[0] for letter in line])
        right = line[0].bbox[3]
        for letter in line:
            image = to_emnist(even_strokes(letter.image_intensity))
            ((character, probability),) = most_probable(model, image, 1, among)
            answers.append((letter.bbox, character, probability))
            text += " " if letter.bbox[1] - right > space else ""
            text += character
            right = letter.bbox[3]
        text += "\n"
    if show:
        draw_text(Path(path).name, picture, ink.shape, answers)
    return text.rstrip("\n")


def draw_text(title, picture, shape, answers):
    """Draw a picture with what was read in it. Each of `answers` is a box (top, left,
    bottom, right), in pixels of an image of a shape, a character and its
    probability."""
    height, width = shape
    _, axis = plt.subplots(figsize=(5, 5 * height / width + 0.5))
    axis.imshow(picture, extent=(0, width, height, 0))
    for (top, left, bottom, right), character, probability in answers:
        corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
        alpha = 1 if probability >= 0.5 else 0.35
        axis.plot(*corners, color="tab:orange", alpha=alpha)
        axis.text(left, top, character, color="tab:blue", alpha=alpha, size=15)
    axis.set(xticks=[], yticks=[], title=title)
    plt.show()



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
