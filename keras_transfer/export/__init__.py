"""From a trained model to what runs elsewhere: SavedModel for TF Serving, LiteRT, ONNX, OpenVINO.

`exporting` has the functions to call; `serving` writes and asks a SavedModel and `converters` the other
formats; `answers` is what all of them compute, `parity` whether they do, `sample` on which images;
`card` describes a run to those who get its export, and `folder` lets it appear whole.
"""

import importlib.util

from keras_transfer.errors import InputError
from keras_transfer.utils.lazy import lazy_names

# Name of each format -> packages beside TensorFlow that it needs, and those that its int8 needs.
FORMATS = {
    "saved_model": ((), ()),
    "litert": ((), ()),
    "onnx": (("tf2onnx", "onnxruntime"), ()),
    "openvino": (("openvino",), ("nncf",)),
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
}

__all__ = ["FORMATS", "check_format", *_NAMES]


def check_format(format: str, int8: bool = False) -> None:
    """Raises InputError where a format is unknown, has no int8, or its packages are not installed."""
    if format not in FORMATS:
        raise InputError(f"Unknown format '{format}': give one of {', '.join(FORMATS)}.")
    if int8 and format == "saved_model":
        raise InputError("A SavedModel has no int8: leave --int8, or choose another --format.")
    packages, more = FORMATS[format]
    for package in (*packages, *(more if int8 else ())):
        if importlib.util.find_spec(package) is None:
            extra = "int8" if package in more else format
            raise InputError(
                f"Exporting {format}{' int8' * int8} needs {package}: pip install "
                f"'keras_transfer[{extra}]'."
            )


__getattr__, __dir__ = lazy_names(__name__, _NAMES)
