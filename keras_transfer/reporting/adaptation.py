"""The page of an adaptation: how it went, how the features moved, which epoch was kept and why."""

import shlex
from pathlib import Path

import numpy as np

from keras_transfer.adaptation.network import MOST_FEATURES, read_feature_maps
from keras_transfer.adaptation.selection import Selector
from keras_transfer.data import plain_augmentation, without_flip
from keras_transfer.reporting import page
from keras_transfer.runs import Run
from keras_transfer.utils.files import write_text
from keras_transfer.utils.tables import printable

_MOST_CLASSES = len(page.COLOURS)  # with a colour each in a legend
_MOST_SKIPPED = 50
_OPTIONS = (  # of the command, as config.yaml has them
    *("method", "backbone", "weights", "val", "val_split", "batch_size", "freeze", "batch_norm"),
    *("bottleneck", "keep", "target_labels", "seed", "image_size", "precision"),
)
SOURCE, TARGET, OTHER = page.COLOURS[0], page.COLOURS[1], page.COLOURS[2]


# -- the page -------------------------------------------------------------------------------------


def write_report(run: Run, out: str | Path | None = None) -> Path:
    """Write the report of a finished adaptation run, from the files of the run.

    Args:
        run: of `adapt`.
        out: the HTML file; `report.html` in the run by default.
    """
    config, metrics = run.config, run.metrics
    names = config["head"]["names"]
    methods = " + ".join(config["method"].split(",")).upper()
    selector = Selector.from_dict(metrics["adaptation"]["selection"])
    found = page.page(
        f"{methods}: from {_name(config['source'])} to {_name(config['target'])}",
        page.paragraph(
            f"{config['backbone']} at {config['image_size']} px learns {len(names)} classes from "
            f"{metrics['images']['train']} labelled images of {config['source']}, for "
            f"{metrics['images']['target']} images of {config['target']} whose labels it never sees."
        ),
        page.numbers(_numbers(metrics)),
        page.section("Over time", *_course(run.history, selector, metrics, len(names))),
        page.section(
            "Features of both domains", *_maps(*read_feature_maps(run.feature_maps_path), names)
        ),
        page.section("Which epoch", *_choice(metrics, selector)),
        _skipped(run.skipped),
        page.section("Run it again", page.code(shlex.join(command(config)))),
    )
    out = run.report_path if out is None else Path(out)
    write_text(out, found)
    return out


def command(config: dict, out: str = "NEW_RUN") -> list[str]:
    """Return the command that repeats a run, as words."""
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


def _numbers(metrics):
    adaptation = metrics["adaptation"]
    last = adaptation["selection"]["epochs"][-1]["epoch"]
    found = {"kept epoch": f"{adaptation['epoch']} of {last} ({adaptation['keep']})"}
    if metrics["val"]:
        found["source, validation"] = _percent(metrics["val"]["accuracy"])
    if adaptation["target"]:
        low, high = adaptation["target"]["accuracy_interval"]
        found["target"] = _percent(adaptation["target"]["accuracy"])
        found["its 95 % interval"] = f"{100 * low:.1f}–{100 * high:.1f} %"
    return {**found, "training": f"{metrics['wall_seconds']:.0f} s"}


def _percent(share):
    return f"{100 * share:.1f} %"


