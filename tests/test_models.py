"""The networks: their contract and cost, and publishing and loading them."""

import gzip
import json
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from servers import Server

ALL = ("custom", "resnet50v2", "mobilenetv2", "softmax", "lenet5", "mobilenetv2_56px")
MOST_PARAMETERS = 1_159_121  # half of MobileNetV2's 2,318,242
TINY = {"widths": (4, 6, 8), "depths": (1, 2, 1), "squeeze": True, "drop_path": 0.1}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def networks(nb):
    """Every network of the notebook under its name."""
    keras.utils.set_random_seed(1)
    return {name: nb.make_model(name) for name in ALL}


def pictures(count, seed=0):
    """Return uint8 images (count, 28, 28)."""
    return np.random.RandomState(seed).randint(0, 256, (count, 28, 28)).astype(np.uint8)


def batch(count, seed=0):
    """Return float32 images (count, 28, 28, 1) of 0 to 255."""
    return pictures(count, seed)[..., None].astype(np.float32)


# -------------------------------------------------------------------------- the contract


def test_parameter_counts(networks):
    # ResNet50V2 and MobileNetV2 of 2022, on which the new ones are modelled, had as many.
    assert networks["resnet50v2"].count_params() == 23_654_836
    assert networks["mobilenetv2"].count_params() == 2_318_242
    assert networks["mobilenetv2"].count_params() // 2 == MOST_PARAMETERS
    assert networks["custom"].count_params() <= MOST_PARAMETERS
    assert networks["softmax"].count_params() == 784 * 47 + 47
    # LeNet-5: two 5 x 5 convolutions to 6 and 16 channels, then 120, 84 and 47 units
    lenet5 = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 47
    assert networks["lenet5"].count_params() == lenet5


@pytest.mark.parametrize("name", ALL)
def test_images_to_probabilities(networks, name):
    model = networks[name]
    assert model.input_shape == (None, 28, 28, 1)
    assert model.output_shape == (None, 47)
    found = keras.ops.convert_to_numpy(model(batch(3), training=False))
    assert found.shape == (3, 47) and found.dtype == np.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_rescaling_is_inside(networks, name):
    model = networks[name]
    inside = keras.Model(model.input, model.get_layer("rescaling").output)
    np.testing.assert_allclose(inside(batch(2)), batch(2) / 255, rtol=1e-6)
    readers = [
        node.operation.name
        for node in model.get_layer("image")._outbound_nodes
        if node.operation.name in {layer.name for layer in model.layers}
    ]
    assert readers == ["rescaling"], "something reads the pixels as they come"


def test_softmax_regression_by_hand(networks):
    model, images = networks["softmax"], batch(4)
    kernel, bias = model.get_weights()
    logits = images.reshape(4, 784) / 255 @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4)


def test_probabilities_are_float32_whatever_the_policy(nb):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = nb.make_model("softmax")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("logits").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", ("custom", "mobilenetv2", "resnet50v2"))
def test_batch_normalisation_follows_short_runs(networks, name):
    momenta = {
        layer.momentum
        for layer in networks[name]._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    }
    assert momenta == {0.95}


def test_same_seed_same_network(nb):
    first, second = (nb.fresh_network("lenet5", {}, 3).get_weights() for _ in range(2))
    other = nb.fresh_network("lenet5", {}, 4).get_weights()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not (first[0] == other[0]).all()


def test_fresh_network_is_made_under_the_policy_in_force(nb):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        net = nb.fresh_network("softmax", {}, 1)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert net.get_layer("logits").dtype_policy.name == "mixed_bfloat16"


def test_unknown_network(nb):
    with pytest.raises(KeyError, match="vgg"):
        nb.make_model("vgg")


# ------------------------------------------------------------------------ the custom one


