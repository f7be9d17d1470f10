"""What differs on other people's machines: settings, other files, cells run again."""

import ast
import json
import os
import symtable
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import nbclient
import nbformat
import pytest
from conftest import cell_with, cells_until, code_cells, load_notebook, run_cell_with
from idx_files import make_files, read, write

FACTS = """
facts = {"source": DATA_SOURCE, "backend": keras.backend.backend()}
facts["epsilon"] = keras.config.epsilon()
facts["formats"] = [keras.config.floatx(), keras.config.image_data_format()]
facts["dtypes"] = sorted({weight.dtype for weight in make_model("custom").weights})
h5py.File("locked.h5", "w").close()
with open("locked.h5") as other:
    with contextlib.suppress(ImportError):  # on Windows
        import fcntl
        fcntl.flock(other, fcntl.LOCK_EX)
    with h5py.File("locked.h5") as file:
        facts["locked file"] = len(file)
print("facts:", json.dumps(facts))
"""
CHART = "plt.plot([1, 2])\nplt.show()"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The facts, and the outputs of two charts, after the setup in a kernel, where the
    shell and the home directory have settings of other projects."""
    home = tmp_path_factory.mktemp("home")
    settings = {"floatx": "float16", "image_data_format": "channels_first"}
    settings |= {"backend": "torch", "epsilon": 0.1}
    write(home, {".keras/keras.json": json.dumps(settings).encode()})
    environment = {**os.environ, "HOME": str(home), "USERPROFILE": str(home)}
    environment |= {"MPLBACKEND": "agg", "EMNIST_DIR": "~/my data"}
    for name in ("KERAS_BACKEND", "KERAS_HOME", "HDF5_USE_FILE_LOCKING"):
        environment.pop(name, None)
    setup = cells_until("QUICK = PROFILE")
    texts = ("def add_convolution", "def add_custom", "def make_model")
    models = ["CLASSES, SIZE, QUICK = 47, 28, False", *map(cell_with, texts)]
    inline = cell_with("set_image_data_format")
    sources = [*setup, *models, FACTS, CHART, "matplotlib.use('pdf')", inline, CHART]
    book = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
    place = {"metadata": {"path": str(home)}}
    nbclient.NotebookClient(book, timeout=300, resources=place).execute(env=environment)
    facts, first, _, _, again = [cell.outputs for cell in book.cells[-5:]]
    return json.loads(facts[0].text.partition("facts: ")[2]), first, again


def test_settings_of_others_do_not_matter(elsewhere):
    """And charts are inline in a kernel, once more after the backend was changed."""
    facts, *charts = elsewhere
    assert facts["backend"] == "tensorflow" and facts["dtypes"] == ["float32"]
    assert facts["formats"] == ["float32", "channels_last"]
    assert facts["epsilon"] == 1e-7
    assert facts["locked file"] == 0, "a file that cannot be locked is read"
    for outputs in charts:
        assert any("image/png" in output.get("data", {}) for output in outputs)


UNKNOWN = {  # the cell that refuses an unknown value, and what it says
    "KERAS_BACKEND": ("import keras_tuner", "tensorflow or jax; found '{}'$"),
    "EMNIST_PROFILE": ("QUICK = ", "one of .'pretrained', 'quick', 'full'.; found {}$"),
}


@pytest.mark.parametrize("value", ["torch", "theano", "Quick", "fast", ""])
@pytest.mark.parametrize("name", UNKNOWN)
def test_settings_that_cannot_work_are_named(monkeypatch, name, value):
    """At once, and not deep inside of what is imported or computed."""
    text, expected = UNKNOWN[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}".format(value)):
        exec(cell_with(text), {"os": os, "Path": Path})


def test_old_python_is_refused_in_a_sentence(monkeypatch):
    """The first cells run on it, and no cell needs more than the oldest that is not."""
    for source in cells_until("sys.version_info <"):
        ast.parse(source, feature_version=(3, 8))
    for source in code_cells():
        ast.parse(source, feature_version=(3, 11))
    monkeypatch.setattr(sys, "version_info", (3, 10, 14))
    with pytest.raises(RuntimeError, match=r"expected Python 3\.11 or newer"):
        exec(cell_with("sys.version_info <"), {})


def test_packages_are_installed_in_colab_only(monkeypatch):
    install = Mock()
    monkeypatch.setattr("IPython.get_ipython", install)
    exec(cell_with("sys.version_info <"), {})
    install.assert_not_called()
    monkeypatch.setitem(sys.modules, "google.colab", Mock())
    exec(cell_with("sys.version_info <"), {})
    (command, packages), _ = install().run_line_magic.call_args
    assert command == "pip" and packages.startswith("install -q 'keras>=3.12' ")


def test_home_is_expanded(elsewhere, tmp_path, monkeypatch):
    """In the folder of the data; other tests see to pictures."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "my data", make_files())
    module = load_notebook("machine")
    module.DATA_SOURCE = elsewhere[0]["source"]
    run_cell_with(module, "data = read_emnist")
    assert str(module.DATA_FOLDER) == str(tmp_path / "my data")


@pytest.mark.parametrize("profile", ["pretrained", "quick", "full"])
def test_chart_is_saved_by_a_run_that_trains_alone(small, profile):
    """So a checkout that cannot be written to can be run."""
    scores = {"accuracy": 0.9, "ci95": [0.8, 1.0]}
    network = small.make_model("custom")
    models = {"custom_with_da": network, "custom_robust": network}
    values = {"PROFILE": profile, "QUICK": profile == "quick", "DATA_NAME": "made up"}
    values |= {"models": models, "score": lambda key, name: scores}
    with (
        patch.multiple(small, create=True, **values),
        patch("matplotlib.pyplot.show") as show,
    ):
        run_cell_with(small, "figure.savefig")
    show.assert_called_once()
    small.plt.close("all")
    places = {"quick": "runs/quick/Comparison.PNG", "full": "Comparison.PNG"}
    expected = [places[profile]] if profile in places else []
    assert list(read(Path())) == expected


def names_used(table):
    """Return the global names that the code of a symbol table refers to."""
    is_top = table.get_type() == "module"
    symbols = [symbol for symbol in table.get_symbols() if symbol.is_referenced()]
    names = {each.get_name() for each in symbols if is_top or each.is_global()}
    return names.union(*map(names_used, table.get_children()))


def test_names_of_other_cells_mean_one_thing():
    """What a cell takes from another is given by no third, or it would take something
    else after that was run again. Modules may be imported twice."""
    given, taken = [], set()
    for number, source in enumerate(code_cells()):
        table = symtable.symtable(source, f"cell {number}", "exec")
        symbols = [s for s in table.get_symbols() if s.is_assigned() or s.is_imported()]
        given += (names := {symbol.get_name() for symbol in symbols})
        taken |= names_used(table) - names
    several = {name for name in taken if given.count(name) > 1} - sys.modules.keys()
    # the test images less those that were trained on are still the test images
    assert several <= {"test_images", "test_labels", "augmented_images"}
