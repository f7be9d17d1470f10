"""Reading IDX files, good and bad; where they are found; the split."""

import contextlib
import gzip
import re
from unittest.mock import patch

import numpy as np
import pytest
from conftest import RECONSTRUCTED, ROOT, load_notebook, run_cell_with
from idx_files import MAPPING, NAMES, idx, make_arrays, make_files, pack, write

DIGESTS = {  # of the images and labels of the split that is shipped
    "train": "d728d25aaabc6af839de7dcf402e1630ff7b8c1588aa49174b70b31a41b9b821",
    "validation": "2e69db2cb6d8b99b345eaa0ef2573a3b8baa86d7c511d9fc21cc949719657dd0",
    "test": "301ccb13ca0b43278b064358645b405063678bea349fc4a4b091be4a7f917d6a",
}
# of all training images and labels, before a tenth is set aside
TRAINING_DIGEST = "5ec8968ed933e78fe52e16a499da943098dd1c972b6b638148c12bde606b7bd8"
AUGMENTED_DIGEST = "29846be26c7e5cfb1acfb93a6a7fdd6e9f67fafa853bca7a3dfa6fb9f79f719e"
CELLS = ["data = read_emnist", "def stratified", "held_out = strat", "def data_digest"]


def run_cells(module, first=0):
    """Run the cells that read and split the repository's data, or the last of them."""
    module.DATA_SOURCE = "data/reconstructed"
    with contextlib.chdir(ROOT):
        for text in CELLS[first:]:
            run_cell_with(module, text)
    return module


def digests(module):
    """Return the digests of the images and labels of all three parts."""
    return {
        "train": module.data_digest(module.train_images, module.train_labels),
        "validation": module.data_digest(module.val_images, module.val_labels),
        "test": module.data_digest(module.test_images, module.test_labels),
    }


@pytest.fixture(scope="module")
def real():
    """The notebook with the repository's data."""
    module = load_notebook("real")
    module.QUICK = False
    return run_cells(module)


def complains(path):
    """Expect a ValueError that says what `path` should be and what it is."""
    start = re.escape(f"{path}: expected")
    return pytest.raises(ValueError, match=f"{start}.*; found ")


def test_good_files_are_parsed(nb):
    for key, array in make_arrays().items():
        parsed = nb.parse_idx(idx(array), key.split("-")[1], "file")
        assert parsed.dtype == np.uint8 and not parsed.flags.writeable
        np.testing.assert_array_equal(parsed, array)  # in the file's orientation


