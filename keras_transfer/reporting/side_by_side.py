"""Several runs on one page: metrics with intervals, training curves, settings that differ."""

from collections.abc import Sequence
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.evaluation.result import format_value, summary_values
from keras_transfer.reporting.page import COLORS, render
from keras_transfer.reporting.run_report import data_name
from keras_transfer.reporting.training_curves import comparison_curves
from keras_transfer.runs import COMPARISON, Run
from keras_transfer.utils.console import Table, printable
from keras_transfer.utils.files import write_text

_MOST_RUNS = len(COLORS)
_RESULTS = ("advice", "caching", "limited")  # in config.yaml, but not settings


def compare_runs(runs: Sequence[Run | str | Path], out: str | Path = COMPARISON) -> Path:
    """Write a page that compares finished runs.

    The metrics come from `evaluation.json` if every run has one for the same split with the same
    number of images (`write_report` writes it), otherwise from the end of training. Keras is not
    loaded.

    Args:
        runs: two to ten.
        out: the HTML file.

    Returns:
        The file, which is written atomically.

    Raises:
        InputError: if there are too few or too many runs, or one is given twice or not finished.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not 2 <= len(opened) <= _MOST_RUNS:
        raise InputError(f"Cannot compare {len(opened)} runs: give two to {_MOST_RUNS}.")
    names = _names(opened)
    metrics_text, metrics = _metrics(names, opened)
    page = render(
        "comparison",
        title=f"{len(opened)} runs compared",
        introduction=f"{', '.join(names)}: {_data_text(opened)}",
        metrics_text=metrics_text,
        metrics=metrics,
        times=_times(names, opened),
        curves=comparison_curves({name: run.history for name, run in zip(names, opened)}),
        settings=_settings(names, opened),
    )
    write_text(Path(out), page)
    return Path(out)


def _names(runs):
    """Return the shortest ends of the paths that distinguish the runs."""
    paths = [run.path.absolute().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = [printable("/".join(parts[-length:])) for parts in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError("The same run is given twice.")


def _data_text(runs):
    data = {data_name(run) for run in runs}
    text = f"all on {data.pop()}." if len(data) == 1 else "on different data."
    validation = {frozenset(p for p, s in run.split.items() if s == "val") for run in runs}
    if len(validation) > 1:
        text += (
            " They were validated on different images, which explains a part of the differences; "
            "the curves are not strictly comparable."
        )
    return text


def _metrics(names, runs):
    documents = [run.evaluation for run in runs]
    if None not in documents and len({(d["split"], d["images"]) for d in documents}) == 1:
        columns = [dict(_measured(document["heads"])) for document in documents]
        text = (
            f"On {documents[0]['images']} examples of {documents[0]['split']}, as measured by the "
            "report of each run."
        )
    else:
        columns = [dict(_final(run.metrics["val"])) for run in runs]
        text = (
            "On each run's validation images, at the end of training. After `keras-transfer report "
            "RUN` for each run, there are more metrics and intervals."
        )
    titles = dict.fromkeys(title for column in columns for title in column)
    rows = ([title, *(column.get(title) for column in columns)] for title in titles)
    text += (
        " The 95 % intervals are for each run alone: where two do not overlap, the runs differ "
        "significantly."
    )
    return text, Table(["metric", *names], rows, "l" + "r" * len(names))


def _measured(heads):
    """Yield (title, text) of the metrics in an evaluation."""
    for name, head in heads.items():
        of = f"{name}: " if len(heads) > 1 else ""
        for title, value in summary_values(head).items():
            yield of + title, format_value(value, 4)


def _final(val, of=""):
    """Yield (title, text) of the metrics in `val` of metrics.json."""
    for key, value in val.items():
        if key == "heads":
            for name, head in value.items():
                yield from _final(head, f"{name}: ")
        elif isinstance(value, float):
            low, high = val.get(f"{key}_interval", (None, None))
            title = key.replace("_", " ")
            yield of + title, format_value({"value": value, "low": low, "high": high}, 4)


def _times(names, runs):
    rows = []
    for name, run in zip(names, runs):
        metrics = run.metrics
        epochs = sum(phase["epochs"] for phase in metrics["phases"])
        rows.append((name, f"{metrics['wall_seconds']:.0f} s", metrics["best_epoch"], epochs))
    return Table(("run", "training time", "selected epoch", "epochs"), rows, "lrrr")


def _settings(names, runs):
    each = [dict(_flat(run.config)) for run in runs]
    rows = []
    for key in dict.fromkeys(key for settings in each for key in settings):
        values = [settings.get(key) for settings in each]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return Table(("setting", *names), rows)


def _flat(config, of=""):
    """Yield (dotted name, text) of each setting; phases are named."""
    if isinstance(config, dict):
        for key, value in config.items():
            if of or key not in _RESULTS:
                yield from _flat(value, f"{of}.{key}" if of else str(key))
    elif isinstance(config, list) and config and all(isinstance(x, dict) for x in config):
        for i, inner in enumerate(config, 1):
            yield from _flat(inner, f"{of}.{inner.get('name', i)}")
    else:
        yield of, printable(str(config))[:200]
