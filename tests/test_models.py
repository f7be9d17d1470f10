"""The networks and their costs, augmentation, corruption, and the published files."""

from unittest.mock import Mock

import h5py
import keras
import numpy as np
import pytest
from conftest import TINY, examples
from scipy import ndimage
from skimage import transform

COSTS = {
    "custom": (383_407, 27.854),  # parameters, MFLOPs
    "resnet50v2": (23_654_836, 503.296),
    "mobilenetv2": (2_318_242, 162.003),
    "mobilenetv2_56px": (2_318_242 - 3 * (4 * 4 - 2 * 2), 44.518),  # a smaller kernel
}
STILL = np.array([[0], [0], [1], [1], [0], [0]])  # shifts, zooms, rotation, shear
MOST = np.array([[2.8], [2.8], [0.2], [0.2], [np.deg2rad(20)], [0.2]])


def count_by_hand(widths, depths, stride=1, dense=0):
    """Return a custom network's parameters and MFLOPs: 3 x 3 kernels without bias, four
    numbers a channel of batch normalisation, and the dense layers."""
    parameters, products, channels, side = 0, 0, 1, 28 // stride
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage == 2 or (stage == 1 and stride == 1):
            side //= 2
        for _ in range(depth):
            parameters += 9 * channels * width + 4 * width
            products += 9 * channels * width * side**2
            channels = width
    for inputs, units in ((9 * channels, dense), (dense or channels, 47)):
        parameters += (inputs + 1) * units  # 9: the positions after a third pooling
        products += inputs * units
    return parameters, 2 * products / 1e6


def noise_images(count):
    """Return uint8 images (count, 28, 28) of noise, up to the edges."""
    return np.random.RandomState(0).randint(0, 256, (count, 28, 28)).astype("uint8")


@pytest.mark.parametrize("name", COSTS)
def test_contract_and_costs(nb, name):
    """Images of 0 to 255 become 47 probabilities; the scaling is part of the model."""
    model = nb.make_model(name)
    costs = model.count_params(), nb.count_mflops(model)
    assert costs == pytest.approx(COSTS[name], abs=0.01)
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 47))
    momenta = {layer.momentum for layer in model.layers if hasattr(layer, "momentum")}
    assert momenta == {0.99}
    images = noise_images(3)[..., None].astype("float32")
    found = np.asarray(model(images, training=False))
    assert found.dtype == np.float32 and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    rescaled = keras.Model(model.input, model.get_layer("rescaling").output)(images)
    np.testing.assert_allclose(rescaled, images / 255, rtol=1e-6)


@pytest.mark.parametrize("stride, dense", ((1, 0), (1, 7), (2, 0), (2, 7)))
def test_custom_network_by_hand(nb, stride, dense):
    choice = {
        "widths": (3, 4, 5),
        "depths": (2, 3, 1),
        "stride": stride,
        "dense": dense,
    }
    model = nb.make_model("custom", **choice, dropout=0.25)
    costs = model.count_params(), nb.count_mflops(model)
    assert costs == pytest.approx(count_by_hand(**choice), rel=1e-9)
    assert model.get_layer("dropout").rate == 0.25


def spot(x, y):
    """Return a float32 image (28, 28) of a spot, right of and below the centre."""
    rows, columns = np.mgrid[:28, :28] - 13.5
    return 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4).astype("float32")


MOVES = {
    "right": ({"shift_x": 3}, (0, 0), (3, 0)),
    "down": ({"shift_y": 3}, (0, 0), (0, 3)),
    "zoom above 1 enlarges": ({"zoom_x": 1.5}, (6, 4), (9, 4)),
    "zoom below 1 reduces": ({"zoom_y": 0.5}, (6, 4), (6, 2)),
    "counter-clockwise": ({"rotation": np.pi / 2}, (6, 0), (0, -6)),
}