IMAGES = idx(make_arrays()["test-images"])
LABELS = idx(make_arrays()["test-labels"])
BAD_FILES = {
    "labels for images": ("images", LABELS),
    "images for labels": ("labels", IMAGES),
    "little-endian": ("labels", LABELS[3::-1] + LABELS[4:]),
    "HTML page": ("images", b"<!DOCTYPE html>"),
    "empty": ("labels", b""),
    "only half a header": ("images", IMAGES[:10]),
    "truncated": ("images", IMAGES[:-1]),
    "one byte too many": ("labels", LABELS + b"\0"),
    "zero images": ("images", idx(np.zeros((0, 28, 28)))),
    "zero labels": ("labels", idx(np.zeros(0))),
    "wide images": ("images", idx(np.zeros((47, 28, 32)))),
    "label 47": ("labels", LABELS[:-1] + bytes([47])),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_file_is_named(nb, fault):
    kind, content = BAD_FILES[fault]
    with complains("some-file"):
        nb.parse_idx(content, kind, "some-file")


def test_gzip_files_are_unzipped(nb, tmp_path):
    path = tmp_path / "file"
    packed = gzip.compress(LABELS)
    for raw, content in ((LABELS, LABELS), (packed, LABELS), (b"", b"")):
        path.write_bytes(raw)
        assert nb.read_bytes(path) == content
    wrong_sum = packed[:-8] + bytes(8)
    wrong_body = packed[:20] + bytes(20) + packed[40:]
    for damaged in (packed[:-9], packed[:3], wrong_sum, wrong_body):
        path.write_bytes(damaged)
        with complains(path):
            nb.read_bytes(path)


def test_characters_are_those_of_the_mapping_file(nb):
    """Which is shipped with the data: a class number and a Unicode number a line."""
    lines = [f"{number} {ord(letter)}\n" for number, letter in enumerate(nb.CHARACTERS)]
    assert (RECONSTRUCTED / MAPPING).read_bytes() == "".join(lines).encode()


FILES = make_files()
PACKED = pack(FILES)
UNMAPPED = {name: content for name, content in FILES.items() if name != MAPPING}
STRAYS = [".DS_Store", "Thumbs.db", "emnist-letters-train-images-idx3-ubyte"]
STRAYS += [f"{folder}._{name}" for name in FILES for folder in ("", "__MACOSX/")]
LAYOUTS = {
    "plain": FILES,
    "beside stray files": {**FILES, **dict.fromkeys(STRAYS, b"stray")},
    "gzip": PACKED,
    "torchvision": {f"EMNIST/raw/{name}": UNMAPPED[name] for name in UNMAPPED},
    "NIST": {f"gzip/{name}": PACKED[name] for name in PACKED},
    "Kaggle": {f"{name}/{name}": UNMAPPED[name] for name in UNMAPPED},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_other_sites(nb, tmp_path, layout):
    """Images come out upright, which is transposed, and labels as they are. Half a file
    in a hidden folder, which a killed process leaves, does no harm."""
    folder = write(tmp_path / ".cache", LAYOUTS[layout])  # itself hidden, but named
    for hidden in (".partial-a1b2c3", ".ipynb_checkpoints", "gzip/.Trash-1000"):
        write(folder / hidden, {name: PACKED[name][:-20] for name in PACKED})
    arrays = nb.read_emnist(folder)
    assert list(arrays) == list(NAMES)
    for key, array in make_arrays().items():
        upright = array.swapaxes(1, 2) if key.endswith("images") else array
        np.testing.assert_array_equal(arrays[key], upright)
        assert arrays[key].flags.c_contiguous


def test_what_is_missing_is_named(nb, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        start = re.escape(f"{folder}: expected emnist")
        with pytest.raises(FileNotFoundError, match=start):
            nb.read_emnist(folder)


def test_counts_have_to_match(nb, tmp_path):
    for key in ("train-labels", "test-labels"):
        write(tmp_path, {**FILES, NAMES[key]: idx(make_arrays()[key][:-1])})
        with complains(tmp_path) as error:
            nb.read_emnist(tmp_path)
        assert f"{key.split('-')[0]} images and" in str(error.value)


def test_split_is_the_published_one(real):
    """Byte for byte, so the shipped files are those that were published, too."""
    assert real.DATA_NAME == "the reconstructed split"
    assert digests(real) == DIGESTS and real.DATA_DIGEST == TRAINING_DIGEST
    augmented = real.augment_test_set(real.test_images)
    assert real.sha256(augmented) == AUGMENTED_DIGEST
    assert (augmented != real.test_images).any(axis=(1, 2)).all()


@pytest.mark.parametrize("quick", [False, True])
def test_cells_run_again_give_the_same(quick):
    """All of them, or only the last ones."""
    module = load_notebook("again")
    module.QUICK = quick
    found = [digests(run_cells(module, first)) for first in (0, 0, 1, 2)]
    assert found == found[:1] * 4


def test_no_image_is_in_two_parts(real):
    parts = (real.train_images, real.val_images, real.test_images)
    train, validation, test = ({image.tobytes() for image in part} for part in parts)
    assert not train & validation and not train & test and not validation & test
    counts = np.bincount(real.data["train-labels"])
    held_out = np.bincount(real.val_labels)
    np.testing.assert_array_equal(np.bincount(real.train_labels), counts - held_out)
    assert (np.abs(held_out - counts / 10) <= 0.5).all()


def test_characters_stand_upright_under_their_labels(real):
    """A T has most ink at the top, a d at the bottom, and a 1 in the middle columns."""
    numbers = [real.CHARACTERS.index(character) for character in "Td1"]
    t, d, one = (real.test_images[real.test_labels == n].mean(axis=0) for n in numbers)
    assert t[:10].sum() > 2 * t[18:].sum()
    assert d[18:].sum() > 2 * d[:10].sum()
    assert one[:, 10:18].sum() > 2 * one[10:18].sum()


@pytest.mark.parametrize("amount", [3, 0.1, 0.5, 1])
def test_stratified(nb, amount):
    """Of every class the same number or share, at least one, and the same each time."""
    labels = np.repeat(np.arange(47), np.arange(47) + 1)
    labels = np.random.RandomState(0).permutation(labels).astype(np.uint8)
    picked = nb.stratified(labels, amount, seed=1)
    assert (np.diff(picked) > 0).all()  # sorted, none twice
    counts = np.bincount(labels)
    wanted = np.minimum(amount, counts)
    if isinstance(amount, float):
        wanted = np.maximum(np.round(amount * counts), 1)
    np.testing.assert_array_equal(np.bincount(labels[picked], minlength=47), wanted)
    np.testing.assert_array_equal(picked, nb.stratified(labels, amount, seed=1))
    assert picked.tolist() != nb.stratified(labels, amount, seed=2).tolist()


@pytest.mark.parametrize("others", [False, True])
def test_images_that_were_trained_on_are_dropped(real, others):
    """Those of this run's data, or of the split that the models were trained on."""
    images = real.read_emnist(RECONSTRUCTED)["train-images"]
    data = {"train-images": real.test_images[:9]}
    shown = np.concatenate([images[[7, -1]], real.test_images[8:11]])
    values = {"data": data, "models": {"a": 0, "b": 0}, "test_images": shown}
    digest_of_b = others or real.DATA_DIGEST
    values["histories"] = {"a": {"data": real.DATA_DIGEST}, "b": {"data": digest_of_b}}
    values["test_labels"] = values["augmented_images"] = np.arange(5)
    expected = [2, 3, 4] if others else [0, 1, 3, 4]
    with contextlib.chdir(ROOT), patch.multiple(real, create=True, **values):
        run_cell_with(real, "trained_on = ")
        assert real.test_labels.tolist() == real.augmented_images.tolist() == expected
        np.testing.assert_array_equal(real.test_images, shown[expected])
