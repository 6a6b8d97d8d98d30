"""The functions to export with: a model, or a run with all that is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.examples import ImageData
from keras_transfer.data.sources import open_labelled
from keras_transfer.data.targets import described
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import Calibration
from keras_transfer.export import check_format
from keras_transfer.export.card import write_card
from keras_transfer.export.converters import CONVERTED, open_export, scores_by_head, write_converted
from keras_transfer.export.folder import whole
from keras_transfer.export.parity import (
    HALF_ROUNDING,
    MOST_LOST,
    ROUNDING,
    Parity,
    compare,
    require_parity,
    require_quality,
)
from keras_transfer.export.sample import Sample, drawn, noise
from keras_transfer.export.serving import ask_files, check_signatures, in_half, write_saved_model
from keras_transfer.export.signatures import answering, in_float32, suffix, write_labels
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import heads_of
from keras_transfer.utils.console import say

IMAGES = 300  # to compare on
EXAMPLES = 200  # to measure ranges on


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        path: the version directory.
        format: a name of `FORMATS`.
        int8: whether its weights and activations are.
        bytes: of all its files but the card.
        parity: how it answers compared with the Keras model; None for a SavedModel that was compared
            on a few images only, to rounding.
    """

    path: Path
    format: str
    int8: bool
    bytes: int
    parity: Parity | None


def saved_model(
    model: keras.Model,
    out,
    *,
    images=None,
    temperatures: Mapping[str, float] | None = None,
) -> Path:
    """Exports a SavedModel with normalisation, resizing and decoding inside.

    Signatures (all outputs N rows each):

    - `serving_default(images)`: float32 [N, H, W, 3], RGB 0–255, any size.
    - `serve_uint8(images)`: the same for uint8.
    - `serve_bytes(bytes)`: string [N], each an encoded JPEG, PNG, GIF or plain BMP or WebP file,
      turned as its EXIF orientation says, see `data.serving`.
    - `features(bytes)`: `features` [N, D], what the backbone gives, pooled; and `error`.

    The first three give `scores` [N, C], float32 (of a regression model the values), and
    `class_names` [N, C]; a single-label model also `label` [N] and `score` [N]. A model with several
    heads gives the same for each, with the head's name: `scores_kind`, `class_names_kind`, …

    `error` [N] is empty where an image was answered, and else says what is wrong with it: its numbers are
    then 0 and its label is empty, and the other images of the request are answered. TF Serving's
    REST interface takes bytes as `{"b64": "…"}`.

    The folder also has the names of the classes (`assets/labels.txt`) and requests that TF Serving
    warms up with (`assets.extra/`).

    Args:
        model: from `build_model`.
        out: the version directory, e.g. `serving/flowers/1`; must not exist.
        images: a few uint8 images [H, W, 3] for the parity check; by default noise.
        temperatures: name of a head (of a single one `output`) → the temperature of its calibration.

    Returns:
        `out`. It appears only after the exported model answered like the Keras model.

    Raises:
        InputError: `out` exists already.
        ParityError: scores differ by more than rounding.
    """
    with whole(out) as folder:
        _write_checked(model, folder, temperatures, images)
    return Path(out)


def _write_checked(model, folder, temperatures, images=None):
    write_saved_model(model, folder, temperatures)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype="uint8")
    check_signatures(model, folder, images, temperatures)


def convert(
    model: keras.Model,
    out,
    format: str,
    *,
    int8: bool = False,
    examples: np.ndarray | None = None,
    sample: Sample | None = None,
    temperatures: Mapping[str, float] | None = None,
    most_lost: float = MOST_LOST,
) -> Exported:
    """Exports LiteRT, ONNX or OpenVINO: `model.tflite`, `model.onnx`, or `model.xml` and `model.bin`.

    The file takes images that are resized and cropped already, uint8 [N, S, S, 3] (LiteRT: one at a
    time), and gives scores by name, as `saved_model` does. It computes in float32, whatever the model
    trained in. `labels.txt` has the names.

    Args:
        model: from `build_model`.
        out: a directory that does not exist yet.
        format: `"litert"`, `"onnx"` or `"openvino"`.
        int8: weights and activations in 8 bits, see `examples`.
        examples: for int8: some hundred images like those to come, uint8 [N, S, S, 3].
        sample: what to compare on; by default noise, which says nothing of int8's loss in accuracy.
        temperatures: see `saved_model`.
        most_lost: the most that int8 may lose, in shares, of the quality that `Parity` has.

    Raises:
        InputError: `out` exists, a package is missing, int8 without examples, or too much is lost.
        ParityError: under 99 % of the same answers in float32.
    """
    with whole(out) as folder:
        parity = _convert(model, folder, format, int8, examples, sample, temperatures, most_lost)
        size = _bytes(folder)
    return Exported(Path(out), format, int8, size, parity)


