"""Exports: a trained model as a SavedModel for TF Serving, LiteRT, ONNX, OpenVINO or TensorFlow.js, as a
folder for the Hugging Face Hub, as a web page, and a client.

`exporter` contains the functions to call, `serving`, `converters`, `tfjs`, `hub` and `page` write the formats,
`parity` compares an export with its Keras model, `card` writes the model card, and `beam` predicts very
many files with an export. The room may import everything below it: training, evaluation, models and data.
"""

import shlex
import shutil
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.extras import require
from keras_transfer.utils.names import lazy_names

# Format → packages that it needs in addition to TensorFlow, and those that its int8 form needs.
FORMATS = {
    "saved_model": ((), ()),
    "litert": ((), ()),
    "onnx": (("tf2onnx", "onnxruntime"), ()),
    "openvino": (("openvino",), ("nncf",)),
    "tfjs": (("tensorflowjs",), ()),
    "hub": ((), ()),
    "page": (("tf2onnx", "onnxruntime"), ()),
}
_WITHOUT_INT8 = {
    "saved_model": "A SavedModel",
    "tfjs": "TensorFlow.js",
    "hub": "A folder for the hub",
}

_NAMES = {
    "Client": "client",
    "Exported": "exporter",
    "Parity": "parity",
    "ParityError": "parity",
    "convert": "exporter",
    "export_run": "exporter",
    "open_export": "converters",
    "saved_model": "exporter",
    "typicality_of": "exporter",
}

__all__ = ["FORMATS", "check_format", *_NAMES]


def check_format(format: str, int8: bool = False) -> None:
    """Raise InputError if a format is unknown, has no int8 form, or lacks a package or program."""
    if format not in FORMATS:
        raise InputError(f"Unknown format '{format}'. Choose one of {', '.join(FORMATS)}.")
    if int8 and format in _WITHOUT_INT8:
        raise InputError(
            f"{_WITHOUT_INT8[format]} has no int8 form. Omit --int8 or choose another --format."
        )
    packages, int8_packages = FORMATS[format]
    for package in (*packages, *(int8_packages if int8 else ())):
        require(package, f"Exporting {format}{' int8' * int8}")
    if format == "tfjs":
        if shutil.which("node") is None:
            raise InputError(
                "Exporting tfjs needs node, which compares the export with the model and was not found. "
                "Install Node.js, or export on a machine that has it."
            )
        from keras_transfer.export.npm import TENSORFLOW_JS

        for package in TENSORFLOW_JS:
            package.require("The comparison in Node.js")


def check_version(format: str, out) -> None:
    """Raise InputError if TF Serving would not load a SavedModel from `out`: it needs a number."""
    name = Path(out).absolute().name
    if format == "saved_model" and not (name.isascii() and name.isdecimal()):
        version = shlex.quote(str(Path(out) / "1"))
        raise InputError(
            f"{out}: TF Serving loads only versions whose folder is a whole number. Pass {version}, or "
            "omit --out for the next version in the run."
        )


__getattr__, __dir__ = lazy_names(__name__, _NAMES)
