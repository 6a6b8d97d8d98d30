"""What an export answers: images in, scores out, with the temperature of the calibration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from keras_transfer.models.builders import by_head, heads_of
from keras_transfer.models.heads import Head


def answering(model: keras.Model, temperatures: Mapping[str, float] | None = None) -> keras.Model:
    """The model as it is asked when it is served, on shared weights.

    Args:
        model: from `build_model`.
        temperatures: name of a head → what its logits are divided by (Guo et al. 2017,
            arXiv:1706.04599); heads that are left out stay as they are.

    Returns:
        A model from `images`, uint8 [N, S, S, 3], to a dict of what `Head.scores` gives, [N, C]: of a
        single head `scores`, of several `scores_NAME` each.
    """
    heads, temperatures = heads_of(model), temperatures or {}
    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    outputs = by_head(heads, model(inputs, training=False))
    scores = {}
    for name, head in heads.items():
        raw = outputs[name]
        if temperatures.get(name, 1.0) != 1.0:
            raw = raw / temperatures[name]
        scores[f"scores{suffix(heads, name)}"] = head.scores(raw)
    return keras.Model(inputs, scores, name="answers")


def suffix(heads: Mapping[str, Head], name: str) -> str:
    """What ends the names of a head's outputs: nothing where there is one head, else `_NAME`."""
    return f"_{name}" if len(heads) > 1 else ""


def in_float32(model: keras.Model) -> keras.Model:
    """The model itself where it computes in float32, else a copy that does.

    Weights are float32 under every policy of Keras's mixed precision, so nothing is lost.
    """
    if all(layer.compute_dtype == "float32" for layer in _layers(model)):
        return model
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    copy.set_weights(model.get_weights())
    for layer in _layers(copy):
        layer.dtype_policy = "float32"
    return copy


def _layers(model):
    yield model
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else [layer]


@contextmanager
def inlined() -> Iterator[None]:
    """Functions within one that is traced here become part of its graph, those for XLA too.

    Keras has a grouped convolution (ConvNeXt) compiled by XLA, for what its gradient needs. TF Serving
    refuses that on CPUs unless it is told otherwise, tf2onnx does not know it, and TensorFlow's own
    convolution is the faster one.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def write_labels(folder: Path, heads: Mapping[str, Head]) -> None:
    """Writes `labels.txt` (of several heads `labels_NAME.txt`): the name of each score, a line each."""
    for name, head in heads.items():
        # The line's number is the column: a name may not take two.
        lines = [" ".join(label.splitlines()) + "\n" for label in head.names]
        file = folder / f"labels{suffix(heads, name)}.txt"
        file.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