def custom_parameters(widths, depths, squeeze):
    """Count by hand: 3 x 3 kernels without bias, 4 numbers a channel of batch normalisation."""
    total, before = 0, 1
    for width, depth in zip(widths, depths, strict=True):
        for _ in range(depth):
            total += 9 * before * width + 4 * width
            before = width
        if squeeze:
            reduced = max(width // 8, 4)
            total += (width + 1) * reduced + (reduced + 1) * width
    return total + (before + 1) * 47


@pytest.mark.parametrize("squeeze", (False, True))
@pytest.mark.parametrize("widths, depths", (((3, 4, 5), (1, 1, 2)), ((4, 8, 48), (2, 3, 1))))
def test_custom_parameters_by_hand(nb, widths, depths, squeeze):
    model = nb.make_model("custom", widths=widths, depths=depths, squeeze=squeeze)
    assert model.count_params() == custom_parameters(widths, depths, squeeze)


def test_custom_default_is_within_the_budget(nb, networks):
    expected = custom_parameters(*(nb.CUSTOM[key] for key in ("widths", "depths", "squeeze")))
    assert networks["custom"].count_params() == expected <= MOST_PARAMETERS
    most = nb.count_mflops(networks["mobilenetv2"]) / 2
    assert nb.count_mflops(networks["custom"]) <= most


@pytest.mark.parametrize("pooling", ("max", "stride"))
def test_custom_halves_twice(nb, pooling):
    model = nb.make_model("custom", **TINY, pooling=pooling)
    shapes = [model.get_layer(f"stage{stage}_scale").output.shape[1:] for stage in (1, 2, 3)]
    assert shapes == [(28, 28, 4), (14, 14, 6), (7, 7, 8)]
    pools = sum(isinstance(layer, layers.MaxPooling2D) for layer in model.layers)
    strides = sum(
        layer.strides == (2, 2) for layer in model.layers if isinstance(layer, layers.Conv2D)
    )
    assert (pools, strides) == ((2, 0) if pooling == "max" else (0, 2))


def test_stochastic_depth_drops_whole_branches(nb):
    model = nb.make_model("custom", widths=(4, 4, 4), depths=(2, 2, 2), drop_path=0.5)
    drops = [layer for layer in model.layers if layer.name.endswith("drop_path")]
    assert len(drops) == 3
    for drop in drops:
        assert drop.rate == 0.5
        kept = np.asarray(drop(np.ones((64, 2, 2, 3), np.float32), training=True))
        assert (kept == kept[:, :1, :1, :1]).all(), "parts of a branch were dropped"
        assert set(np.unique(kept)) == {0, 2}
    without = nb.make_model("custom", widths=(4, 4, 4), depths=(2, 2, 2), drop_path=0.0)
    assert not [layer for layer in without.layers if "drop_path" in layer.name]


def test_dropout_stands_before_the_last_layer(nb):
    model = nb.make_model("custom", **TINY, dropout=0.25)
    assert model.get_layer("dropout").rate == 0.25
    assert [layer.name for layer in model.layers[-3:]] == ["dropout", "logits", "probabilities"]


# ----------------------------------------------------------------------------- operations

# multiply-adds by hand: kernel size x output positions (input positions where transposed)
BY_HAND = {
    "convolution": (lambda: layers.Conv2D(4, 3, padding="same"), 9 * 1 * 4 * 28 * 28),
    "without padding": (lambda: layers.Conv2D(4, 3), 9 * 1 * 4 * 26 * 26),
    "strided": (lambda: layers.Conv2D(4, 3, strides=2, padding="same"), 9 * 1 * 4 * 14 * 14),
    "oblong": (lambda: layers.Conv2D(2, (1, 5), strides=(2, 1)), 5 * 1 * 2 * 14 * 24),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), 9 * 1 * 2 * 26 * 26),
    "transposed": (lambda: layers.Conv2DTranspose(3, 4, strides=4), 16 * 1 * 3 * 28 * 28),
    "dense": (lambda: keras.Sequential([layers.Flatten(), layers.Dense(10)]), 784 * 10),
    "dense at every pixel": (lambda: layers.Dense(10), 1 * 10 * 28 * 28),
    "not counted": (lambda: layers.BatchNormalization(), 0),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_mflops_of_one_layer(nb, kind):
    layer, multiply_adds = BY_HAND[kind]
    model = keras.Sequential([keras.Input((28, 28, 1)), layer()])
    assert nb.count_mflops(model) == pytest.approx(2 * multiply_adds / 1e6, rel=1e-12)


def test_mflops_of_nested_and_depthwise(nb):
    block = keras.Sequential(
        [
            keras.Input((28, 28, 6)),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),
            layers.Conv2D(5, 1),
        ]
    )
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(6, 1), block])
    multiply_adds = 6 * 784 + 9 * 6 * 196 + 6 * 5 * 196
    assert nb.count_mflops(model) == pytest.approx(2 * multiply_adds / 1e6, rel=1e-12)


def test_mflops_of_squeeze_and_excite(nb):
    image = keras.Input((7, 7, 48))
    model = keras.Model(image, nb.squeeze_and_excite(image, 48, "se"))
    assert model.output_shape == (None, 7, 7, 48)
    assert nb.count_mflops(model) == pytest.approx(2 * (48 * 6 + 6 * 48) / 1e6, rel=1e-12)


