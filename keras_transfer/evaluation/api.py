"""Evaluate a model: `evaluate` returns the main metrics as a dict, `assess` a full `Evaluation`."""

from collections.abc import Mapping, Sequence

from keras_transfer.data.examples import ImageData
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import Calibration, check_precision
from keras_transfer.evaluation.measures import compute_metrics, confusion_counts
from keras_transfer.evaluation.outputs import collect, resolve_views
from keras_transfer.evaluation.result import Evaluation, format_value
from keras_transfer.evaluation.tasks import MEASURES, add_column
from keras_transfer.models.builders import by_head, check_targets, heads_of
from keras_transfer.utils.console import Table, counted


def evaluate(model, data: ImageData, split: str = "val", *, batch_size: int = 32) -> dict:
    """Measure a model on labeled images, in one pass.

    Args:
        model: from `build_model`, trained for the task of `data.targets`.
        data: labeled images.
        split: one of `data.examples`.
        batch_size: images per batch.

    Returns:
        Plain data for JSON: `images`, `task`, `loss`, and

        - for classes `accuracy`, `accuracy_interval` (95 %, Wilson), `top5` (for more than five
          classes), `balanced_accuracy` (the mean recall of the classes that occur), `per_class`
          (precision, recall, f1, support for each name) and `confusion` (row: true class, column:
          predicted);
        - for labels `map` (mean average precision), `auc`, `f1_macro`, `f1_micro` (at 0.5),
          `balanced_accuracy`, `per_label` (average_precision, auc, precision, recall, f1, support)
          and `one_class`: labels that all or none of these images have, which are excluded from
          `map` and `auc`;
        - for numbers `mae`, `rmse`, `r2` (means over the targets) and `per_target`, in its units;
          R² is None for a target that is constant on these images;
        - for several heads `heads`: the same for each; `loss` is the weighted sum.

    Raises:
        InputError: if the labels do not match the model's heads, the split does not exist, or
            outputs are not finite.
    """
    heads = heads_of(model)
    data = check_targets(heads, data)
    labels, outputs = collect(model, data, split, batch_size=batch_size)
    return summarize(heads, labels, outputs)


def summarize(heads, labels, outputs) -> dict:
    """Compute the result of `evaluate` from labels and outputs of `collect`."""
    result = compute_metrics(heads, labels, outputs)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    for name, head in heads.items():
        if head.task == "single_label":
            of_head = result["heads"][name] if "heads" in result else result
            predicted = outputs[name].argmax(axis=1)
            matrix = confusion_counts(labels[name], predicted, len(head.names))
            of_head["confusion"] = matrix.tolist()
    return result


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
    batch_size: int = 32,
) -> Evaluation:
    """Measure a model on labeled images by all metrics, with intervals, in one pass.

    Args:
        model: from `build_model`, trained for the task of `data.targets`.
        data: labeled images.
        split: one of `data.examples`.
        calibration: from `calibrate`, with the same `tta`: its temperatures scale the
            probabilities, and its thresholds are tried.
        precision: wanted precision of the answers, in (0, 1]: the model abstains below a confidence
            threshold. The threshold comes from the calibration; without one it is chosen on these
            images, which is optimistic.
        tta: test-time augmentation, see `outputs.resolve_views`.
        augmentation: how its views differ.
        slices: name of a grouping → the slice of each image, see `slices.slice_values`.
        most: maximum number of mistakes and of uncertain images to list.
        batch_size: images per batch.

    Raises:
        InputError: if the labels do not match the model's heads, the split does not exist, outputs
            are not finite, the precision is out of range, or the calibration is for other heads or
            views.
    """
    views, heads = resolve_views(tta, augmentation, data.modality), heads_of(model)
    if precision is not None:
        check_precision(precision, {head.task for head in heads.values()})
    data = check_targets(heads, data)
    if calibration is not None:
        _check_calibration(calibration, heads, tta)
    labels, outputs = collect(model, data, split, batch_size=batch_size, views=views)
    brief = summarize(heads, labels, outputs)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    paths = data.examples[split].names
    documents: dict[str, dict] = {}
    rows: dict[str, list[str]] = {"path": list(paths)}
    for name, head in heads.items():
        options: dict = {"slices": slices, "most": most}
        if head.task != "regression":
            options["calibration"] = calibration and calibration.heads.get(name)
        if head.task == "single_label":
            options["precision"] = precision
        documents[name], columns = MEASURES[head.task](
            head.names, labels[name], outputs[name], paths, **options
        )
        prefix = f"{name}_" if len(heads) > 1 else ""
        for column, values in columns.items():
            add_column(rows, f"{prefix}{column}", values)
    for by, one_each in (slices or {}).items():
        add_column(rows, f"slice_{by}", list(one_each))
    document = {
        "split": split,
        "images": len(paths),
        "skipped": len(data.skipped),
        "tta": tta,
        "calibrated_on": calibration and {"split": calibration.split, "images": calibration.images},
        "heads": documents,
    }
    return Evaluation(document, brief, rows)


def _check_calibration(calibration, heads, tta):
    if str(calibration.tta) != str(tta):
        raise InputError(
            f"The calibration is for tta {calibration.tta or 'none'}, not {tta or 'none'}: "
            "calibrate with the same views."
        )
    for name, fitted in calibration.heads.items():
        count = len(fitted.get("label_thresholds", ()))
        if name not in heads or count not in (0, len(heads[name].names)):
            labels = f" with {counted(count, 'label')}" if count else ""
            raise InputError(
                f"The calibration belongs to another model, with a head {name}{labels}: calibrate "
                "this model."
            )


# -- text -----------------------------------------------------------------------------------------


def summary_text(result: dict, split: str) -> str:
    """Return the result of `evaluate` as text: a line, and a table of classes, labels or targets."""
    where = f"{counted(result['images'], 'example')} of {split}"
    skipped = f", {counted(result['skipped'], 'file')} skipped" if "skipped" in result else ""
    if "heads" not in result:
        line, table = _head_text(result, where)
        return f"{line}{skipped}\n{table}"
    lines = [f"{where}, loss {result['loss']:.4f}{skipped}"]
    for name, head in result["heads"].items():
        line, table = _head_text(head, where)
        lines += [f"{name}: {line}", table]
    return "\n".join(lines)


def _head_text(result, where):
    def metrics(*names):
        return ", ".join(f"{name} {format_value(result[name], 4)}" for name in names)

    if result["task"] == "single_label":
        low, high = result["accuracy_interval"]
        line = f"{metrics('accuracy')} (95 % interval {low:.3f}–{high:.3f}, {where})"
        line += f", balanced {result['balanced_accuracy']:.4f}"
        kind, rows = "class", result["per_class"]
    elif result["task"] == "multi_label":
        line = f"{metrics('map', 'auc', 'f1_macro', 'f1_micro')} ({where})"
        if result["one_class"]:
            line += f", without {', '.join(result['one_class'])} (the same in all examples)"
        kind, rows = "label", result["per_label"]
    else:
        line = f"{metrics('mae', 'rmse', 'r2')} ({where})"
        kind, rows = "target", result["per_target"]
    columns = list(next(iter(rows.values())))
    cells = (
        [name, *(format_value(row[column]) for column in columns)] for name, row in rows.items()
    )
    table = Table([kind, *columns], cells, "l" + "r" * len(columns))
    return f"{line}, loss {result['loss']:.4f}", table.text()
