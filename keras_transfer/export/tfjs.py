"""TensorFlow.js: a graph model, converted from a SavedModel, and run by Node.js for the comparison.

The package `tensorflowjs` requires packages that exclude today's TensorFlow, so it is installed without
them, and `tfjs_converter` runs in a process of its own. Node.js runs the file with the two scripts that a
web page would load.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.export.npm import TENSORFLOW_JS
from keras_transfer.export.serving import inline_functions
from keras_transfer.utils.console import quiet_tensorflow, say
from keras_transfer.utils.files import write_text

FILE = "model.json"

_CONVERTER, _RUNNER = (
    Path(__file__).with_name(name) for name in ("tfjs_converter.py", "tfjs_runner.js")
)


def write_tfjs(scorer: keras.Model, folder: Path, signature: list) -> None:
    """Write `model.json` and `group1-shard….bin`.

    Args:
        scorer: from `serving.exported_model`; its inputs are of a type that TensorFlow.js has, int32 or float32.
        folder: exists.
        signature: the `tf.TensorSpec` of its input.

    Raises:
        InputError: the scripts for the comparison cannot be downloaded.
        RuntimeError: TensorFlow.js has no form of an operation.
    """
    _scripts()
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "draft"
        with quiet_tensorflow(), inline_functions():
            scorer.export(str(draft), verbose=False, input_signature=signature)
        _run([sys.executable, "-P", _CONVERTER, draft, folder])
    _name_outputs(folder / FILE, sorted(scorer.output))


def _name_outputs(file, names):
    """Give the graph's outputs, `Identity:0`, `Identity_1:0`, …, their names in alphabetical order.

    TensorFlow.js gives the first output of the signature the first name, but the converter lists them in
    any order, and finds out only some of the names.
    """
    document = json.loads(file.read_text())
    outputs = {one["name"]: one for one in document["signature"]["outputs"].values()}
    ordered = ["Identity:0", *(f"Identity_{i}:0" for i in range(1, len(names)))]
    named = {name: outputs[one] for name, one in zip(names, ordered, strict=True)}
    document["signature"]["outputs"] = named
    document["userDefinedMetadata"] = {"structuredOutputKeys": names}
    write_text(file, json.dumps(document))


def load_tfjs(folder: Path):
    """Return a function from inputs [N, …] to the outputs by name, computed by Node.js.

    Raises:
        InputError: the file is not a graph model of `write_tfjs`, or the scripts cannot be downloaded.
    """
    try:
        (taken,) = json.loads((folder / FILE).read_text("utf-8"))["signature"]["inputs"].values()
        dtype = {"DT_INT32": "int32", "DT_FLOAT": "float32"}[taken["dtype"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / FILE} is not a graph model of keras_transfer. Export it again with --format tfjs."
        ) from error
    scripts = _scripts()

    def predict(inputs):
        with tempfile.TemporaryDirectory() as scratch:
            given, answered = Path(scratch) / "inputs", Path(scratch) / "outputs"
            # Pixels are widened by Node.js, a few images at a time.
            stored = "uint8" if inputs.dtype == np.uint8 else dtype
            np.ascontiguousarray(inputs, stored).tofile(given)
            shape = json.dumps(inputs.shape)
            try:
                told = _run(
                    ["node", _RUNNER, *scripts, folder, given, shape, stored, dtype, answered]
                )
            except RuntimeError as error:
                raise InputError(
                    f"TensorFlow.js cannot run the model: {error}. Export it in another format."
                ) from error
            if told:
                say(told)
            outputs = json.loads(answered.read_text())
        return {
            name: np.asarray(rows, "float32").reshape(len(inputs), -1)
            for name, rows in outputs.items()
        }

    say(f"TensorFlow.js {TENSORFLOW_JS[0].version} computes the examples in Node.js")
    return predict


def _scripts():
    return [package.folder("The comparison in Node.js") for package in TENSORFLOW_JS]


def _run(command) -> str:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # this process may have its memory
    command = list(map(str, command))
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode < 0:
        raise RuntimeError(
            f"{command[0]} was ended by signal {-done.returncode} (too little memory?)"
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and "Node.js v" not in line]
        raise RuntimeError(lines[-1] if lines else "it gave no reason")
    return done.stdout.strip()