@pytest.mark.parametrize("change, before, after", MOVES.values(), ids=MOVES)
def test_warp_moves_the_right_way(nb, change, before, after):
    """A spot of ink at `before` goes to `after`, in pixels from the centre."""
    (moved,) = nb.warp(np.rint(spot(*before)).astype("uint8")[None], **change)
    y, x = np.array(ndimage.center_of_mass(moved)) - 13.5
    assert (x, y) == pytest.approx(after, abs=0.15)


def warp_again(image, shift_x, shift_y, zoom_x, zoom_y, rotation):
    """Return an image (28, 28) warped by scikit-image, which asks where to read."""

    def place_of(pixels):
        x, y = (pixels - 13.5 - (shift_x, shift_y)).T
        turned = (x + 1j * y) * np.exp(1j * rotation)
        return np.stack([turned.real / zoom_x, turned.imag / zoom_y], axis=1) + 13.5

    return transform.warp(image.astype("float64"), place_of, order=1)


def test_warp_against_another_one(nb):
    """Every image by its own amounts, with 0 outside."""
    images = noise_images(4)
    random = np.random.RandomState(1)
    shifts, zooms = random.uniform(-6, 6, (2, 4)), random.uniform(0.6, 1.5, (2, 4))
    amounts = np.array([*shifts, *zooms, [0, 0.7, -2, 3]])
    found = nb.warp(images, *amounts)
    for image, warped, values in zip(images, found, amounts.T, strict=True):
        assert np.abs(warped - warp_again(image, *values)).max() <= 0.5 + 1e-6
    assert (nb.warp(images) == images).all()


@pytest.mark.parametrize("axes", ([0], [1], [2], [3], [4], range(5)))
def test_distortion_in_training_is_the_same_map(nb, monkeypatch, axes):
    """By draws of -1 to 1 the layer changes images as `warp` does by their amounts."""
    draws = np.zeros((6, 5))
    draws[list(axes)] = np.random.RandomState(3).uniform(-1, 1, (len(axes), 5))

    def uniform(shape, low=0, high=1, seed=None):
        values = draws if len(shape) == 2 else np.zeros(shape)
        return keras.ops.convert_to_tensor(values, "float32")

    monkeypatch.setattr(keras.random, "uniform", uniform)
    images = ndimage.gaussian_filter(noise_images(5).astype(float), (0, 3, 3))
    images = np.interp(images, (images.min(), images.max()), (0, 255)).astype("uint8")
    inputs = images[..., None].astype("float32")
    found = np.asarray(nb.RandomDistortion(0.75, seed=0)(inputs, training=True))[..., 0]
    amounts = STILL[:5] + MOST[:5] * draws[:5]
    inside = np.s_[:, 3:-3, 3:-3]
    expected = nb.warp(images, *amounts)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1.5)
    assert np.abs(found - images)[inside].max() > 10, "nothing happens"


def test_distortion_draws(nb, monkeypatch):
    """Three images in four, by amounts over their whole ranges, anew in each epoch."""
    rows = Mock(wraps=nb.affine_rows)
    monkeypatch.setattr(nb, "affine_rows", rows)
    layer = nb.RandomDistortion(0.75, seed=1)
    images = np.tile(spot(3, 5)[None, :, :, None], (4000, 1, 1, 1))
    for _ in range(2):
        changed = np.asarray(layer(images, training=True))
    assert (np.asarray(layer(images)) == images).all()
    assert (np.asarray(layer(images, training=False)) == images).all()
    moved = np.abs(changed - images).max(axis=(1, 2, 3)) > 0.01
    assert moved.mean() == pytest.approx(0.75, abs=0.03)
    first, second = (np.array(call.args[:6]) for call in rows.call_args_list)
    assert not np.allclose(first, second)
    draws = (second - STILL) / MOST
    np.testing.assert_allclose(np.abs(draws).max(axis=1), 1, rtol=0.01)
    assert (np.abs(draws[:, moved].mean(axis=1)) < 0.06).all()
    assert (draws[:, ~moved] == 0).all()


