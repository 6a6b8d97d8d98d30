"""LiteRT, ONNX, OpenVINO and TensorFlow.js: files in other formats, quantized to int8, and run.

Each file takes the input of `serving.exported_model`, such as `images`, uint8 [N, S, S, 3] (LiteRT:
N = 1; TensorFlow.js: int32), and returns its outputs under their names.
"""

import contextlib
import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.errors import InputError
from keras_transfer.export import tfjs
from keras_transfer.export.serving import inline_functions
from keras_transfer.features.prefix import openvino_model
from keras_transfer.utils.console import quiet_tensorflow

Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


@contextlib.contextmanager
def _quiet():
    """Discard what LiteRT's libraries write to stderr regardless of the log level.

    `tf.lite.Interpreter` was announced to disappear with TensorFlow 2.20, but 2.21 still has it, and
    it needs no further package.
    """
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        with quiet_tensorflow(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(?s).*tf\.lite\.Interpreter is deprecated")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _signature(scorer, batch):
    taken = scorer.inputs[0]
    return [tf.TensorSpec([batch, *taken.shape[1:]], taken.dtype, taken.name)]


# -- LiteRT -----------------------------------------------------------------------------------------


def _write_litert(scorer, folder, examples):
    draft = folder / "draft"
    with _quiet():
        # One image, because CPU kernels are chosen for known shapes when the file is loaded.
        scorer.export(str(draft), verbose=False, input_signature=_signature(scorer, 1))
        converter = tf.lite.TFLiteConverter.from_saved_model(str(draft))
        if examples is not None:
            # Operations without an int8 kernel stay in float; images and scores keep their types.
            builtin = tf.lite.OpsSet
            converter.target_spec.supported_ops = [
                builtin.TFLITE_BUILTINS_INT8,
                builtin.TFLITE_BUILTINS,
            ]
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ({"images": x[None]} for x in examples)
        (folder / "model.tflite").write_bytes(converter.convert())
    shutil.rmtree(draft)


def _load_litert(folder):
    with _quiet():
        interpreter = tf.lite.Interpreter(str(folder / "model.tflite"))
        interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()
    (input_name,) = runner.get_input_details()  # `pictures` in 0.1

    def predict(images):
        rows = [runner(**{input_name: image[None]}) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    return predict


# -- ONNX -------------------------------------------------------------------------------------------


def _write_onnx(scorer, folder, examples):
    import onnx

    file = folder / "model.onnx"
    _add_erfc()
    with _quiet(), warnings.catch_warnings(), inline_functions():
        warnings.simplefilter("ignore", FutureWarning)  # from Keras's fix of tf2onnx for NumPy 2
        scorer.export(
            str(file), format="onnx", verbose=False, input_signature=_signature(scorer, None)
        )
    model = onnx.load(str(file))
    _rename_outputs(model.graph, sorted(scorer.output))
    _protect_zeros(model.graph)
    onnx.checker.check_model(model)  # tf2onnx only logs unsupported operations
    onnx.save(model, str(file))
    if examples is not None:
        _quantize_onnx(file, examples)


def _add_erfc():
    """Register Erfc, part of TensorFlow's GELU (ConvNeXt), with tf2onnx 1.17, which only has Erf."""
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


def _rename_outputs(graph, names):
    new = {output.name: name for output, name in zip(graph.output, names)}
    for node in graph.node:
        for wires in (node.input, node.output):
            wires[:] = [new.get(wire, wire) for wire in wires]
    for output in graph.output:
        output.name = new[output.name]


def _protect_zeros(graph):
    """Make the zeros around a max pooling (ResNet-V2) nearly zero.

    ONNX Runtime before 1.32 and other optimizers merge padding with zeros into the pooling, whose own
    padding never wins (onnxruntime issue 24737).
    """
    from onnx import numpy_helper

    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    pads = [n for n in graph.node if n.op_type == "Pad" and n.output[0] in pooled]
    if not pads:
        return
    nearly = np.array(np.finfo("float32").tiny)  # the smallest number that is not flushed to zero
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

    folded = file.with_name("folded.onnx")
    # Fold BatchNorm into the convolutions: quantized separately, MobileNetV2's answers are random.
    # Symbolic shape inference needs another package and is not required.
    quant_pre_process(str(file), str(folded), skip_symbolic_shape=True)
    try:
        quantize_static(
            str(folded),
            str(file),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # With all 8 bits, sums overflow on CPUs without VNNI, which add pairs of products in 16 bits.
            reduce_range=True,
        )
    finally:
        folded.unlink()


def _load_onnx(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    (image_input,) = session.get_inputs()  # `pictures` in 0.1
    return lambda images: dict(zip(names, session.run(names, {image_input.name: images})))


# -- OpenVINO ---------------------------------------------------------------------------------------


def _write_openvino(scorer, folder, examples):
    import openvino

    model = openvino_model(scorer, scorer.inputs[0].dtype, scorer.inputs[0].name)
    for output, name in zip(model.outputs, sorted(scorer.output)):
        output.get_tensor().set_names({name})
    if examples is not None:
        model = _quantize_openvino(model, examples)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _quantize_openvino(model, examples):
    import nncf

    logger = logging.getLogger("nncf")
    level = logger.level
    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset([image[None] for image in examples])
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints progress bars
            return nncf.quantize(model, dataset, subset_size=len(examples))
    finally:
        nncf.set_log_level(level)


def _load_openvino(folder):
    import openvino

    # By default OpenVINO computes in bfloat16 if the CPU can, which would hide errors of the file.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", settings)
    names = [output.get_any_name() for output in compiled.outputs]

    def predict(images):
        outputs = compiled(images)
        return {name: outputs[i].copy() for i, name in enumerate(names)}

    return predict


# -- TensorFlow.js ----------------------------------------------------------------------------------


def _write_tfjs(scorer, folder, examples):
    tfjs.write_tfjs(scorer, folder, _signature(scorer, None))


# -- all of them ------------------------------------------------------------------------------------


class Form(NamedTuple):
    """A format of the table below.

    Attributes:
        file: in the folder, by which the format is recognized.
        write: from (scorer, folder, examples for int8 or None).
        load: from the folder to a `Predict`.
        fixed: whether it takes one example at a time, of one shape.
        pixel: type of the images that it takes.
    """

    file: str
    write: Callable
    load: Callable
    fixed: bool = False
    pixel: str = "uint8"


CONVERTED = {
    "litert": Form("model.tflite", _write_litert, _load_litert, fixed=True),
    "onnx": Form("model.onnx", _write_onnx, _load_onnx),
    "openvino": Form("model.xml", _write_openvino, _load_openvino),
    "tfjs": Form(tfjs.FILE, _write_tfjs, tfjs.load_tfjs, pixel="int32"),
}


def write_converted(
    scorer: keras.Model, folder: Path, format: str, examples: np.ndarray | None
) -> None:
    """Write the files of a format into a folder.

    Args:
        scorer: from `serving.scoring_model`, in float32.
        format: one of `CONVERTED`.
        examples: for int8: images that show the ranges of values, uint8 [N, S, S, 3]; None for
            float32.

    Raises:
        InputError: if the format does not support an operation of the model.
    """
    try:
        CONVERTED[format].write(scorer, folder, examples)
    except (OSError, MemoryError, InputError):
        raise
    except Exception as error:  # of many types, from five libraries
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        others = ", ".join(other for other in ("saved_model", *CONVERTED) if other != format)
        without = "without int8, or " if examples is not None else ""
        raise InputError(
            f"The model cannot be exported as {format}{' in int8' * bool(without)}: "
            f"{reason[:300]}. Nothing was exported. Export it {without}in another format ({others})."
        ) from error


def open_export(folder) -> Predict:
    """Load a model that `convert` wrote.

    Returns:
        A function from images, uint8 [N, S, S, 3] after the resize and crop of evaluation, to
        float32 scores [N, C] by name: `scores`, or `scores_NAME` for each of several heads.

    Raises:
        InputError: if the folder does not contain such a model.
    """
    folder = Path(folder)
    for form in CONVERTED.values():
        if (folder / form.file).is_file():
            return form.load(folder)
    files = ", ".join(form.file for form in CONVERTED.values())
    raise InputError(f"{folder} contains none of {files}. Pass the version directory of an export.")
