"""LiteRT, ONNX and OpenVINO through Keras's exporters: written, quantized to int8, and asked.

Each file takes `images`, uint8 [N, S, S, 3] (of LiteRT one at a time, N = 1), and gives the outputs of
`answers.answering` under their names.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.errors import InputError
from keras_transfer.export.signatures import inlined

Ask = Callable[[np.ndarray], dict[str, np.ndarray]]


@contextlib.contextmanager
def _quiet():
    """Nothing of what LiteRT's libraries write to stderr, which no log level holds back.

    `tf.lite.Interpreter` is said to go with TensorFlow 2.20; 2.21 has it, and it needs no package.
    """
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _signature(answers, batch):
    return [tf.TensorSpec([batch, *answers.input_shape[1:]], tf.uint8, "images")]


# -- LiteRT -----------------------------------------------------------------------------------------


def _write_litert(answers, folder, examples):
    options = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if examples is not None:
        options = {
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ({"images": x[None]} for x in examples),
            # What has no int8 kernel stays in float; images and scores keep their types.
            "target_spec": {
                "supported_ops": [
                    tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
                    tf.lite.OpsSet.TFLITE_BUILTINS,
                ]
            },
        }
    # One image: kernels of the CPU are chosen when the file is loaded, for shapes that it knows.
    options["input_signature"] = _signature(answers, 1)
    with _quiet():
        answers.export(str(folder / "model.tflite"), format="litert", verbose=False, **options)


def _ask_litert(folder):
    with _quiet():
        interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
        interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()

    def ask(images):
        rows = [runner(images=image[None]) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return ask


# -- ONNX -------------------------------------------------------------------------------------------


def _write_onnx(answers, folder, examples):
    import onnx

    file = folder / "model.onnx"
    _teach_erfc()
    with _quiet(), warnings.catch_warnings(), inlined():
        warnings.simplefilter("ignore", FutureWarning)  # Keras mends tf2onnx for NumPy 2
        answers.export(
            str(file), format="onnx", verbose=False, input_signature=_signature(answers, None)
        )
    model = onnx.load(str(file))
    _name_onnx(model.graph, sorted(answers.output))
    _keep_zeros(model.graph)
    onnx.checker.check_model(model)  # tf2onnx only logs what it has no operation for
    onnx.save(model, str(file))
    if examples is not None:
        _quantize_onnx(file, examples)


def _teach_erfc():
    """tf2onnx 1.17 has no Erfc, which TensorFlow's GELU is made of (ConvNeXt); it has Erf."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, graph, node, **kwargs):
            (output,) = node.output
            kind = dict(shapes=[graph.get_shape(output)], dtypes=[graph.get_dtype(output)])
            one = graph.make_const(make_name("one"), np.array(1, "float32"))
            erf = graph.make_node("Erf", node.input, **kind)
            graph.remove_node(node.name)
            inputs = [one.output[0], erf.output[0]]
            graph.make_node("Sub", inputs, name=node.name, outputs=[output], **kind)


def _name_onnx(graph, names):
    """Calls the outputs by the names of the answers, where the converter has not."""
    new = {output.name: name for output, name in zip(graph.output, names)}
    for node in graph.node:
        for wires in (node.input, node.output):
            wires[:] = [new.get(wire, wire) for wire in wires]
    for output in graph.output:
        output.name = new[output.name]


def _keep_zeros(graph):
    """Zeros around a max pooling (ResNet-V2) count, but ONNX Runtime before 1.32 and other optimizers take
    them into the pooling, whose own padding never wins (onnxruntime issue 24737): not where they are no
    zeros."""
    from onnx import numpy_helper

    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    pads = [n for n in graph.node if n.op_type == "Pad" and n.output[0] in pooled]
    if not pads:
        return
    nearly = np.array(np.finfo("float32").tiny)  # the least number that no processor takes for 0
    graph.initializer.append(numpy_helper.from_array(nearly, "nearly_zero"))
    for node in pads:
        node.input[:] = [*node.input[:2], "nearly_zero"]


def _quantize_onnx(file, examples):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.examples = iter(examples)

        def get_next(self):
            image = next(self.examples, None)
            return None if image is None else {"images": image[None]}

    prepared = file.with_name("prepared.onnx")
    # BatchNorm goes into the convolutions: with scales of its own after them MobileNetV2 answers by
    # chance. Its shapes are known without the symbolic inference, which needs another package.
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    try:
        quantize_static(
            str(prepared),
            str(file),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink()


def _ask_onnx(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images})))


# -- OpenVINO ---------------------------------------------------------------------------------------


def _write_openvino(answers, folder, examples):
    import openvino

    draft, file = folder / "draft.xml", folder / "model.xml"
    answers.export(
        str(draft), format="openvino", verbose=False, input_signature=_signature(answers, None)
    )
    model = openvino.Core().read_model(draft)
    for output, name in zip(model.outputs, sorted(answers.output)):
        output.get_tensor().set_names({name})
    if examples is not None:
        model = _quantized_openvino(model, examples)
    openvino.save_model(model, file, compress_to_fp16=False)
    del model  # it reads its weights from the draft
    for part in (draft, draft.with_suffix(".bin")):
        part.unlink()


def _quantized_openvino(model, examples):
    import nncf

    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([image[None] for image in examples])
    with contextlib.redirect_stdout(io.StringIO()):  # bars of its own
        return nncf.quantize(model, dataset, subset_size=len(examples))


def _ask_openvino(folder):
    import openvino

    # By default OpenVINO computes in bfloat16 where the CPU can, which is another question than
    # whether the file is right.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def ask(images):
        found = compiled(images)
        return {name: found[i].copy() for i, name in enumerate(names)}

    return ask


_WRITERS = {"litert": _write_litert, "onnx": _write_onnx, "openvino": _write_openvino}
_ASKERS = {
    "model.tflite": _ask_litert,
    "model.onnx": _ask_onnx,
    "model.xml": _ask_openvino,
}
CONVERTED = tuple(_WRITERS)


def write_converted(
    answers: keras.Model, folder: Path, format: str, examples: np.ndarray | None
) -> None:
    """Writes the files of a format into a folder.

    Args:
        answers: of `answers.answering`, in float32.
        format: one of `CONVERTED`.
        examples: images that show which values occur, uint8 [N, S, S, 3], for int8; None for float32.

    Raises:
        InputError: the format has no operation for something in the model.
    """
    try:
        _WRITERS[format](answers, folder, examples)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many types, from four libraries
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        others = ", ".join(other for other in ("saved_model", *CONVERTED) if other != format)
        alone = "without int8, or " if examples is not None else ""
        raise InputError(
            f"The model cannot be exported as {format}{' in int8' * bool(alone)}: {why[:300]}. "
            f"Nothing was exported. Export it {alone}in another format ({others})."
        ) from error


def open_export(folder) -> Ask:
    """Loads what `convert` wrote.

    Returns:
        A function from images, uint8 [N, S, S, 3] after the resize and crop of evaluation, to
        float32 scores [N, C] by name: `scores`, or of several heads `scores_NAME`.

    Raises:
        InputError: no such export.
    """
    folder = Path(folder)
    for name, ask in _ASKERS.items():
        if (folder / name).is_file():
            return ask(folder)
    raise InputError(f"{folder} has none of {', '.join(_ASKERS)}: give the folder of an export.")


def scores_by_head(scores: Mapping[str, np.ndarray], ends: Mapping[str, str]) -> dict:
    """Name of each head → its scores, of outputs named `scores` and the head's suffix."""
    return {name: scores[f"scores{end}"] for name, end in ends.items()}
