"""The networks, what they cost, and how trained ones are published."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, TINY, arrays, shrink
from keras import layers

PARAMETERS = {
    "resnet50v2": 23_654_836,  # as many as in the experiment of 2022
    "mobilenetv2": 2_318_242,
    "mobilenetv2_56px": 2_318_242 - 3 * (4 * 4 - 2 * 2),  # a smaller enlarging kernel
    "softmax": 784 * 47 + 47,
    "lenet5": 26 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 47,
}


def by_hand(widths, depths, stride=1, dense=0, **_):
    """Return a custom network's parameters and multiply-adds: 3 x 3 kernels without bias, 4 numbers
    a channel of batch normalisation, and the dense layers."""
    parameters, multiply_adds, before, side = 0, 0, 1, 28 // stride
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        side = side // 2 if stage == 2 or (stage == 1 and stride == 1) else side
        for _ in range(depth):
            parameters += 9 * before * width + 4 * width
            multiply_adds += 9 * before * width * side**2
            before = width
    if dense:
        parameters += (9 * before + 1) * dense
        multiply_adds += 9 * before * dense
        before = dense
    return parameters + (before + 1) * 47, multiply_adds + before * 47


@pytest.fixture(scope="module")
def networks(nb):
    """Every network of the notebook under its name."""
    return {name: nb.make_model(name) for name in nb.MAKERS}


def batch(count):
    """Return float32 images (count, 28, 28, 1) of 0 to 255."""
    return np.random.RandomState(0).randint(0, 256, (count, 28, 28, 1)).astype("float32")


@pytest.mark.parametrize("name", ("custom", *PARAMETERS))
def test_contract(nb, networks, name):
    """Images of 0 to 255 to 47 probabilities; rescaling is inside, and nothing reads around it. The
    architecture names nothing but Keras's own layers, in no dtype but float32."""
    model = networks[name]
    assert model.count_params() == PARAMETERS.get(name, by_hand((32, 48, 128), (1, 2, 2))[0])
    known = {"resnet50v2": 503.3, "mobilenetv2": 162.0}.get(name)
    assert known in (None, round(nb.count_mflops(model), 1))
    assert (model.input_shape, model.output_shape) == ((None, 28, 28, 1), (None, 47))
    found = np.asarray(model(batch(3), training=False))
    assert found.shape == (3, 47) and found.dtype == np.float32 and (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    inside = keras.Model(model.input, model.get_layer("rescaling").output)
    np.testing.assert_allclose(inside(batch(2)), batch(2) / 255, rtol=1e-6)
    readers = {node.operation.name for node in model.get_layer("image")._outbound_nodes}
    assert readers & {layer.name for layer in model.layers} == {"rescaling"}
    momenta = {layer.momentum for layer in model.layers if hasattr(layer, "momentum")}
    assert momenta == (set() if name in ("softmax", "lenet5") else {0.99})
    kinds = {variable.path.split("/")[-1] for variable in model.trainable_variables}
    assert kinds <= {"kernel", "bias", "gamma", "beta"}, "unknown to the weight decay"
    text = model.to_json()
    assert set(re.findall(r'"module": "(\w+)', text)) == {"keras"}
    assert set(re.findall(r'"registered_name": "?([^,"}]+)', text)) == {"null", "Functional"}
    policies = re.findall(r'"class_name": "DTypePolicy", "config": {"name": "(\w+)"', text)
    assert set(policies) == {"float32"}


def test_softmax_regression_by_hand(networks):
    kernel, bias = networks["softmax"].get_weights()
    shares = np.exp(batch(4).reshape(4, 784) / 255 @ kernel + bias)
    expected = shares / shares.sum(1, keepdims=True)
    np.testing.assert_allclose(networks["softmax"](batch(4)), expected, rtol=1e-4)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("dense", (0, 7))
@pytest.mark.parametrize("depths", ((1, 1, 1), (2, 3, 2)))
def test_custom_network(nb, stride, dense, depths):
    """Three stages at 28 (or 14), 14 and 7 px; a shortcut around every further convolution."""
    choice = {"widths": (3, 4, 5), "depths": depths, "stride": stride, "dense": dense}
    model = nb.make_custom(**choice, dropout=0.25)
    parameters, multiply_adds = by_hand(**choice)
    assert model.count_params() == parameters
    assert nb.count_mflops(model) == pytest.approx(2 * multiply_adds / 1e6, rel=1e-12)
    sides = [model.get_layer(f"stage{stage}_1_relu").output.shape[1:] for stage in (1, 2, 3)]
    assert sides == [(28 // stride, 28 // stride, 3), (14, 14, 4), (7, 7, 5)]
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Add") == sum(depths) - 3
    assert kinds.count("MaxPooling2D") == 3 - stride + bool(dense)
    assert ("Flatten" in kinds) == bool(dense) == ("GlobalAveragePooling2D" not in kinds)
    assert [layer.name for layer in model.layers[-3:]] == ["dropout", "logits", "probabilities"]
    assert model.get_layer("dropout").rate == 0.25
    if depths[0] == 2:
        ends = [f"stage1_{name}" for name in ("1_relu", "2_relu", "2_add")]
        inside = keras.Model(model.input, [model.get_layer(name).output for name in ends])
        before, branch, after = inside(batch(2))
        np.testing.assert_allclose(before + branch, after, rtol=1e-6)


# multiply-adds by hand: kernel size x output positions (input positions where transposed)
OPERATIONS = {
    "oblong": (layers.Conv2D(2, (1, 5), strides=(2, 1)), 5 * 1 * 2 * 14 * 24),
    "depthwise": (layers.DepthwiseConv2D(3, 2, depth_multiplier=2), 9 * 1 * 2 * 13 * 13),
    "transposed": (layers.Conv2DTranspose(3, 4, strides=4), 16 * 1 * 3 * 28 * 28),
    "dense, at each position": (layers.Dense(10), 1 * 10 * 28 * 28),
    "not counted": (layers.BatchNormalization(), 0),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_mflops_of_one_layer(nb, kind):
    layer, multiply_adds = OPERATIONS[kind]
    model = keras.Sequential([keras.Input((28, 28, 1)), layer])
    assert nb.count_mflops(model) == pytest.approx(2 * multiply_adds / 1e6, rel=1e-12)


def test_fresh_start(nb):
    """Initial weights depend on the seed alone; an earlier dtype policy is forgotten."""

    def made(seed, before):
        keras.utils.set_random_seed(before)
        for _ in range(before):
            nb.make_model("lenet5")
        with nb.fresh_start(seed):
            return arrays(nb.make_model("lenet5"))

    assert made(3, 0) == made(3, 2) != made(4, 0)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with nb.fresh_start(1):
            assert keras.config.dtype_policy().name == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def trained(nb, tmp_path_factory):
    """A small custom network, what it is made from and its history; trained a little."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(nb, patch.setattr)
        patch.chdir(tmp_path_factory.mktemp("trained"))
        made_from = nb.provenance("custom", TINY, 0.02, False, 3)
        net, history = nb.run(made_from)
    return net, made_from, history


def publish(nb, trained, key="custom_with_da"):
    """Publish the trained network as `key`; return its entry in the histories."""
    nb.publish(key, *trained)
    return nb.read_json(nb.PUBLISH / "histories.json")[key]


def loaded(folder, files):
    """Load a published model with plain Keras."""
    if files[0].endswith(".keras"):
        return keras.models.load_model(folder / files[0])
    model = keras.models.model_from_json((folder / files[0]).read_text())
    model.load_weights(folder / files[1])
    return model


def test_published_model(small, trained):
    """Float16 in the file, float32 in use; the temperature changes no decision, and helps."""
    entry, (net, made_from, history) = publish(small, trained), trained
    assert entry["files"] == ["custom_arch.json", "weights/custom_with_da.weights.h5"]
    with h5py.File(small.PUBLISH / entry["files"][1]) as file:
        kinds = set()
        file.visititems(lambda _, item: kinds.add(str(getattr(item, "dtype", "float16"))))
    assert kinds == {"float16"}
    model, (images, labels) = loaded(small.PUBLISH, entry["files"]), small.splits["validation"]
    assert {weight.dtype for weight in model.weights} == {"float32"}
    before, after = small.predict(net, images), small.predict(model, images)
    sharpened = before ** (1 / entry["temperature"])
    np.testing.assert_allclose(after, sharpened / sharpened.sum(1, keepdims=True), rtol=0.02)
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.95  # float16 rounds
    assert entry["temperature"] != 1
    assert small.score(after, labels)["nll"] < small.score(before, labels)["nll"]
    recall = small.class_weights(labels)[before.argmax(1) == labels].sum() / len(labels)
    assert entry["validation_recall"] == pytest.approx(recall, abs=1e-5)
    assert (entry["made_from"], entry["history"]) == (made_from, history)
    assert entry["seconds"] == round(sum(epoch["seconds"] for epoch in history))
    assert (entry["versions"], entry["hardware"]) == (small.versions, small.hardware())


def test_references_and_sums(small, trained):
    """Of a further seed the weights alone are published; the sums list every file."""
    seed = "weights/custom_with_da_seed7851.weights.h5"
    files = publish(small, trained, "custom_with_da_seed7851")["files"]
    assert files == ["custom_arch.json", seed]
    small.make_model("custom", **TINY).load_weights(small.PUBLISH / seed)
    (small.PUBLISH / ".half.json").write_text("what a kill left")
    names = sorted([*publish(small, trained)["files"], "histories.json", seed])
    lines = (small.PUBLISH / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{small.sha256(small.PUBLISH / name)}  {name}" for name in names]
    assert small.write_sums(small.PUBLISH) == small.sha256(small.PUBLISH / "SHA256SUMS")


SCRIPT = """
import json, sys, keras, numpy as np
folder, images = sys.argv[1], np.load("images.npy")
for key, entry in json.load(open(f"{folder}/histories.json")).items():
    first, *weights = (f"{folder}/{name}" for name in entry["files"])
    if weights:
        model = keras.models.model_from_json(open(first).read())
        model.load_weights(weights[0])
    else:
        model = keras.models.load_model(first)
    np.save(key, model.predict(images, verbose=0))
assert keras.backend.backend() == sys.argv[2] and "notebook" not in sys.modules
"""


@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
def test_loads_anywhere(small, trained, backend):
    """In a process that has no notebook, on either backend, both kinds of published models; what is
    published whole is not rounded."""
    pytest.importorskip(backend)
    whole = small.make_model("lenet5")
    made_from = {**trained[1], "architecture": "mobilenetv2", "network": {}}
    key, net = "mobilenetv2_with_da", (whole, made_from, trained[2])
    assert publish(small, net, key)["files"] == [f"{key}.keras"]
    assert arrays(loaded(small.PUBLISH, [f"{key}.keras"]))[:-2] == arrays(whole)[:-2]
    publish(small, trained)
    with zipfile.ZipFile(small.PUBLISH / f"{key}.keras") as file:
        texts = [file.read("config.json").decode()]
    for folder in (small.PUBLISH, ROOT / "pretrained"):
        texts += [path.read_text() for path in folder.glob("*_arch.json")]
    for text in texts:  # arguments that layers got since Keras 3.12, which would refuse them
        assert '"kernel_initializer"' in text and '"logits"' in text
        assert not re.search("renorm|quantization_config|input_axes|output_axes", text)
    np.save("images.npy", batch(5))
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(small.PUBLISH), backend]
    subprocess.run(command, env=environment, check=True)
    for key, entry in small.read_json(small.PUBLISH / "histories.json").items():
        expected = loaded(small.PUBLISH, entry["files"])(batch(5))
        np.testing.assert_allclose(np.load(f"{key}.npy"), expected, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ("custom", "mobilenetv2"))
@pytest.mark.parametrize("value", (np.nan, -1e6))
def test_weights_that_cannot_be_published(small, name, value):
    """Not a number, or too large for float16."""
    net = small.make_softmax()
    kernel, bias = net.get_weights()
    kernel[3, 3] = value
    net.set_weights([kernel, bias])
    made_from = small.provenance(name, {}, 0.1, True, 1)
    with pytest.raises(ValueError, match=f"{name}_with_da: expected weights"):
        small.publish(f"{name}_with_da", net, made_from, [{"seconds": 1}])
    assert not [path for path in Path().rglob("*") if path.is_file()]


def test_is_published(small, trained):
    made_from = trained[1]
    assert not small.is_published("custom_with_da", made_from)
    files = publish(small, trained)["files"]
    assert small.is_published("custom_with_da", {**made_from, "policy": "another"})
    assert not small.is_published("custom_without_da", made_from)
    for key in made_from.keys() - {"policy"}:
        assert not small.is_published("custom_with_da", {**made_from, key: "another"}), key
    (small.PUBLISH / files[1]).unlink()
    assert not small.is_published("custom_with_da", made_from)


@pytest.mark.parametrize("sharpness", (0.7, 1, 2.5))
def test_temperature_against_a_grid(nb, sharpness):
    """Each class weighs the same, however many images it has."""
    random = np.random.RandomState(0)
    labels = np.minimum(random.geometric(0.1, 2000) - 1, 46)
    shares = np.exp(sharpness * (random.normal(size=(2000, 47)) + 3 * np.eye(47)[labels]))
    probabilities = (shares / shares.sum(1, keepdims=True)).astype(np.float32)

    def loss(temperature):
        scaled = probabilities.astype(float) ** (1 / temperature)
        true = scaled[np.arange(2000), labels] / scaled.sum(1)
        return -np.average(np.log(true), weights=nb.class_weights(labels))

    best = min(np.linspace(0.25, 4, 751), key=loss)
    assert nb.fit_temperature(probabilities, labels) == pytest.approx(best, abs=0.01)


def test_temperature_is_bounded(nb):
    right = np.eye(47, dtype=np.float32)
    for bound, probabilities in ((0.25, 0.9 * right + 0.1 / 47), (4, right[::-1])):
        found = nb.fit_temperature(probabilities, np.arange(47))
        assert found == pytest.approx(bound, abs=0.01)


def test_plan_of_a_full_run(nb, monkeypatch):
    monkeypatch.setattr(nb, "BUDGET", nb.FULL)
    assert nb.planned({}, {}) == {}
    assert nb.planned({}, {"lenet5": 0.1}).keys() == {"lenet5_with_da"}
    rates = {**nb.RATES, "custom": 0.01}
    epochs = dict.fromkeys(nb.MODELS, 30)
    epochs |= {"softmax_with_da": 10, "lenet5_with_da": 16, "mobilenetv2_56px_with_da": 6}
    epochs |= {f"custom_with_da_seed{seed}": 30 for seed in (7851, 7852, 7853, 7854)}
    epochs |= {"custom_without_da_seed7851": 30, "custom_without_da_seed7852": 30}
    plan = nb.planned({"custom": TINY}, rates)
    assert {key: made_from["epochs"] for key, made_from in plan.items()} == epochs
    for key, made_from in plan.items():
        name = key.split("_with")[0]
        seed = int(key[-4:]) if "seed" in key else nb.SEED
        network, with_da = TINY if name == "custom" else {}, "without" not in key
        expected = nb.provenance(name, network, rates[name], with_da, epochs[key], None, seed)
        assert made_from == expected and made_from["batch"] == 128


def test_everything_is_in_the_provenance(small, monkeypatch):
    """Whatever changes what a training computes makes another record of it."""
    plain = {"architecture": "custom", "network": TINY, "rate": 0.1, "with_da": True, "epochs": 2}
    record = small.provenance(**plain)
    assert record == small.provenance(**plain | {"network": {**TINY, "widths": (4, 6, 8)}})
    changes = {"architecture": "lenet5", "network": {}, "rate": 0.2, "with_da": False, "epochs": 3}
    for key, value in {**changes, "images": 94, "seed": 1}.items():
        assert small.provenance(**plain | {key: value}) != record, key
    constants = {"VERSION": 0, "RECIPE": {}, "AUGMENTATION": {}, "DATA_DIGEST": {}}
    for name, value in {**constants, "BUDGET": {"batch": 1}}.items():
        with monkeypatch.context() as patch:
            patch.setattr(small, name, value)
            assert small.provenance(**plain) != record, name
