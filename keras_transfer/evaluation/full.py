"""The long answer to how good a model is: everything, from one pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_transfer.data.examples import ImageData
from keras_transfer.errors import InputError
from keras_transfer.evaluation.api import brief
from keras_transfer.evaluation.calibration import Calibration, check_precision
from keras_transfer.evaluation.multiclass import measure_classes
from keras_transfer.evaluation.multilabel import measure_labels
from keras_transfer.evaluation.outputs import collect
from keras_transfer.evaluation.regression import measure_values
from keras_transfer.evaluation.result import Evaluation
from keras_transfer.evaluation.tta import views_for
from keras_transfer.models.builders import by_head, check_targets, heads_of


def assess(
    model,
    data: ImageData,
    split: str = "val",
    *,
    calibration: Calibration | None = None,
    precision: float | None = None,
    tta: str | int | None = None,
    augmentation="light",
    slices: Mapping[str, Sequence[str]] | None = None,
    most: int = 50,
    seed: int = 0,
    batch_size: int = 32,
) -> Evaluation:
    """Measures a model on labelled images in every respect, in one pass.

    Args:
        model: from `build_model`, trained; it answers what `data.targets` says.
        data: labelled images.
        split: which of `data.examples`.
        calibration: of `calibrate`, with the same `tta`: probabilities are those after its
            temperatures, and its thresholds are tried.
        precision: wanted of answers, in (0, 1]: where must the model abstain? Taken from the
            calibration, or else chosen on these very images, which flatters.
        tta: test-time augmentation, see `views.views_for`.
        augmentation: what varies in its views.
        slices: what images are parted by → the slice of each, see `slices.slice_values`.
        most: mistakes and unsure images that are listed.
        seed: of the bootstrap intervals.

    Raises:
        InputError: labels of other tasks or names than the model's, no such split, outputs that are
            not finite, a precision out of range, or a calibration of other heads or views.
    """
    views, heads = views_for(tta, augmentation), heads_of(model)
    if precision is not None:
        check_precision(precision, {head.task for head in heads.values()})
    check_targets(heads, data)
    if calibration is not None:
        _check_calibration(calibration, heads, tta)
    labels, outputs = collect(model, data, split, batch_size=batch_size, views=views)
    short = brief(heads, labels, outputs)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    paths = data.examples[split].names
    documents, rows = {}, {"path": paths}
    for name, head in heads.items():
        known = calibration.heads.get(name, {}) if calibration else {}
        options: dict[str, Any] = {"slices": slices, "most": most, "seed": seed}
        if head.task == "single_label":
            options["temperature"] = known.get("temperature")
            options["thresholds"] = {
                row["precision"]: row["threshold"] for row in known.get("thresholds", ())
            }
            options["precision"] = precision
        elif head.task == "multi_label":
            options["temperature"] = known.get("temperature")
            options["label_thresholds"] = known.get("label_thresholds")
        document, columns = _MEASURES[head.task](
            head.names, labels[name], outputs[name], paths, **options
        )
        documents[name] = document
        prefix = f"{name}_" if len(heads) > 1 else ""
        rows |= {f"{prefix}{column}": values for column, values in columns.items()}
    rows |= {f"slice_{by}": list(values) for by, values in (slices or {}).items()}
    document = {
        "split": split,
        "images": len(paths),
        "skipped": len(data.skipped),
        "tta": tta,
        "calibrated_on": calibration and {"split": calibration.split, "images": calibration.images},
        "heads": documents,
    }
    return Evaluation(document, short, rows)


_MEASURES: dict[str, Callable[..., tuple[dict, dict]]] = {
    "single_label": measure_classes,
    "multi_label": measure_labels,
    "regression": measure_values,
}


def _check_calibration(calibration, heads, tta):
    if str(calibration.tta) != str(tta):
        raise InputError(
            f"The calibration is for tta {calibration.tta or 'none'}, not {tta or 'none'}: calibrate "
            "with the same views."
        )
    for name, found in calibration.heads.items():
        count = len(found.get("label_thresholds", ()))
        if name not in heads or count not in (0, len(heads[name].names)):
            raise InputError(
                f"The calibration is not of this model: it has a head {name}"
                f"{f' with {count} labels' * bool(count)}. Calibrate anew."
            )
