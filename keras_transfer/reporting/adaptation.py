"""The report of an adaptation run: curves, features of both domains, and the selected epoch."""

import shlex
from functools import partial
from pathlib import Path

import numpy as np

from keras_transfer.adaptation.network import MOST_FEATURES, read_feature_maps
from keras_transfer.adaptation.selection import Selector
from keras_transfer.data import plain_augmentation, without_flip
from keras_transfer.reporting.page import COLORS, GRAY, figure, line_figure, render, skipped_files
from keras_transfer.reporting.training_curves import points
from keras_transfer.runs import Run
from keras_transfer.utils.console import printable
from keras_transfer.utils.files import write_text

_MOST_COLORED = len(COLORS)  # classes with a color in the legend
_OPTIONS = (  # of the command, as in config.yaml
    *("method", "backbone", "weights", "val", "val_split", "batch_size", "freeze", "batch_norm"),
    *("bottleneck", "keep", "target_labels", "seed", "image_size", "precision"),
)
_SOURCE, _TARGET, _OTHER = COLORS[:3]


def write_report(run: Run, out: str | Path | None = None) -> Path:
    """Write the report of a finished adaptation run, from the files of the run.

    Args:
        run: of `adapt`.
        out: the HTML file; `report.html` in the run by default.
    """
    config, metrics, history = run.config, run.metrics, run.history
    names = config["head"]["names"]
    methods = " + ".join(config["method"].split(",")).upper()
    selector = Selector.from_dict(metrics["adaptation"]["selection"])
    before, after = read_feature_maps(run.feature_maps_path)
    page = render(
        "adaptation",
        title=f"{methods}: from {_name(config['source'])} to {_name(config['target'])}",
        introduction=(
            f"{config['backbone']} at {config['image_size']} px learns {len(names)} classes from "
            f"{metrics['images']['train']} labeled images of {printable(config['source'])}, for "
            f"{metrics['images']['target']} images of {config['target']}, whose labels it never "
            "sees."
        ),
        numbers=_key_numbers(metrics),
        curves=_curves(history, selector, metrics["adaptation"]["epoch"], len(names)),
        target_labels=bool(_target_accuracies(selector)),
        maps_text=_maps_text(before, after),
        maps=_maps(before, after, names),
        selection_text=_selection_text(metrics["adaptation"]["keep"], selector),
        epochs=selector.epoch_table(),
        skipped=skipped_files(run.skipped, most=50),
        command=shlex.join(command(config)),
    )
    out = run.report_path if out is None else Path(out)
    write_text(out, page)
    return out


def command(config: dict, out: str = "NEW_RUN") -> list[str]:
    """Return the words of the command that repeats a run.

    Args:
        config: `Run.config`.
        out: directory of the new run.
    """
    (phase,) = config["schedule"]["phases"]
    options = {name: config[name] for name in _OPTIONS}
    options |= {name: phase[name] for name in ("epochs", "learning_rate")}
    words = ["keras-transfer", "adapt", config["source"], config["target"], "--out", out]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    for name, value in (config["columns"] or {}).items():
        words += ["--column", f"{name.removesuffix('_column')}={value}"]
    if config["augment"] == plain_augmentation(without_flip("light")):
        words.append("--no-flip")
    elif isinstance(config["augment"], str):
        words += ["--augment", config["augment"]]
    return words


def _name(path):
    return Path(path).name or str(path)


def _key_numbers(metrics):
    """Return (title, value, interval) of the most important metrics."""
    adaptation = metrics["adaptation"]
    last = adaptation["selection"]["epochs"][-1]["epoch"]
    numbers = [("selected epoch", f"{adaptation['epoch']} of {last} ({adaptation['keep']})", "")]
    domains = {"source validation": metrics["val"], "target": adaptation["target"]}
    for domain, result in domains.items():
        if result:
            low, high = result["accuracy_interval"]
            interval = f"[{low:.3f}, {high:.3f}]"
            numbers.append((f"accuracy, {domain}", f"{result['accuracy']:.3f}", interval))
    return [*numbers, ("training time", f"{metrics['wall_seconds']:.0f} s", "")]


def _target_accuracies(selector):
    reported = ((s.epoch, selector.target_accuracy(s.epoch)) for s in selector.scores)
    return [point for point in reported if point[1] is not None]