def test_squeeze_and_excite_weighs_channels(nb):
    image = keras.Input((3, 3, 8))
    model = keras.Model(image, nb.squeeze_and_excite(image, 8, "se"))
    x = np.random.RandomState(0).normal(size=(2, 3, 3, 8)).astype(np.float32)
    weight = np.asarray(model(x)) / x
    np.testing.assert_allclose(weight, np.broadcast_to(weight[:, :1, :1], x.shape), rtol=1e-4)
    assert (weight > 0).all() and (weight < 1).all()


def test_mflops_of_the_custom_network(nb):
    model = nb.make_model("custom", widths=(3, 4, 5), depths=(1, 2, 1), pooling="max")
    multiply_adds = 9 * 3 * 784 + (9 * 3 * 4 + 9 * 4 * 4) * 196 + 9 * 4 * 5 * 49 + 5 * 47
    assert nb.count_mflops(model) == pytest.approx(2 * multiply_adds / 1e6, rel=1e-12)


def test_mflops_against_the_published_count(nb):
    # Sandler et al. 2018, arXiv:1801.04381, table 4: MobileNetV2 1.0 at 224 px, 300 M multiply-adds
    model = keras.applications.MobileNetV2(weights=None)
    assert nb.count_mflops(model) / 2 == pytest.approx(300, rel=0.01)


# ------------------------------------------------------------------- what can be published


def parts(config):
    """Yield every dictionary within a model's configuration."""
    if isinstance(config, dict):
        yield config
        for value in config.values():
            yield from parts(value)
    elif isinstance(config, list):
        for value in config:
            yield from parts(value)


def strangers(config):
    """Return what in a configuration is not plain Keras: custom classes, functions, policies."""
    found = []
    for part in parts(config):
        if "class_name" in part and not (part.get("module") or "keras").startswith("keras"):
            found.append(part)
        if ">" in (part.get("registered_name") or "") or part.get("class_name") == "__lambda__":
            found.append(part)
        if part.get("class_name") == "DTypePolicy" and part["config"]["name"] != "float32":
            found.append(part)
    return found


def test_strangers_are_seen(nb):
    augmented = nb.training_model(nb.make_model("softmax"), nb.AUGMENTATION)
    assert strangers(json.loads(augmented.to_json()))
    function = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    assert strangers(json.loads(function.to_json()))


@pytest.mark.parametrize("name", ("custom", "resnet50v2", "mobilenetv2"))
def test_published_kinds_are_plain_keras(nb, networks, name):
    text = networks[name].to_json()
    assert strangers(json.loads(text)) == []
    if name == "resnet50v2":  # seconds to build
        return
    model = keras.models.model_from_json(json.dumps(nb.portable(json.loads(text))))
    assert model.count_params() == networks[name].count_params()


@pytest.mark.parametrize(
    "settings",
    ({"pooling": "stride", "squeeze": True, "drop_path": 0.1}, {"pooling": "max", "dropout": 0.4}),
)
def test_whatever_the_tuner_chooses_is_plain_keras(nb, settings):
    model = nb.make_model("custom", **settings)
    assert strangers(json.loads(model.to_json())) == []


def test_portable(nb):
    config = {
        "a": [{"quantization_config": None, "b": None}, 1],
        "quantization_config": None,
        "c": {"quantization_config": {"kind": 8}},
        "d": "quantization_config",
    }
    before = json.dumps(config)
    assert nb.portable(config) == {
        "a": [{"b": None}, 1],
        "c": {"quantization_config": {"kind": 8}},
        "d": "quantization_config",
    }
    assert json.dumps(config) == before, "the argument was changed"


def test_portable_drops_defaults_alone(nb):
    changed = dict.fromkeys(nb.NEWER_KEYS, "another value")
    assert nb.portable([changed]) == [changed]
    assert nb.portable({"config": dict(nb.NEWER_KEYS), "momentum": 0.99}) == {
        "config": {},
        "momentum": 0.99,
    }


def test_portable_models_name_nothing_new(nb, networks):
    for name in ("custom", "mobilenetv2"):
        config = nb.portable(json.loads(networks[name].to_json()))
        assert not any(key in part for part in parts(config) for key in nb.NEWER_KEYS)


# ------------------------------------------------------------------------ temperature


