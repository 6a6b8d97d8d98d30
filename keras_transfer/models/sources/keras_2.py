"""Files of Keras 2 (`.h5`), such as Teachable Machine's, in the form that Keras 3 reads."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CONFIG = "model_config"


@contextmanager
def readable(path) -> Iterator:
    """Return a context with a model file that Keras 3 can load: the file itself, or a corrected copy."""
    if not str(path).endswith(".h5"):
        yield path
        return
    import h5py

    with h5py.File(path) as file:
        text = file.attrs.get(_CONFIG, "null")
    before = json.loads(text)
    after = _corrected(before)
    if after == before:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copyfile(path, Path(folder) / "model.h5")
        with h5py.File(copy, "r+") as file:
            file.attrs[_CONFIG] = json.dumps(after)
        yield copy


def _corrected(node):
    """Return a configuration, or a part of it, as Keras 3 would have written it."""
    if isinstance(node, list):
        return [_corrected(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("class_name") == "Sequential":
        node = {**node, "config": _with_input(node["config"])}
    node = {key: _corrected(value) for key, value in node.items()}
    name = node.get("class_name")
    correct = _CORRECTIONS.get(name) if isinstance(name, str) else None
    if name != "InputLayer" and isinstance(node.get("config"), dict):
        node["config"].pop("batch_input_shape", None)
    if correct and isinstance(node.get("config"), dict):
        node = {**node, "config": correct(node["config"])}
        if name == "Model" or str(node.get("module")).startswith("tf_keras"):
            node |= {"module": "keras.src.models.functional", "class_name": "Functional"}
    return node


def _without_groups(config):
    return {key: value for key, value in config.items() if key != "groups"}  # a convolution's


def _with_one_axis(config):
    axis = config.get("axis", -1)
    return {**config, "axis": axis[0] if isinstance(axis, list) else axis}


def _with_input(config):
    """Insert the input layer of a sequential model whose first layer knows the shape instead."""
    if isinstance(config, list):  # Keras 2.0 to 2.2
        config = {"layers": config}
    layers = config["layers"]
    shape = _first_shape(layers[0]) if layers else None
    if shape is None or layers[0]["class_name"] == "InputLayer":
        return config
    first = {"batch_input_shape": shape, "dtype": "float32", "name": f"{config.get('name', '')}_in"}
    return {**config, "layers": [{"class_name": "InputLayer", "config": first}, *layers]}


def _first_shape(layer):
    """Return the shape of batches that a layer, or the first one inside it, was made for, or None."""
    config = layer["config"]
    layers = config if isinstance(config, list) else config.get("layers")
    if isinstance(config, dict) and "batch_input_shape" in config:
        return config["batch_input_shape"]
    return _first_shape(layers[0]) if layers else None


def _with_plain_ends(config):
    """Make a list of one input, or output, that input: Keras 3 would return a list."""
    ends = {key: config.get(key, ()) for key in ("input_layers", "output_layers")}
    return config | {
        key: value[0]
        for key, value in ends.items()
        if len(value) == 1 and isinstance(value[0], list)
    }


_CORRECTIONS = {
    "DepthwiseConv2D": _without_groups,
    "BatchNormalization": _with_one_axis,
    "Functional": _with_plain_ends,
    "Model": _with_plain_ends,
}
