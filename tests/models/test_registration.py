"""`keras.saving.load_model` finds the package's classes after `import keras_transfer`."""

import subprocess
import sys
from pathlib import Path

import pytest

SAVED = Path(__file__).parent.parent / "saved_by_0_1"

LOAD = "model = keras.saving.load_model(sys.argv[1]); print(getattr(model, 'optimizer', None))"
ORDERS = {
    "keras first": f"import keras, keras_transfer; {LOAD}",
    "a part of keras": f"import keras_transfer; from keras import layers; import keras; {LOAD}",
    "through TensorFlow": f"import keras_transfer, tensorflow as tf; tf.keras.layers; import keras; {LOAD}",
    "after our modules": f"import keras_transfer.models.heads; import keras; {LOAD}",
    "through our modules": f"import keras_transfer as kt; kt.Backbone; import keras; {LOAD}",
}
RARE = ("after our modules", "through our modules")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A model that is saved with an optimizer, a loss and metrics of the package."""
    import keras
    from conftest import tiny_backbone

    from keras_transfer.models.builders import build_model, compile_arguments, heads_of
    from keras_transfer.models.heads import Classification
    from keras_transfer.schedules.plans import WeightRule, per_weight

    model = build_model(tiny_backbone(), Classification("abc"), image_size=32)
    rules = [WeightRule(0.1)] * len(model.trainable_variables)
    optimizer = per_weight(keras.optimizers.AdamW(), rules)
    model.compile(optimizer, **compile_arguments(heads_of(model)))
    path = tmp_path_factory.mktemp("compiled") / "model.keras"
    model.save(path)
    return path


def run(code, *args):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\n{code}", *args],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "order", [pytest.param(o, marks=[pytest.mark.large] * (o in RARE)) for o in ORDERS]
)
def test_keras_loads_a_model_whichever_is_imported_first(order, compiled):
    done = run(ORDERS[order], compiled)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PerWeightAdamW" in done.stdout


def test_keras_loads_models_of_0_1_and_of_today(compiled):
    files = ["finished/model.keras", "multi_label.keras", "several.keras"]
    load = f"import keras_transfer, keras\nfor _ in list(sys.argv[1:]): {LOAD}; del sys.argv[1]"
    done = run(load, *(SAVED / file for file in files), compiled)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 4 and "PerWeightAdamW" in done.stdout


def test_importing_the_package_imports_neither_keras_nor_its_own_models():
    done = run(
        "import keras_transfer\n"
        "assert not {'keras', 'tensorflow', 'numpy'} & sys.modules.keys(), sys.modules.keys()\n"
        "import keras\n"
        "assert '_AfterKeras' not in str(sys.meta_path)\n"
        "assert 'keras_transfer.models.heads' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_failed_import_of_keras_is_tried_again(tmp_path):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text("raise ImportError('broken')")
    done = run(
        "import keras_transfer\nsys.path.insert(0, sys.argv[2])\n"
        "try: import keras\nexcept ImportError: pass\n"
        f"del sys.path[0]; sys.path_importer_cache.clear(); import keras; {LOAD}",
        SAVED / "several.keras",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_registered_class_is_listed():
    import importlib
    import pkgutil

    import keras

    import keras_transfer
    from keras_transfer.utils.registration import Later, register_with

    for module in pkgutil.walk_packages(keras_transfer.__path__, "keras_transfer."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    known = keras.saving.get_custom_objects()
    ours = {name: value for name, value in known.items() if name.startswith("keras_transfer>")}
    saved = dict(known)
    known.clear()
    try:
        register_with(keras)
        listed = {name for name in known if name.startswith("keras_transfer>")}
    finally:
        known.clear()
        known.update(saved)
    real = {name for name, value in ours.items() if not isinstance(value, Later)}
    assert real <= listed
    unused = {name for name in listed - real if "PerWeight" not in name}
    assert not unused
