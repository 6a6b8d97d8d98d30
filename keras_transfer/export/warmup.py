"""Requests that TF Serving asks a new version before clients may, so that no client waits for it.

TF Serving reads them from `assets.extra/tf_serving_warmup_requests`: TFRecords of `PredictionLog`. Its five
message types come with `tensorflow-serving-api` alone. What is needed of them are the numbers of six
fields, which Protocol Buffers never change; they are written here as its encoding says, and the tests read
them with the real messages.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

FILE = Path("assets.extra") / "tf_serving_warmup_requests"


def write_warmup(folder: Path, requests: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Writes the requests into the folder of a SavedModel.

    Args:
        requests: (signature, inputs by name); at most 1,000, TF Serving's limit.
    """
    (folder / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / FILE)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(signature, inputs))


def _prediction_log(signature, inputs):
    request = _field(1, _field(3, signature.encode()))  # model_spec.signature_name
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # an entry of a map
    return _field(6, _field(1, request))  # PredictionLog.predict_log.request


def _field(number, payload):
    """A field of bytes, a string or a message: its number and wire type 2, its length, itself."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value):
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
