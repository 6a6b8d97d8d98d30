"""Export a model, or a run with its calibration, a comparison on its own images and a model card."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.data.corrections import correct
from keras_transfer.data.evaluation_data import open_labeled
from keras_transfer.data.examples import ImageData, targets_of
from keras_transfer.data.folders import read_splits
from keras_transfer.data.sources import library_of
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import Calibration
from keras_transfer.evaluation.typicality import PROTOTYPES, Typicality, fit_typicality
from keras_transfer.export import check_format, check_version
from keras_transfer.export.card import write_card
from keras_transfer.export.converters import CONVERTED, open_export, write_converted
from keras_transfer.export.hub import write_hub
from keras_transfer.export.page import check_page, write_page
from keras_transfer.export.parity import (
    HALF_ROUNDING,
    MAX_LOSS,
    ROUNDING,
    Parity,
    Sample,
    compare,
    draw_sample,
    noise_sample,
    require_parity,
    require_quality,
)
from keras_transfer.export.serving import (
    check_signatures,
    computes_in_half,
    exported_model,
    features_of,
    in_float32,
    scores_by_head,
    scoring_model,
    serve_contents,
    write_labels,
    write_saved_model,
)
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.models.sources.own import load_model
from keras_transfer.runs import MODEL
from keras_transfer.utils.console import say
from keras_transfer.utils.files import new_folder, plain_path

COMPARED_IMAGES = 300
NOISE = 50  # examples against which the typicality is tested
RANGE_IMAGES = 200  # to measure the ranges of values for int8


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        path: the version directory.
        format: a name in `FORMATS`.
        int8: whether weights and activations have 8 bits.
        bytes: size of all files except the model card.
        parity: the comparison with the Keras model; None for a SavedModel that was only compared on
            a few images, where scores were equal up to rounding.
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
    typicality: Typicality | None = None,
) -> Path:
    """Export a SavedModel that decodes, resizes and normalizes its inputs itself.

    Signatures (all outputs have N rows):

    - `serving_default(images)`: float32 [N, H, W, 3], RGB in [0, 255], any size.
    - `serve_uint8(images)`: the same as uint8.
    - `serve_bytes(bytes)`: string [N], each an encoded JPEG, PNG, GIF, plain BMP or WebP file, rotated
      according to its EXIF orientation.
    - `features(bytes)`: `features` [N, D], the backbone's pooled features, and `error`.

    The first three return `scores` [N, C], float32 (the values of a regression model), and
    `class_names` [N, C]; a single-label model also returns `label` [N] and `score` [N]. A model with
    several heads returns these outputs for each, with the head's name: `scores_kind`,
    `class_names_kind`, …

    With `typicality`, they also return `typicality` [N], −1 to 1, how much the example is like the training
    examples, and `is_typical` [N], bool, which 95 % of the validation examples are.

    `error` [N] is empty for each valid image. For an invalid one it states the problem, the numbers
    are 0 and the label is empty; the other images of the request are not affected. TF Serving's REST
    interface takes bytes as `{"b64": "…"}`.

    The folder also contains the class names (`assets/labels.txt`) and requests with which TF Serving
    warms up (`assets.extra/`).

    Args:
        model: from `build_model`.
        out: the version directory, such as `serving/flowers/1`; must not exist.
        images: a few uint8 images [H, W, 3] for the parity check; noise by default.
        temperatures: head name (`output` for a single head) → temperature of its calibration.
        typicality: from `typicality_of`, which `export_run` calls.

    Returns:
        `out`, which is created only if the exported model gives the Keras model's scores.

    Raises:
        InputError: if `out` exists, or its last part is not a whole number.
        ParityError: if scores differ by more than rounding.
    """
    check_version("saved_model", out)
    with new_folder(out) as new, plain_path(new) as folder:
        _write_and_check(model, folder, temperatures, typicality, images)
    return Path(out)


def _write_and_check(model, folder, temperatures, typicality, examples=None):
    write_saved_model(model, folder, temperatures, typicality)
    if examples is None:
        modality = modality_of(model)
        examples = modality.noise(modality.framing_for(framing_of(model), None))
    check_signatures(model, folder, examples, temperatures, typicality)


def convert(
    model: keras.Model,
    out,
    format: str,
    *,
    int8: bool = False,
    examples: np.ndarray | None = None,
    sample: Sample | None = None,
    temperatures: Mapping[str, float] | None = None,
    most_lost: float = MAX_LOSS,
) -> Exported:
    """Export LiteRT, ONNX, OpenVINO or TensorFlow.js.

    The files are `model.tflite`, `model.onnx`, `model.xml` and `model.bin`, or `model.json` and
    `group1-shard….bin`. They take images that are already resized and cropped, `images` uint8
    [N, S, S, 3] (LiteRT: one at a time; TensorFlow.js: int32), and return the scores that `saved_model`
    returns. They compute in float32, whatever precision the model was trained in. `labels.txt` contains
    the class names.

    Args:
        model: from `build_model`.
        out: a directory that does not exist yet.
        format: `"litert"`, `"onnx"`, `"openvino"` or `"tfjs"`.
        int8: quantize weights and activations to 8 bits; needs `examples`.
        examples: a few hundred typical images, uint8 [N, S, S, 3], to measure ranges on.
        sample: images for the comparison; noise by default, which cannot show int8's loss of accuracy.
        temperatures: see `saved_model`.
        most_lost: the largest loss of quality (see `Parity`) that int8 may cause, in [0, 1].

    Raises:
        InputError: if `out` exists, a package is missing, `examples` are missing, or int8 loses too
            much.
        ParityError: if under 99 % of the decisions are the same in float32.
    """
    with new_folder(out) as new, plain_path(new) as folder:
        parity = _convert(model, folder, format, int8, examples, sample, temperatures, most_lost)
        return Exported(Path(out), format, int8, _size(folder), parity)


def _convert(model, folder, format, int8, examples, sample, temperatures, most_lost):
    check_format(format, int8)
    if format not in CONVERTED:
        raise InputError(
            f"`convert` writes {', '.join(CONVERTED)}. Call `saved_model` for a SavedModel."
        )
    if int8 and (examples is None or not len(examples)):
        raise InputError("int8 needs images to measure the ranges of values: pass `examples`.")
    heads, exact = heads_of(model), in_float32(model)
    modality = modality_of(model)
    if int8 and modality.not_in_8_bits:
        raise InputError(f"int8 is not for {modality.many}: {modality.not_in_8_bits}.")
    framing, form = modality.framing_for(framing_of(model), None), CONVERTED[format]
    exported = exported_model(exact, temperatures, fixed=form.fixed, pixel=form.pixel)
    sample = sample or noise_sample(modality_of(model), framing_of(model))
    write_converted(exported, folder, format, examples if int8 else None)
    write_labels(folder, heads)
    modality.write_preparation(folder, framing)
    inputs = sample.exported
    if form.fixed:
        inputs = modality.longest_inputs(inputs, framing)
    outputs = open_export(folder)(inputs)
    expected = _keras_scores(heads, scoring_model(exact, temperatures), sample)
    parity = compare(heads, expected, scores_by_head(heads, outputs), sample)
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
    most_lost: float = MAX_LOSS,
) -> Exported:
    """Export the model of a run with its calibration, compared on its own images, and a model card.

    Args:
        run: a `Run`.
        format, int8, most_lost: see `saved_model` and `convert`.
        out: by default the next version of `RUN/export/` (other formats: `RUN/export/FORMAT/`; int8:
            `RUN/export/FORMAT_int8/`).
        data: the run's labeled images if they were moved, as a path or an `ImageData`. A run that was
            trained from Python does not record where they are.

    Returns:
        The result; `README.md` next to the model is its card.

    Raises:
        InputError, ParityError: see `saved_model` and `convert`; also for int8 without images.
    """
    check_format(format, int8)
    out = Path(out) if out is not None else run.next_export(format, int8)
    check_version(format, out)
    with new_folder(out) as new, plain_path(new) as folder:
        model, temperatures = run.model, temperatures_of(run)
        if format == "page":
            check_page(modality_of(model), framing_of(model))
        sample = _sample_of(run, data, "val", model, COMPARED_IMAGES)
        if sample is None:
            say(f"validation images of {run.path} not found: the export is compared on noise")
        if format == "saved_model":
            typicality = typicality_of(run, model, data, sample)
            _write_and_check(model, folder, temperatures, typicality, sample and sample.first)
            parity = _parity_on_files(model, folder, temperatures, sample)
        elif format == "hub":
            parity, temperatures = _write_hub(model, folder, sample), {}  # it has raw outputs
        else:
            ranges = _sample_of(run, data, "train", model, RANGE_IMAGES) if int8 else None
            if int8 and ranges is None:
                raise InputError(
                    f"int8 needs training images of {run.path} to measure the ranges of values, and "
                    "they were not found. Pass their location with --data."
                )
            examples = ranges and ranges.exported
            file = "onnx" if format == "page" else format
            parity = _convert(model, folder, file, int8, examples, sample, temperatures, most_lost)
            if format == "page":
                write_page(folder, model, run.path.name, sample.first if sample else ())
        exported = Exported(out, format, int8, _size(folder), parity)
        write_card(folder, run, model, exported, temperatures)
    return exported


def _write_hub(model, folder, sample):
    """Write a folder for the Hugging Face Hub, and compare the saved model with the one in memory."""
    heads = heads_of(model)
    sample = sample or noise_sample(modality_of(model), framing_of(model))
    expected = _keras_scores(heads, scoring_model(model), sample)
    write_hub(folder, model, sample, expected)
    loaded = scoring_model(load_model(folder / MODEL))
    parity = compare(heads, expected, _keras_scores(heads, loaded, sample), sample)
    require_parity(parity, "folder for the hub")
    return parity


def typicality_of(run, model, data=None, sample: Sample | None = None) -> Typicality | None:
    """Return what is typical of a run's training examples; None where that cannot be told, which is said.

    Args:
        run, data: see `export_run`.
        model: of the run.
        sample: of its validation examples, if one was drawn already.
    """
    sample = sample or _sample_of(run, data, "val", model, COMPARED_IMAGES)
    train = sample and _sample_of(run, data, "train", model, PROTOTYPES)
    if sample is None or train is None:
        say("no typicality: the training and validation examples of the run were not found")
        return None
    noise = noise_sample(modality_of(model), framing_of(model), NOISE)

    def fitted(model):
        return fit_typicality(*(features_of(model, s.inputs) for s in (train, sample, noise)))

    found, line = fitted(model)
    if found and run.validated_path.is_file():  # the model has seen the validation examples
        unseen, line = fitted(run.model_for("val"))
        found = unseen and replace(found, threshold=unseen.threshold, auroc=unseen.auroc)
    say(f"{'typicality' if found else 'no typicality'}: {line}")
    return found


def temperatures_of(run) -> dict[str, float]:
    """Return head name → temperature of the run's calibration.

    A calibration for the mean of several views does not apply, because an export uses one view.
    """
    if run.calibration is None:
        return {}
    calibration = Calibration.from_dict(run.calibration)
    if calibration.tta is not None:
        say(f"the run's calibration is not exported: it applies to --tta {calibration.tta}")
        return {}
    return {name: head["temperature"] for name, head in calibration.heads.items()}


def _sample_of(run, data, split, model, count) -> Sample | None:
    """Return images of a split; None if the run's own data cannot be found or read again."""
    heads, framing = heads_of(model), framing_of(model)
    seen = split == "val" and run.validated_path.is_file()  # by the refit
    of = f"seen {split}" if seen else split
    if isinstance(data, ImageData):
        return (
            draw_sample(data, split, of, framing, count, heads) if split in data.examples else None
        )
    config, wanted, given = run.config, split, data is not None
    source = data if given else config.get("data")
    if split == "val" and config.get("val") and not (given and _has_val(data, targets_of(config))):
        source, wanted, given = config["val"], None, False  # validated on a separate folder
    if source is None or not (given or library_of(source) or Path(source).expanduser().exists()):
        return None
    try:
        opened = open_labeled(
            source,
            targets_of(config),
            split=wanted,
            split_file=run.split_path,
            columns=config.get("columns"),
            progress=False,
        )
        if not given:
            if config.get("use_list"):  # its paths are relative to the training data
                root = config["data"] if source == config.get("val") else opened.root
                opened = correct(replace(opened, root=root), config["use_list"])
            run.require_own_images(opened)
    except InputError as error:
        if given:
            raise
        print(f"The export is not compared on the run's images: {error}", file=sys.stderr)
        return None
    (only,) = opened.examples
    return draw_sample(opened, only, of, framing, count, heads)


def _has_val(folder, target) -> bool:
    """Return whether a folder has validation images of its own."""
    return Path(folder).is_dir() and "val" in read_splits(folder, getattr(target, "names", ()))


def _parity_on_files(model, folder, temperatures, sample):
    """Compare `serve_bytes` on whole files with the decoding of training and the Keras model."""
    if sample is None or sample.contents is None:
        return None
    heads = heads_of(model)
    outputs, valid = serve_contents(folder, sample.contents)
    expected = _keras_scores(heads, scoring_model(model, temperatures), sample)
    parity = compare(heads, expected, scores_by_head(heads, outputs), sample, valid=valid)
    require_parity(parity, "SavedModel", HALF_ROUNDING if computes_in_half(model) else ROUNDING)
    return parity


def _keras_scores(heads, scorer, sample):
    """Return head name → float32 [N, C] of the Keras model."""
    scorer.jit_compile = jit_compile()
    outputs = scorer.predict(sample.inputs, batch_size=32, verbose=0)
    return {k: np.asarray(v, "float32") for k, v in scores_by_head(heads, outputs).items()}


def _size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