def test_gaussian_blur_against_scipy(nb):
    images = noise_images(4).astype("float32")
    sigmas = np.array([0.5, 0.7, 1.0, 1.25], "float32")
    found = nb.gaussian_blur(images[..., None], sigmas.reshape(4, 1, 1, 1))
    for image, blurred, sigma in zip(images, np.asarray(found), sigmas, strict=True):
        options = {"mode": "constant", "truncate": 4 / sigma}
        expected = ndimage.gaussian_filter(image, sigma, **options)
        np.testing.assert_allclose(blurred[..., 0], expected, atol=0.01)


def test_corruption(nb, monkeypatch):
    """A third of the images: noise, blur, thicker and thinner strokes, in 2:2:1:1."""
    blur = Mock(wraps=nb.gaussian_blur)
    monkeypatch.setattr(nb, "gaussian_blur", blur)
    image = np.full((28, 28), 100, "float32")
    image[9:19, 9:19] = 200
    images = np.tile(image[None, :, :, None], (6000, 1, 1, 1))
    layer = nb.RandomCorruption(1 / 3, seed=1)
    found = np.asarray(layer(images, training=True))[..., 0]
    assert (np.asarray(layer(images)) == images).all()
    assert (np.asarray(layer(images, training=False)) == images).all()
    two_values = np.isin(found, (100, 200)).all(axis=(1, 2))
    inked = (found == 200).sum(axis=(1, 2))
    even = np.abs(found - found[:, ::-1]).max(axis=(1, 2)) < 0.01
    kinds = {
        "unchanged": (two_values & (inked == 10 * 10), 2 / 3),
        "thicker": (two_values & (inked == 11 * 11), 1 / 18),
        "thinner": (two_values & (inked == 9 * 9), 1 / 18),
        "blurred": (~two_values & even, 1 / 9),
        "noisy": (~two_values & ~even, 1 / 9),
    }
    for kind, (chosen, share) in kinds.items():
        assert chosen.mean() == pytest.approx(share, abs=0.02), kind
    deviations = found[kinds["noisy"][0]][:, :7].std(axis=(1, 2))
    assert deviations.mean() == pytest.approx(25, abs=2) and deviations.max() < 60
    sigmas = np.asarray(blur.call_args.args[1])
    assert (sigmas.min(), sigmas.max()) == pytest.approx((0.5, 1.25), abs=0.01)
    always = nb.RandomCorruption(share=1.0, seed=1)
    extremes = always(images * 255 - 25_500, training=True)
    assert 0 <= np.min(extremes) < np.max(extremes) <= 255


def test_model_files(nb):
    for key in ("custom_with_da_seed7851", "mobilenetv2_56px_with_da", "custom_robust"):
        name = key.split("_with")[0].split("_robust")[0]
        expected = [f"{name}_arch.json", f"weights/{key}.weights.h5"]
        assert nb.model_files(key) == expected
    assert nb.model_files("mobilenetv2_with_da") == ["mobilenetv2_with_da.keras"]


@pytest.mark.parametrize("key", ("custom_with_da", "mobilenetv2_with_da"))
def test_written_models_load(small, key):
    """Float16 in the file of weights, float32 in use."""
    network = small.make_model("custom", **TINY)
    images, _ = examples(1, seed=3)
    small.write_model(network, key)
    last = small.PUBLISHED / small.model_files(key)[-1]
    if last.suffix == ".h5":
        with h5py.File(last) as file:
            assert file["layers/dense/vars/0"].dtype == np.float16
    model = small.load_model(key)
    assert {weight.dtype.name for weight in model.get_weights()} == {"float32"}
    found, expected = (small.predict(each, images) for each in (model, network))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    last.write_text("broken")
    with pytest.raises(ValueError, match=f"{key}: expected a Keras model"):
        small.load_model(key)
    last.unlink()
    with pytest.raises(ValueError, match=f"{key}: expected .*{last.name}"):
        small.load_model(key)
