"""The frozen part of a network, computed once: cut, engine, store.

`prefix` says what is frozen, `engines` run it, `store` keeps what came out, `extraction` puts the
three together, `caching` decides where it pays, and `batches` feeds a training with it.
"""

import importlib.util

from keras_transfer.errors import InputError

ENGINE_NAMES = ("auto", "keras", "openvino")
CACHES = ("auto", "off", "memory", "disk")


def check_engine(name: str) -> None:
    """Raises InputError where there is no such engine, or it is not installed."""
    if name not in ENGINE_NAMES:
        raise InputError(f"Unknown engine '{name}': give one of {', '.join(ENGINE_NAMES)}.")
    if name == "openvino" and not has_openvino():
        raise InputError(
            "Engine 'openvino' is not installed: pip install 'keras_transfer[openvino]', or leave "
            "--engine auto."
        )


def has_openvino() -> bool:
    """True where OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None
