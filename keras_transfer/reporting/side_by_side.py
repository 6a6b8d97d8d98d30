"""Several runs beside each other: measures with intervals, curves, settings that differ."""

from collections.abc import Sequence
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.reporting import page, summary
from keras_transfer.reporting.training_curves import curves_beside, measured
from keras_transfer.runs import COMPARISON, Run
from keras_transfer.utils.files import write_text
from keras_transfer.utils.tables import printable

_MOST = len(page.COLOURS)
_NO_SETTINGS = ("advice", "caching")  # what was found out, not what was asked for


def compare_runs(runs: Sequence[Run | str | Path], out: str | Path = COMPARISON) -> Path:
    """Writes a page that sets finished runs beside each other.

    Measures are those of `evaluation.json` where each run has one of the same split and as many
    images (`write_report` makes it), else those that the runs ended with. No Keras is needed.

    Args:
        runs: two to ten.
        out: the file.

    Returns:
        The file, which appears whole or not at all.

    Raises:
        InputError: one run or too many, or something that is no finished run.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not 2 <= len(opened) <= _MOST:
        raise InputError(f"{len(opened)} runs: give two to {_MOST} to compare.")
    out = Path(out)
    names = _names(opened)
    histories = {name: run.history for name, run in zip(names, opened)}
    body = page.page(
        f"{len(opened)} runs compared",
        page.paragraph(f"{', '.join(names)}: {_on(opened)}"),
        page.section("Measures", *_measures(names, opened)),
        page.section(
            "Curves",
            page.paragraph("Of validation, after each epoch over all phases."),
            curves_beside(histories, _common(histories.values())),
        ),
        page.section("Settings that differ", _settings(names, opened)),
        style=summary.STYLE,
    )
    write_text(out, body)
    return out


def _names(runs):
    """The shortest ends of the paths that tell them apart."""
    paths = [run.path.absolute().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = [printable("/".join(parts[-length:])) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError("The same run is given twice.")


def _on(runs):
    data = {summary.data_name(run) for run in runs}
    text = f"all on {data.pop()}." if len(data) == 1 else "on different data."
    parts = [frozenset(p for p, s in run.split.items() if s == "val") for run in runs]
    if len(set(parts)) > 1:
        text += (
            " They were validated on different images: differences are of the images too, and the "
            "curves cannot be compared strictly."
        )
    return text


def _measures(names, runs):
    documents = [run.evaluation for run in runs]
    same = None not in documents and len({(d["split"], d["images"]) for d in documents}) == 1
    if same:
        rows = _from_documents(documents)
        first = documents[0]
        where = f"On {first['images']} images of {first['split']}, as the report of each run measured it."
    else:
        rows = [dict(_flat(run.metrics["val"])) for run in runs]
        where = (
            "On each run's validation images, as the training ended. After `keras-transfer report RUN` "
            "of each there are more measures and intervals."
        )
    kinds = list(dict.fromkeys(kind for row in rows for kind in row))
    cells = [(name, *(row.get(kind, "–") for kind in kinds)) for name, row in zip(names, rows)]
    shown = page.table(("run", *kinds), cells, "measures")
    text = (
        f"{where} Intervals are 95 % of each run alone: where they do not overlap, the runs differ."
    )
    time = [
        (name, f"{run.metrics['wall_seconds']:.0f} s", run.metrics["best_epoch"], _epochs(run))
        for name, run in zip(names, runs)
    ]
    header = ("run", "training", "kept epoch", "epochs")
    return page.paragraph(text), shown, "<h3>Time</h3>", page.table(header, time, "time")


def _epochs(run):
    return sum(phase["epochs"] for phase in run.metrics["phases"])


_SHOWN = {
    "accuracy": "accuracy",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1, macro",
    "map": "mAP",
    "exact": "all right",
    "auc": "AUC",
}


def _from_documents(documents):
    rows = []
    for document in documents:
        row = {}
        for name, head in document["heads"].items():
            of = f"{name}: " if len(document["heads"]) > 1 else ""
            for key, words in _SHOWN.items():
                if head.get(key) is not None:
                    row[of + words] = _number(head[key])
            for target, kinds in head.get("per_target", {}).items():
                row |= {f"{of}{target}: {kind}": _number(v) for kind, v in kinds.items()}
            if "calibration" in head:
                row[f"{of}ECE"] = _number(
                    (head["calibration"]["after"] or head["calibration"]["before"])["ece"]
                )
        rows.append(row)
    return rows


def _flat(val, of=""):
    """Numbers of metrics.json's `val`, with the interval of the accuracy."""
    for key, value in val.items():
        if key == "heads":
            for name, inner in value.items():
                yield from _flat(inner, f"{name}: ")
        elif isinstance(value, float):
            ends = val.get(f"{key}_interval")
            shown = f"{value:.4f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
            yield of + _SHOWN.get(key, key), shown


def _number(value):
    if not isinstance(value, dict):
        return f"{value:.4f}"
    if value["value"] is None:
        return "–"
    ends = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['value']:.4f}{ends}"


def _common(histories):
    """Measures that each history has."""
    found = [measured(rows) for rows in histories]
    return [name for name in found[0] if all(name in other for other in found)]


def _settings(names, runs):
    flat = [dict(_leaves(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for leaves in flat for key in leaves))
    rows = []
    for key in keys:
        values = [leaves.get(key, "–") for leaves in flat]
        if len(set(values)) > 1:
            rows.append((key, *values))
    if not rows:
        return page.paragraph("None: the runs differ by chance alone.")
    return page.table(("setting", *names), rows, "settings that differ")


def _leaves(config, of=""):
    """Dotted name → text of each setting; phases by their names."""
    if isinstance(config, dict):
        for key, value in config.items():
            if of or key not in _NO_SETTINGS:
                yield from _leaves(value, f"{of}.{key}" if of else str(key))
    elif isinstance(config, list) and config and all(isinstance(x, dict) for x in config):
        for i, inner in enumerate(config, 1):
            yield from _leaves(inner, f"{of}.{inner.get('name', i)}")
    else:
        yield of, printable(str(config))[:200]
