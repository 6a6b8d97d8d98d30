"""What was trained on what, what was left out, and how to run it again."""

import html
import shlex
from collections import Counter
from pathlib import Path

from keras_transfer.reporting import page
from keras_transfer.runs import CONFIG, Run
from keras_transfer.utils.tables import printable

_MOST_SKIPPED = 100
_MOST_NAMES = 12

STYLE = """
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.2rem; margin: .5rem 0 }
dt { color: var(--soft) } dd { margin: 0 }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: 1rem 0 }
a { color: inherit } nav a { display: inline-block; padding: .2rem 0 }
summary { cursor: pointer; padding: .4rem 0 } .drawing { max-width: 52rem }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr } dd { margin-bottom: .4rem } }
"""


def title(run: Run) -> str:
    """Plain text."""
    return f"{run.config.get('backbone', 'A model')} on {data_name(run)}"


def data_name(run: Run) -> str:
    """What the images are called, in a word."""
    config = run.config
    data = config.get("data") or config.get("source")  # of an adaptation
    return printable(Path(data).name or data) if data else "images in memory"


def facts(run: Run, model) -> str:
    """HTML: names and values of what was trained on what.

    Args:
        model: of the run.
    """
    config, metrics = run.config, run.metrics
    parts = metrics["images"]
    left_out = f"; {metrics['skipped']} files left out" if metrics["skipped"] else ""
    chosen = " (the advisor's choice)" if config.get("advice") else ""
    settings = {
        "Backbone": f"{config.get('backbone', model.name)}, {model.count_params():,} weights with its head",
        "Started from": config.get("weights", "weights of the given model"),
        "Data": config.get("data", "given in Python"),
        "Images": ", ".join(f"{n:,} {part}" for part, n in parts.items()) + left_out,
        "Asked for": "; ".join(_asked(config)),
        "Strategy": f"{config['schedule']['name']}{chosen}",
        "Steps": f"{config['batch_size']} images of {config['image_size']} px, "
        f"{config['precision']}, seed {config['seed']}",
        "Variation": _augmentation(config),
        "Kept": f"epoch {metrics['best_epoch']} of {_epochs(metrics)} ({config['keep']}); "
        f"{metrics['wall_seconds']:.0f} s of training",
    }
    if "stopped" in metrics:
        settings["Stopped"] = metrics["stopped"]
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(printable(str(value)))}</dd>"
        for name, value in settings.items()
    )
    return f"<dl>{rows}</dl>"


def _epochs(metrics):
    return sum(phase["epochs"] for phase in metrics["phases"])


def _asked(config):
    heads = config["heads"] if "heads" in config else {"": config["head"]}
    words = {"single_label": "classes", "multi_label": "labels", "regression": "numbers"}
    for name, head in heads.items():
        names = [printable(n) for n in head["names"]]
        shown = ", ".join(names[:_MOST_NAMES]) + ", …" * (len(names) > _MOST_NAMES)
        yield f"{name}{': ' * bool(name)}{len(names)} {words[head['task']]} ({shown})"


def _augmentation(config):
    augment = config["augment"]
    if isinstance(augment, dict):
        used = [f"{k} {v:.3g}" for k, v in augment.items() if v and not isinstance(v, (bool, dict))]
        named = [k for k, v in augment.items() if v is True]
        augment = ", ".join([*named, *used]) or "none"
    mix = config.get("mix", "none")
    return f"{augment}" + (f", {mix}" if mix != "none" else "")


def numbers(run: Run, document: dict | None) -> str:
    """HTML: the few numbers that count most, side by side."""
    metrics = run.metrics
    found: dict[str, str] = {}
    if document is not None:
        where = {"val": "validation", "all": "images"}.get(document["split"], document["split"])
        for name, head in document["heads"].items():
            found |= dict(_headline(head, where, f"{name}: " if len(document["heads"]) > 1 else ""))
    elif metrics["val"]:
        val = metrics["val"]
        for key in ("accuracy", "map", "mae", "loss"):
            if key in val and val[key] is not None:
                found[f"{key}, validation"] = f"{val[key]:.4g}"
    found["training"] = f"{metrics['wall_seconds']:.0f} s"
    return page.numbers(found)


def _headline(head, where, of):
    if head["task"] == "single_label":
        yield f"{of}accuracy, {where}", f"{100 * head['accuracy']['value']:.1f} %"
        low, high = head["accuracy"]["low"], head["accuracy"]["high"]
        yield f"{of}its 95 % interval", f"{100 * low:.1f}–{100 * high:.1f} %"
        if head["top5"]:
            yield f"{of}top-5", f"{100 * head['top5']['value']:.1f} %"
        if head["f1_macro"]["value"] is not None:
            yield f"{of}F1, mean of the classes", f"{head['f1_macro']['value']:.3f}"
    elif head["task"] == "multi_label":
        if head["map"] is not None:
            yield f"{of}mean average precision, {where}", f"{head['map']:.3f}"
        yield f"{of}all labels right", f"{100 * head['exact']['value']:.1f} %"
    else:
        for name, row in list(head["per_target"].items())[:3]:
            yield f"{of}{printable(name)}: mean error, {where}", f"{row['mae']['value']:.4g}"


def skipped(run: Run) -> str:
    """HTML: files that were left out and why, empty without any."""
    found = run.skipped
    if not found:
        return ""
    reasons = Counter(reason.partition(":")[0] for _, reason in found).most_common(5)
    rows = [(printable(path), printable(reason)) for path, reason in found[:_MOST_SKIPPED]]
    more = len(found) - len(rows)
    note = page.paragraph(f"… and {more} more in skipped.csv", soft=True) if more else ""
    text = "They were not trained on: " + ", ".join(f"{printable(r)} {n}" for r, n in reasons) + "."
    return page.section(
        f"{len(found)} bad file{'s' * (len(found) > 1)} left out",
        page.paragraph(text),
        page.table(("file", "reason"), rows, "files that were left out"),
        note,
        name="files",
    )


def again(run: Run) -> str:
    """HTML: the command that trains the same once more, and what else can be done with the run."""
    config, path = run.config, str(run.path)
    text = f"It was trained from Python; {CONFIG} has all settings, its `schedule` for kt.Trainer."
    commands = []
    if data := config.get("data"):
        commands = [
            ["keras-transfer", "evaluate", path, data, "--split", "val"],
            ["keras-transfer", "export", path],
            ["keras-transfer", "report", path],
        ]
        others = "measure, export and write this page."
        if "backbone" in config:  # by which the command builds the model
            train = ["keras-transfer", "train", data, "--out", f"{path}-again"]
            commands.insert(0, [*train, "--config", str(run.path / CONFIG)])
            text = f"The first command trains the same once more; the others {others}"
        else:
            text = f"{text} These commands {others}"
    shown = "\n".join(printable(shlex.join(words)) for words in commands)
    code = page.code(shown) if shown else ""
    return page.section("Run it again", page.paragraph(text), code, name="again")