def _convert(model, folder, format, int8, examples, sample, temperatures, most_lost):
    check_format(format, int8)
    if format not in CONVERTED:
        raise InputError(f"convert gives {', '.join(CONVERTED)}; a SavedModel is of saved_model.")
    if int8 and (examples is None or not len(examples)):
        raise InputError("int8 needs images to measure the range of values on: give examples.")
    heads = heads_of(model)
    answers = answering(in_float32(model), temperatures)
    sample = sample or noise(model.input_shape[1])
    write_converted(answers, folder, format, examples if int8 else None)
    write_labels(folder, heads)
    ends = {name: suffix(heads, name) for name in heads}
    parity = compare(
        heads,
        scores_by_head(_scores(answers, sample.images), ends),
        scores_by_head(open_export(folder)(sample.images), ends),
        sample.labels,
        of=sample.of,
    )
    if int8:
        require_quality(parity, format, most_lost)
    else:
        require_parity(parity, format)
    return parity


def export_run(
    run,
    format: str = "saved_model",
    *,
    int8: bool = False,
    out=None,
    data=None,
    most_lost: float = MOST_LOST,
) -> Exported:
    """Exports the model of a run, with its calibration, checked on its own images, and a model card.

    Args:
        run: a `Run`.
        format, int8, most_lost: see `saved_model` and `convert`.
        out: by default the next version of `RUN/export/` (of other formats `RUN/export/FORMAT/`, of
            int8 `RUN/export/FORMAT_int8/`).
        data: the labelled images of the run, where they lie elsewhere now, or as `ImageData`. A run
            that was trained from Python does not know where they lie.

    Returns:
        What was exported; `README.md` beside the model is its card.

    Raises:
        InputError, ParityError: see `saved_model` and `convert`; or int8 without images.
    """
    check_format(format, int8)
    out = Path(out) if out is not None else run.next_export(format, int8)
    with whole(out) as folder:
        model, temperatures = run.model, temperatures_of(run)
        heads, size = heads_of(model), model.input_shape[1]
        sample = _drawn(run, data, "val", size, IMAGES, heads)
        if sample is None:
            say(f"the validation images of {run.path} are not there: it is compared on noise")
        if format == "saved_model":
            _write_checked(model, folder, temperatures, sample and sample.images[:2])
            parity = _parity_on_files(model, folder, temperatures, sample)
        else:
            examples = None
            if int8:
                examples = _drawn(run, data, "train", size, EXAMPLES, heads)
                if examples is None:
                    raise InputError(
                        f"int8 needs training images of {run.path} to measure the range of values "
                        "on: say with --data where they lie."
                    )
                examples = examples.images
            parity = _convert(
                model, folder, format, int8, examples, sample, temperatures, most_lost
            )
        size = _bytes(folder)
        exported = Exported(out, format, int8, size, parity)
        write_card(folder, run, model, exported, temperatures)
    return exported


def temperatures_of(run) -> dict[str, float]:
    """Name of each calibrated head → its temperature; none where the calibration is for the mean of
    several views, which an export does not make."""
    if run.calibration is None:
        return {}
    kept = Calibration.from_dict(run.calibration)
    if kept.tta is not None:
        say(f"the run's calibration is left out: it is for --tta {kept.tta}")
        return {}
    return {name: head["temperature"] for name, head in kept.heads.items()}


def _drawn(run, given, split, size, count, heads) -> Sample | None:
    """Images of a split; None where the run's own data are gone, or are of a kind without files."""
    if isinstance(given, ImageData):
        if split not in given.examples:
            return None
        return drawn(
            replace(given, examples={split: given.examples[split]}), split, size, count, list(heads)
        )
    config, wanted = run.config, split
    source = given if given is not None else config.get("data")
    if given is None and split == "val" and config.get("val"):
        source, wanted = config["val"], None  # validated on a folder of their own
    if source is None or (given is None and not Path(source).expanduser().exists()):
        return None
    try:
        data = open_labelled(
            source,
            described(config),
            split=wanted,
            split_file=run.split_path,
            columns=config.get("columns"),
            progress=False,
        )
    except InputError:
        if given is not None:
            raise
        return None
    return drawn(data, split, size, count, list(heads))


def _parity_on_files(model, folder, temperatures, sample):
    """Whole files through `serve_bytes`, against the training's decoding and the Keras model."""
    if sample is None or sample.files is None:
        return None
    heads = heads_of(model)
    ends = {name: suffix(heads, name) for name in heads}
    got, answered = ask_files(folder, sample.files)
    parity = compare(
        heads,
        scores_by_head(_scores(answering(model, temperatures), sample.images), ends),
        scores_by_head(got, ends),
        sample.labels,
        of=sample.of,
        answered=answered,
    )
    require_parity(parity, "SavedModel", HALF_ROUNDING if in_half(model) else ROUNDING)
    return parity


def _scores(answers, images):
    """Output name → float32 [N, C] of the Keras model."""
    answers.jit_compile = jit_compile()
    found = answers.predict(images, batch_size=32, verbose=0)
    return {name: np.asarray(scores, "float32") for name, scores in found.items()}


def _bytes(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