def _curves(history, selector, best_epoch, classes):
    """Return figures of the logged values; for SHOT, without the training of the source model."""
    rows = [row for row in history if row["phase"] == "adapt"]
    rows = [{**row, "epoch": epoch} for epoch, row in enumerate(rows, 1)]

    def curve(title, lines, colors, limits=None, reference=None):
        frame = None if limits is None else (lambda axes: axes.set_ylim(*limits))
        options = {"best_epoch": best_epoch, "reference": reference, "frame": frame}
        return line_figure(title, lines, colors=colors, **options)

    accuracies = {
        "source, validation": points(rows, "val_accuracy"),
        "target (labels used only for this report)": _target_accuracies(selector),
    }
    losses = {
        name.replace("_", " "): points(rows, name)
        for name in ("class_loss", "align_loss", "val_loss")
    }
    figures = [
        curve("Accuracy", accuracies, (_SOURCE, _TARGET), (-0.02, 1.02)),
        curve("Losses", losses, (_SOURCE, _TARGET, _OTHER)),
    ]
    for name, title, label, color, limits, reference in (
        (
            *("domain_accuracy", "Discriminator", "domain accuracy", _OTHER),
            *((-0.02, 1.02), (0.5, "domains not distinguishable")),
        ),
        ("lambda", "Strength λ", "λ, mean over the epoch", _OTHER, (0, None), None),
        (
            *("target_entropy", "Entropy in nats", "of predictions for the target", _TARGET),
            *(None, (np.log(classes), "uniform predictions")),
        ),
    ):
        if values := points(rows, name):
            figures.append(curve(title, {label: values}, (color,), limits, reference))
    return figures


def _maps_text(before, after):
    text = (
        f"Each point is an image, at most {MOST_FEATURES} of each domain, placed by {after.how}. "
        "“Before” is the network at the start, with the backbone's initial weights."
    )
    if before.distance and after.distance:
        text += (
            " The proxy-A distance says how well a linear classifier distinguishes the domains, "
            f"from 0 (not at all) to 2 (always): {_estimate(before.distance)} before, "
            f"{_estimate(after.distance)} after."
        )
    return text


def _estimate(estimate):
    return f"{estimate.value:.2f} ± {estimate.error:.2f}"


def _maps(before, after, names):
    return [
        figure(partial(draw, feature_map, names), f"{title}, {when}", height=4.2)
        for draw, title in ((_draw_domains, "Domains"), (_draw_classes, "Classes of the source"))
        for when, feature_map in (("before", before), ("after", after))
    ]


def _draw_domains(feature_map, names, axes):
    count = len(feature_map.labels)
    _draw_points(axes, feature_map.places[:count], _SOURCE, "source")
    _draw_points(axes, feature_map.places[count:], _TARGET, "target", marker="^")
    _hide_axes(axes)


def _draw_classes(feature_map, names, axes):
    from matplotlib import colormaps

    count = len(feature_map.labels)
    _draw_points(axes, feature_map.places[count:], GRAY, "target", marker="^", alpha=0.35)
    for number, name in enumerate(names):
        places = feature_map.places[:count][feature_map.labels == number]
        if len(names) <= _MOST_COLORED:
            _draw_points(axes, places, COLORS[number], f" {printable(name)}".replace("$", r"\$"))
        else:
            _draw_points(axes, places, colormaps["hsv"](number / len(names)))
    _hide_axes(axes)


def _draw_points(axes, places, color, label=None, marker="o", alpha=0.7):
    style = {"s": 9, "marker": marker, "alpha": alpha, "lw": 0, "rasterized": True}
    axes.scatter(*places.T, c=[color], label=label, **style)


def _hide_axes(axes):
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=9, markerscale=2, loc="upper center", ncols=5, bbox_to_anchor=(0.5, 0))


def _selection_text(keep, selector):
    if keep == "last":
        return "The last epoch was selected, which is the default; the scores are for information."
    text = (
        "The epoch was selected by scores that need no target labels: the best mean rank over "
        f"{' and '.join(selector.criteria)} among the epochs without a veto."
    )
    if selector.selected is None:
        text += " Every epoch is vetoed, so the last one was selected: do not trust it."
    return text