def lively(model, seed=0):
    """Give `model` random weights whose answers are far from uniform; return it."""
    random = np.random.RandomState(seed)
    model.set_weights(
        [
            np.abs(weight + random.normal(0, 0.1, weight.shape))
            if "variance" in variable.path
            else weight + random.normal(0, 0.05, weight.shape)
            for variable, weight in zip(model.weights, model.get_weights(), strict=True)
        ]
    )
    logits = model.get_layer("logits")
    spread = np.ptp(inner(model)(batch(64))) + 1e-9
    logits.set_weights([weight * 16 / spread for weight in logits.get_weights()])
    return model


def inner(model):
    """Return the model up to its logits."""
    return keras.Model(model.input, model.get_layer("logits").output)


def test_temperature_is_folded_into_the_last_layer(nb, monkeypatch):
    monkeypatch.setattr(nb, "estimate_statistics", lambda *arguments: None)
    net = lively(nb.make_model("custom", **TINY))
    images = pictures(300)
    sure = np.asarray(net(images[..., None]), np.float64)
    flat = sure ** (1 / 2.5)
    flat /= flat.sum(1, keepdims=True)
    random = np.random.RandomState(1)
    labels = np.array([random.choice(47, p=row) for row in flat])  # as if the truth were flatter
    before = [weight.copy() for weight in net.get_weights()]
    held = (images, labels)
    plain, temperature, recall = nb.plain_network(net, "custom", TINY, images, None, held)
    assert temperature > 1.3
    right = sure.argmax(1) == labels
    expected = np.mean([right[labels == label].mean() for label in np.unique(labels)])
    assert recall == pytest.approx(expected, abs=1e-6)
    expected = sure ** (1 / temperature)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(nb.predict(plain, images), expected, atol=1e-5)
    assert all((a == b).all() for a, b in zip(before, net.get_weights(), strict=True))
    assert not plain.compiled and {weight.dtype for weight in plain.weights} == {"float32"}


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
def test_non_finite_weights_are_not_published(nb, value):
    net = nb.make_model("custom", **TINY)
    weights = net.get_weights()
    weights[3].flat[1] = value
    net.set_weights(weights)
    with pytest.raises(ValueError, match=r"custom: expected finite weights; found NaN or infinity"):
        nb.plain_network(net, "custom", TINY, pictures(9), None, (pictures(47), np.arange(47)))


@pytest.mark.parametrize("augment", (None, {"shift": 0.3, "zoom": 0, "rotation": 0, "shear": 0}))
def test_statistics_are_means_over_training_images(nb, augment):
    """Of the images as they are and, with augmentation, of every other batch augmented."""
    images = pictures(64)
    net = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.BatchNormalization()])
    norm = net.layers[0]
    norm.momentum = 0.7
    nb.estimate_statistics(net, images, augment, 5, batch=16, most=48)
    picked = images[np.random.RandomState(5).permutation(64)[:48]].reshape(3, 16, 28, 28, 1)
    blocks = picked.astype(np.float32)
    if augment:
        layer = nb.RandomDistortion(**augment, seed=5)
        blocks[1] = keras.ops.convert_to_numpy(layer(blocks[1], training=True))
    mean, variance = (np.asarray(value) for value in (norm.moving_mean, norm.moving_variance))
    np.testing.assert_allclose(mean, blocks.mean((1, 2, 3, 4)).mean(), rtol=1e-4)
    np.testing.assert_allclose(variance, blocks.var((1, 2, 3, 4)).mean(), rtol=1e-3)
    assert norm.momentum == 0.7


def test_statistics_of_few_images_and_of_networks_without_any(nb):
    net = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.BatchNormalization()])
    images = pictures(5)
    nb.estimate_statistics(net, images, None, 1)
    np.testing.assert_allclose(np.asarray(net.layers[0].moving_mean), images.mean(), rtol=1e-4)
    plain = nb.make_model("softmax")
    before = plain.get_weights()
    nb.estimate_statistics(plain, images, nb.AUGMENTATION, 1)
    assert all((a == b).all() for a, b in zip(before, plain.get_weights(), strict=True))


def test_published_network_has_new_statistics(nb):
    net = lively(nb.make_model("custom", **TINY))
    held = (pictures(47), np.arange(47))
    plain, _, _ = nb.plain_network(net, "custom", TINY, pictures(200), None, held)
    norm, before = plain.get_layer("stage1_1_bn"), net.get_layer("stage1_1_bn")
    assert not np.allclose(norm.moving_mean, before.moving_mean)
    np.testing.assert_array_equal(norm.gamma, before.gamma)
    again, _, _ = nb.plain_network(net, "custom", TINY, pictures(200), None, held)
    assert all(
        (a == b).all() for a, b in zip(plain.get_weights(), again.get_weights(), strict=True)
    )