def _course(rows, selector, metrics, classes):
    """Figures of what was logged; the source model that SHOT starts from is in history.csv only."""
    rows = [row for row in rows if row["phase"] == "adapt"]
    curves = {
        name: [(i, row[name]) for i, row in enumerate(rows, 1) if name in row]
        for name in {name for row in rows for name in row}
    }
    reported = ((s.epoch, selector.target_accuracy(s.epoch)) for s in selector.scores)
    curves["target"] = [point for point in reported if point[1] is not None]
    kept = metrics["adaptation"]["epoch"]

    def lines(*wanted, reference=None, **limits):
        def draw(axes):
            for name, label, colour in wanted:
                if curves.get(name):
                    axes.plot(*zip(*curves[name]), "o-", color=colour, label=label, ms=3, lw=1.5)
            axes.axvline(kept, color="#8a8a8a", ls="--", lw=1, label="kept epoch")
            if reference:
                height, label = reference
                axes.axhline(height, color="#8a8a8a", ls=":", lw=1, label=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="epoch", **limits)
            axes.grid(alpha=0.25)
            axes.legend(fontsize=9)

        return draw

    figures = [
        page.figure(
            lines(
                ("val_accuracy", "source, validation", SOURCE),
                ("target", "target (labels for this page only)", TARGET),
                ylim=(-0.02, 1.02),
            ),
            "Accuracy",
        )
    ]
    names = ("class_loss", "align_loss", "val_loss")
    losses = [(n, n.replace("_", " "), c) for n, c in zip(names, (SOURCE, TARGET, OTHER))]
    figures.append(page.figure(lines(*losses), "Losses"))
    if "domain_accuracy" in curves:
        wanted = ("domain_accuracy", "domain accuracy", OTHER)
        chance = (0.5, "cannot tell the domains")
        draw = lines(wanted, reference=chance, ylim=(-0.02, 1.02))
        figures.append(page.figure(draw, "Discriminator"))
    if "lambda" in curves:
        top = 1.1 * max(value for _, value in curves["lambda"])
        draw = lines(("lambda", "λ, mean of the epoch", OTHER), ylim=(0, top or 1))
        figures.append(page.figure(draw, "Strength λ"))
    if "target_entropy" in curves:
        entropy = ("target_entropy", "of answers for the target", TARGET)
        draw = lines(entropy, reference=(np.log(classes), "knows nothing"))
        figures.append(page.figure(draw, "Entropy in nats"))
    notes = []
    if not curves["target"]:
        notes.append(
            page.paragraph("Labels of the target were not given for reporting.", soft=True)
        )
    return page.grid(*figures), *notes


def _maps(before, after, names):
    figures = []
    for found, when in ((before, "before"), (after, "after")):
        figures.append(page.figure(_by_domain(found), f"Domains, {when}", height=4.2))
    for found, when in ((before, "before"), (after, "after")):
        figures.append(
            page.figure(_by_class(found, names), f"Classes of the source, {when}", height=4.2)
        )
    text = (
        f"Each point is an image, at most {MOST_FEATURES} of each domain, placed by {after.how}. "
        "Before: the network as it started, with the weights that its backbone came with."
    )
    if before.distance and after.distance:
        text += (
            f" How well the domains are told apart by a linear classifier (proxy-A distance, 0 not at "
            f"all, 2 always): {_estimate(before.distance)} before, {_estimate(after.distance)} after."
        )
    return page.paragraph(text), page.grid(*figures, large=True)


def _estimate(estimate):
    return f"{estimate.value:.2f} ± {estimate.error:.2f}"


def _points(axes, places, colour, label=None, marker="o", alpha=0.7):
    axes.scatter(
        *places.T, s=9, c=[colour], marker=marker, alpha=alpha, label=label, lw=0, rasterized=True
    )


def _bare(axes):
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=9, markerscale=2, loc="upper center", ncols=5, bbox_to_anchor=(0.5, 0))


def _by_domain(found):
    def draw(axes):
        count = len(found.labels)
        _points(axes, found.places[:count], SOURCE, "source")
        _points(axes, found.places[count:], TARGET, "target", marker="^")
        _bare(axes)

    return draw


def _by_class(found, names):
    def draw(axes):
        from matplotlib import colormaps

        count = len(found.labels)
        _points(axes, found.places[count:], "#8a8a8a", "target", marker="^", alpha=0.35)
        for number, name in enumerate(names):
            mine = found.places[:count][found.labels == number]
            if len(names) <= _MOST_CLASSES:
                _points(axes, mine, page.COLOURS[number], name)
            else:
                _points(axes, mine, colormaps["hsv"](number / len(names)))
        _bare(axes)

    return draw


def _choice(metrics, selector):
    adaptation = metrics["adaptation"]
    text = {
        "last": "The last epoch was kept, as is the default; the scores were only noted.",
        "selected": "The epoch was chosen by scores that need no label of the target: the best mean "
        f"rank over {' and '.join(selector.criteria)} among the epochs without a veto.",
    }[adaptation["keep"]]
    if adaptation["keep"] == "selected" and selector.selected is None:
        text += " Every epoch is vetoed, so the last one was kept: do not trust it."
    after = (
        "Accuracy in %. “oracle” is the best epoch by the target's labels, which nothing else saw."
    )
    return (
        page.paragraph(text),
        page.markdown_table(selector.table()),
        page.paragraph(after, soft=True),
    )


def _skipped(skipped):
    if not skipped:
        return ""
    rows = [(printable(path), reason) for path, reason in skipped[:_MOST_SKIPPED]]
    more = len(skipped) - len(rows)
    note = page.paragraph(f"… and {more} more in skipped.csv", soft=True) if more else ""
    return page.section(
        f"{len(skipped)} files left out", page.table(("file", "reason"), rows), note
    )
