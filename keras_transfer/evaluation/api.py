"""The short answer to how good a model is: a dict for scripts, and lines for people."""

from keras_transfer.data.examples import ImageData
from keras_transfer.evaluation.measures import confusion, measured
from keras_transfer.evaluation.outputs import collect
from keras_transfer.models.builders import by_head, check_targets, heads_of


def evaluate(model, data: ImageData, split: str = "val", *, batch_size: int = 32) -> dict:
    """Measures a model on labelled images, in one pass.

    Args:
        model: from `build_model`, trained; it answers what `data.targets` says.
        data: labelled images.
        split: which of `data.examples`.

    Returns:
        Plain data for JSON: `images`, `task`, `loss`, and

        - of classes `accuracy`, `accuracy_interval` (95 %, Wilson), `top5` (where there are more than
          five classes), `balanced_accuracy` (the mean recall of the classes that occur), `per_class`
          (precision, recall, f1, support for each name) and `confusion` (row: true class, column:
          predicted);
        - of labels `map` (mean average precision), `auc`, `f1_macro`, `f1_micro` (at 0.5),
          `balanced_accuracy`, `per_label`
          (average_precision, auc, precision, recall, f1, support) and `one_class`: the labels which
          all of these images have, or none, and which are left out of `map` and `auc`;
        - of numbers `mae`, `rmse`, `r2` (means over the targets) and `per_target`, in its units; R² is
          None where a target is the same in all of these images;
        - of several heads `heads`: the same for each; `loss` is the weighted sum.

    Raises:
        InputError: labels of other tasks or names than the model's, no such split, or outputs that are
            not finite.
    """
    heads = heads_of(model)
    check_targets(heads, data)
    labels, outputs = collect(model, data, split, batch_size=batch_size)
    return brief(heads, labels, outputs)


def brief(heads, labels, outputs) -> dict:
    """What `evaluate` returns, of labels and outputs of `collect`."""
    result = measured(heads, labels, outputs)
    labels, outputs = by_head(heads, labels), by_head(heads, outputs)
    for name, head in heads.items():
        if head.task == "single_label":
            of_head = result["heads"][name] if "heads" in result else result
            of_head["confusion"] = confusion(labels[name], outputs[name])
    return result


def shown(result: dict, split: str) -> str:
    """What `evaluate` found, for people: a line, and a table a row for each class, label or target."""
    where = f"{result['images']} images of {split}"
    skipped = f", {result['skipped']} files skipped" if "skipped" in result else ""
    if "heads" not in result:
        line, *rows = _shown_task(result, where)
        return "\n".join([line + skipped, *rows])
    lines = [f"{where}, loss {result['loss']:.4f}{skipped}"]
    for name, one in result["heads"].items():
        line, *rows = _shown_task(one, where)
        lines += [f"{name}: {line}", *rows]
    return "\n".join(lines)


def _shown_task(result, where):
    if result["task"] == "single_label":
        low, high = result["accuracy_interval"]
        line = f"accuracy {result['accuracy']:.4f} (95 % interval {low:.3f}–{high:.3f}, {where})"
        line += f", balanced {result['balanced_accuracy']:.4f}"
        rows, kind = result["per_class"], "class"
    elif result["task"] == "multi_label":
        names = ("map", "auc", "f1_macro", "f1_micro")
        line = ", ".join(f"{name} {_cell(result[name], 4)}" for name in names) + f" ({where})"
        if result["one_class"]:
            line += f", without {', '.join(result['one_class'])} (the same in all images)"
        rows, kind = result["per_label"], "label"
    else:
        line = ", ".join(f"{name} {_cell(result[name], 4)}" for name in ("mae", "rmse", "r2"))
        line += f" ({where})"
        rows, kind = result["per_target"], "target"
    header = list(next(iter(rows.values())))
    widths = [max(10, len(column) + 2) for column in header]
    lines = [f"{line}, loss {result['loss']:.4f}"]
    lines.append(f"{kind:<24}" + "".join(f"{c:>{w}}" for c, w in zip(header, widths)))
    for name, row in rows.items():
        cells = (f"{_cell(row[c]):>{w}}" for c, w in zip(header, widths))
        lines.append(f"{name[:23]:<24}" + "".join(cells))
    return lines


def _cell(value, digits=3):
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"