# ------------------------------------------------------------------------- publishing


def fake_mobilenetv2(seed):
    """Return a small network that stands in where only the file format matters."""
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(3, 5, strides=3)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(47, name="logits")(layers.Flatten()(x))
    return lively(keras.Model(image, layers.Activation("softmax")(x), name="mobilenetv2"), seed)


@pytest.fixture(scope="module")
def release(nb, tmp_path_factory):
    """A published folder without ResNet50V2: (folder, digest, {(name, variant): network})."""
    folder = tmp_path_factory.mktemp("release")
    models, names = {}, []
    for seed, variant in enumerate(nb.VARIANTS):
        keras.utils.set_random_seed(seed)
        models["custom", variant] = lively(nb.make_model("custom", **TINY), seed)
        models["mobilenetv2", variant] = fake_mobilenetv2(seed + 2)
    for (name, variant), model in models.items():
        names += nb.write_model(model, name, variant, folder)
    nb.write_json(folder / "results.json", {"made": "up"})
    nb.write_json(folder / "tuning" / "trunk" / "made_from.json", "abc")
    digest = nb.write_sums(folder)
    assert set(names) == {
        "custom_arch.json",
        "custom_without_da.weights.h5",
        "custom_with_da.weights.h5",
        "mobilenetv2_without_da.keras",
        "mobilenetv2_with_da.keras",
    }
    return folder, digest, models


@pytest.fixture
def copy(release, tmp_path, monkeypatch):
    """A copy of the release to spoil: (folder, digest)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "pretrained"
    for path in release[0].rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(release[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder, release[1]


@pytest.fixture
def offline(nb, monkeypatch):
    """Fail the test at once if anything is fetched."""

    def fetch(url, *arguments, **options):
        raise AssertionError(f"{url} was asked for")

    monkeypatch.setattr(nb, "fetch", fetch)


@pytest.fixture
def opened(monkeypatch):
    """The files that Keras was given to load, in order."""
    files = []

    def spy(owner, name):
        real = getattr(owner, name)

        def wrapper(*arguments, **options):
            files.extend(Path(a).name for a in arguments if isinstance(a, str | Path))
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapper)

    spy(keras.Model, "load_weights")
    spy(keras.models, "load_model")
    return files


def everything(folder):
    """Return {relative path: bytes} of all files below `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def spoil(path):
    """Change one byte in the middle of a file, keeping its length; return what it holds now."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return bytes(content)


def test_release_comes_back(nb, release, offline):
    folder, digest, originals = release
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    models, missing = nb.load_all(published)
    assert published.notes == []
    assert missing == {("resnet50v2", variant): "not published yet" for variant in nb.VARIANTS}
    assert set(models) == set(originals)
    images, sure = batch(200, seed=5), []
    for key, original in originals.items():
        before, after = np.asarray(original(images)), np.asarray(models[key](images))
        assert np.abs(after - before).max() < 2e-3
        sure.append(before.max())
        assert {variable.dtype for variable in models[key].weights} == {"float32"}
        assert not models[key].compiled
        assert models[key].input_shape == (None, 28, 28, 1)
    assert min(sure) > 0.4, "with flat answers the comparison would prove little"
    with_da, without = (models["custom", variant].get_weights()[0] for variant in nb.VARIANTS)
    assert not np.allclose(with_da, without)


def test_real_mobilenetv2_round_trip(nb, networks, tmp_path):
    model = networks["mobilenetv2"]
    before_weights = model.get_weights()
    lively(model)
    names = nb.write_model(model, "mobilenetv2", "with_da", tmp_path)
    assert names == ["mobilenetv2_with_da.keras"]
    assert (tmp_path / names[0]).stat().st_size < 2.5 * model.count_params()  # float32 takes 4
    published = nb.Published(tmp_path, None, nb.write_sums(tmp_path))
    models, _ = nb.load_all(published)
    found = models["mobilenetv2", "with_da"]
    before, after = (np.asarray(m(batch(8), training=False)) for m in (model, found))
    assert before.max() > 0.15
    assert np.abs(after - before).max() < 2e-3
    assert found.count_params() == 2_318_242
    model.set_weights(before_weights)


def test_files_hold_float16_alone(nb, release):
    folder = release[0]
    weights = [nb.h5py.File(path) for path in folder.glob("*.weights.h5")]
    with zipfile.ZipFile(folder / "mobilenetv2_with_da.keras") as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        weights.append(nb.h5py.File(archive.open("model.weights.h5")))
        assert strangers(json.loads(archive.read("config.json"))) == []
    for file in weights:
        kinds, names = [], []
        file.visititems(lambda name, item: kinds.append(getattr(item, "dtype", None)))  # noqa: B023
        file.visit(names.append)
        kinds = {str(kind) for kind in kinds if kind is not None}
        assert "float16" in kinds and not kinds & {"float32", "float64"}
        assert not any("optimizer" in name for name in names)
        file.close()


def test_compiled_model_is_published_without_its_optimiser(nb, release, tmp_path):
    net = nb.make_model("custom", **TINY)
    net.compile("adam", "categorical_crossentropy")
    net.optimizer.build(net.trainable_variables)
    held = (pictures(47), np.arange(47))
    plain, _, _ = nb.plain_network(net, "custom", TINY, pictures(9), None, held)
    nb.write_model(plain, "custom", "with_da", tmp_path)
    small = (release[0] / "custom_with_da.weights.h5").stat().st_size
    assert (tmp_path / "custom_with_da.weights.h5").stat().st_size < 1.2 * small


@pytest.mark.parametrize("name", ("custom", "mobilenetv2"))
def test_weights_beyond_float16_are_not_published(nb, name, tmp_path):
    model = nb.make_model("custom", **TINY) if name == "custom" else fake_mobilenetv2(0)
    kernel, bias = model.get_layer("logits").get_weights()
    kernel[0, 0] = 70_000  # float16 ends at 65,504
    model.get_layer("logits").set_weights([kernel, bias])
    with pytest.raises(
        ValueError, match=r"expected weights within float16; found layers/dense\S* "
    ):
        nb.write_model(model, name, "with_da", tmp_path)
    assert not [path for path in tmp_path.iterdir() if "with_da" in path.name]


def test_sums_list_every_file_once(nb, release):
    folder, digest, _ = release
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    assert listed == {
        name: nb.sha256(folder / name) for name in everything(folder) if name != "SHA256SUMS"
    }
    assert "tuning/trunk/made_from.json" in listed
    assert digest == nb.sha256(folder / "SHA256SUMS") == nb.write_sums(folder)


# ---------------------------------------------------------------- files that are not right


def complaint(path, expected, found):
    """Return the note on a file at `path` that is not the one that was listed."""
    return f"{path}: expected SHA-256 {expected}; found {found}. It was not opened."


@pytest.mark.parametrize(
    "name, lost",
    (
        ("custom_with_da.weights.h5", [("custom", "with_da")]),
        ("mobilenetv2_without_da.keras", [("mobilenetv2", "without_da")]),
        ("custom_arch.json", [("custom", "without_da"), ("custom", "with_da")]),
    ),
)
def test_tampered_file_is_not_opened(nb, release, copy, offline, opened, name, lost):
    folder, digest = copy
    expected = nb.sha256(folder / name)
    spoil(folder / name)
    before = everything(folder)
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    models, missing = nb.load_all(published)
    for key in lost:
        assert missing[key] == complaint(folder / name, expected, nb.sha256(folder / name))
    assert set(models) == set(release[2]) - set(lost), "the rest did not load"
    assert name not in opened
    if name == "custom_arch.json":
        assert not [file for file in opened if file.startswith("custom")]
    assert everything(folder) == before, "a file was changed"


def test_tampered_list_opens_nothing(nb, copy, offline, opened):
    folder, digest = copy
    spoil(folder / "SHA256SUMS")
    before = everything(folder)
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    note = complaint(folder / "SHA256SUMS", digest, nb.sha256(folder / "SHA256SUMS"))
    assert published.notes == [note]
    models, missing = nb.load_all(published)
    assert models == {} and opened == []
    assert set(missing.values()) == {note}, "the reason was not told"
    assert published.json("results.json") is None and published.file("results.json") is None
    assert everything(folder) == before


def test_rewritten_list_that_vouches_for_a_bad_file(nb, copy, offline):
    folder, digest = copy
    spoil(folder / "results.json")
    assert nb.write_sums(folder) != digest
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    assert published.json("results.json") is None


def listing(nb, folder, *lines):
    """Write SHA256SUMS of exactly these lines and return its digest."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))
    return nb.sha256(folder / "SHA256SUMS")


@pytest.mark.parametrize("name", ("../outside.json", "tuning/../../outside.json", "absolute"))
def test_way_out_of_the_folder_is_refused(nb, tmp_path, offline, name):
    outside = tmp_path / "outside.json"
    outside.write_text('{"secret": 1}')
    name = str(outside) if name == "absolute" else name
    folder = tmp_path / "pretrained"
    digest = listing(nb, folder, f"{nb.sha256(outside)}  {name}")
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    assert published.file(name) is None and published.json(name) is None
    expected = f"{name}: expected a file below {folder}; found a way out of it"
    assert set(published.notes) == {expected}


def test_way_out_of_the_folder_writes_nothing(nb, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = b"evil"
    with Server({"../evil": content, "evil": content}) as server:
        digest = listing(nb, tmp_path / "in", f"{nb.sha256(content)}  ../evil")
        assert nb.Published(tmp_path / "in", server.url, digest).file("../evil") is None
        assert server.paths == []
    assert set(everything(tmp_path)) == {"in/SHA256SUMS"}


def test_file_that_is_not_listed(nb, copy, offline):
    folder, _ = copy
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    digest = listing(nb, folder, *(line for line in lines if "custom_arch" not in line))
    published = nb.Published(folder, "http://nowhere.invalid/", digest)
    models, missing = nb.load_all(published)
    assert {name for name, _ in models} == {"mobilenetv2"}
    assert "custom_arch.json" in missing["custom", "with_da"]


def test_broken_file_that_the_list_vouches_for(nb, copy, offline):
    folder, _ = copy
    (folder / "mobilenetv2_with_da.keras").write_bytes(b"not a zip file")
    (folder / "custom_with_da.weights.h5").write_bytes(gzip.compress(b"not HDF5"))
    published = nb.Published(folder, "http://nowhere.invalid/", nb.write_sums(folder))
    models, missing = nb.load_all(published)
    assert set(models) == {("custom", "without_da"), ("mobilenetv2", "without_da")}
    assert missing["custom", "with_da"].startswith("custom_with_da: ")
    assert missing["mobilenetv2", "with_da"].startswith("mobilenetv2_with_da: ")


def test_error_without_words(nb, copy, offline, monkeypatch):
    def load_model(published, name, variant):
        raise AssertionError

    monkeypatch.setattr(nb, "load_model", load_model)
    models, missing = nb.load_all(nb.Published(copy[0], None, copy[1]))
    assert models == {} and missing["custom", "with_da"].startswith("custom_with_da: ")


@pytest.mark.parametrize("name", ("custom", "mobilenetv2"))
def test_code_in_a_model_is_not_run(nb, copy, offline, name, tmp_path):
    folder, _ = copy
    mark = tmp_path / "was here"
    path = str(mark)
    spy = layers.Lambda(lambda x: (open(path, "w").close(), x)[1], output_shape=(47,))
    plain = nb.make_model("softmax")
    plain = keras.Model(plain.input, spy(plain.output))
    plain(batch(1))
    assert mark.exists(), "the layer does nothing"
    mark.unlink()
    nb.write_model(plain, name, "with_da", folder)
    published = nb.Published(folder, None, nb.write_sums(folder))
    models, missing = nb.load_all(published)
    assert not mark.exists() and (name, "with_da") not in models
    assert missing[name, "with_da"].startswith(f"{name}_with_da: ")


# ------------------------------------------------------------------------------ fetching


def test_missing_files_come_from_a_folder(nb, release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, digest, originals = release
    here = tmp_path / "new" / "pretrained"
    published = nb.Published(here, folder.as_uri(), digest)
    model = nb.load_model(published, "custom", "with_da")
    assert published.notes == []
    images = batch(20)
    np.testing.assert_allclose(model(images), originals["custom", "with_da"](images), atol=2e-3)
    source = everything(folder)
    wanted = ("SHA256SUMS", "custom_arch.json", "custom_with_da.weights.h5")
    assert everything(here) == {name: source[name] for name in wanted}


def test_only_what_is_missing_is_asked_for(nb, release, copy):
    folder, digest = copy
    (folder / "custom_with_da.weights.h5").unlink()
    (folder / "tuning/trunk/made_from.json").unlink()
    with Server(everything(release[0])) as server:
        published = nb.Published(folder, server.url.rstrip("/"), digest)
        models, _ = nb.load_all(published)
        assert published.json("tuning/trunk/made_from.json") == "abc"
        assert server.paths == ["custom_with_da.weights.h5", "tuning/trunk/made_from.json"]
    assert set(models) == set(release[2]) and published.notes == []
    assert everything(folder) == everything(release[0])


def test_wrong_content_leaves_nothing(nb, release, copy, opened):
    folder, digest = copy
    name = "custom_with_da.weights.h5"
    (folder / name).unlink()
    before = everything(folder)
    wrong = b"x" * len(everything(release[0])[name])
    with Server({name: wrong}) as server:
        published = nb.Published(folder, server.url, digest)
        models, missing = nb.load_all(published)
    assert everything(folder) == before, "something was left behind"
    assert name not in opened
    assert set(models) == set(release[2]) - {("custom", "with_da")}
    note = missing["custom", "with_da"]
    assert note.startswith(f"{server.url}{name}: ")
    assert f"expected SHA-256 {nb.sha256(release[0] / name)}; found {nb.sha256(wrong)}" in note


def test_wrong_list_from_the_server(nb, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server({"SHA256SUMS": b"0" * 64 + b"  results.json\n", "results.json": b"{}"}) as server:
        published = nb.Published(tmp_path / "in", server.url, "1" * 64)
        assert published.json("results.json") is None
        assert server.paths == ["SHA256SUMS"]
    assert everything(tmp_path) == {}
    assert "1" * 64 in published.notes[0] and server.url in published.notes[0]


def test_file_not_found_is_no_reason_to_give_up_the_rest(nb, release, copy):
    folder, digest = copy
    for name in ("custom_without_da.weights.h5", "mobilenetv2_with_da.keras"):
        (folder / name).unlink()
    served = everything(release[0])
    del served["custom_without_da.weights.h5"]
    with Server(served) as server:
        models, missing = nb.load_all(nb.Published(folder, server.url, digest))
    assert set(models) == set(release[2]) - {("custom", "without_da")}
    assert "404" in missing["custom", "without_da"]


def test_server_that_is_down_is_asked_once(nb, copy, monkeypatch):
    folder, digest = copy
    for path in folder.glob("*_da.*"):
        path.unlink()
    asked = []

    def fetch(url, path, check=None):
        asked.append(url)
        raise ConnectionError(f"{url}: could not be downloaded: connection refused")

    monkeypatch.setattr(nb, "fetch", fetch)
    published = nb.Published(folder, "http://127.0.0.1:9/", digest)
    models, missing = nb.load_all(published)
    assert models == {} and len(asked) == 1
    assert missing["custom", "without_da"].endswith("connection refused")
    path = folder / "custom_with_da.weights.h5"
    expected = f"{path}: not here, and no server for it could be reached"
    assert missing["custom", "with_da"] == expected


# ---------------------------------------------------------------------- seen in training


def test_images_trained_on_are_dropped(nb, tmp_path):
    images = pictures(10)
    np.save(tmp_path / "train_images.npy", np.sort(nb.image_digests(images[[1, 4]])))
    published = nb.Published(tmp_path, None, nb.write_sums(tmp_path))
    augmented, labels = pictures(10, seed=1), np.arange(10)
    kept, warped, classes, sentence = nb.keep_unseen(images, augmented, labels, published)
    keep = [0, 2, 3, 5, 6, 7, 8, 9]
    assert (kept == images[keep]).all() and (warped == augmented[keep]).all()
    assert list(classes) == keep and sentence.startswith("2 of 10 test images")


def test_it_is_said_if_the_training_images_are_unknown(nb, tmp_path):
    published = nb.Published(tmp_path, None, nb.write_sums(tmp_path))
    images = pictures(2)
    *same, sentence = nb.keep_unseen(images, images, np.arange(2), published)
    assert (same[0] == images).all() and len(same[2]) == 2
    assert "not known" in sentence


# ------------------------------------------------------------------ what is in pretrained/


@pytest.mark.skipif(not (ROOT / "pretrained" / "SHA256SUMS").exists(), reason="nothing published")
def test_what_is_published_here(nb, offline):
    published = nb.Published(ROOT / "pretrained", "http://nowhere.invalid/", nb.PUBLISHED_DIGEST)
    models, _ = nb.load_all(published)
    assert published.notes == [] and models, "the published models do not load"
    results = published.json("results.json")
    for (name, _), model in models.items():
        assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 47)
        assert strangers(json.loads(model.to_json())) == []
        recorded = results["models"][name]
        assert recorded["params"] == model.count_params()
        assert recorded["mflops"] == pytest.approx(nb.count_mflops(model), abs=1e-3)
        if name == "custom":
            assert model.count_params() <= MOST_PARAMETERS
            assert recorded["mflops"] <= results["models"]["mobilenetv2"]["mflops"] / 2
