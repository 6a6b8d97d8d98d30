"""Measures a run and writes its page."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import ImageData
from keras_transfer.data.sources import open_data
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import Calibration
from keras_transfer.reporting import confusion, gallery, page, scores, sorting, summary
from keras_transfer.reporting import training_curves as course
from keras_transfer.reporting.gallery import Item, Shot, items_of
from keras_transfer.runs import Run
from keras_transfer.utils.files import write_text

IMAGES = 48
STYLE = "".join(part.STYLE for part in (sorting, confusion, gallery, summary))
SCRIPT = "".join(part.SCRIPT for part in (sorting, confusion, gallery))


def write_report(
    run: Run | str | Path,
    data: ImageData | None = None,
    *,
    split: str | None = None,
    images: int = IMAGES,
    out: str | Path | None = None,
    batch_size: int = 32,
) -> Path:
    """Measures a finished run and writes all that is to be known of it as one page of HTML.

    What was measured is kept in the run as `evaluation.json` where the images are the run's own.
    Probabilities are those after the run's calibration; without one a temperature is fitted on the
    validation images for this page.

    Args:
        run: a `Run` or its path.
        data: labelled images; by default what the run was trained on, as `config.yaml` says it.
            Where those are gone, the page has what the run itself knows.
        split: which of them are measured; by default test, else validation, else all there are.
        images: of how many mistakes the image is shown, with Grad-CAM; of the least sure ones
            half as many. All thumbnails together stay below 3.2 MB, further ones are listed in words.
            0 shows none.
        out: the file; by default `report.html` in the run.
        batch_size: images that are computed at a time.

    Returns:
        The file, which appears whole or not at all.

    Raises:
        InputError: not a finished run of `train`, or other images than the model's.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_run(run, data, split)
    if adapted(run):
        from keras_transfer.reporting import adaptation

        return adaptation.write_report(run, out)
    if images < 0:
        raise InputError(f"images must be 0 or more, not {images}.")
    out = run.report_path if out is None else Path(out)
    own, note = data is None, None
    if own:
        data, note = _own_images(run, split)
    model = run.model
    document = shots = None
    if data is not None:
        split = _split(data, split)
        document = _measured(run, model, data, split, images, batch_size)
        shots = _shots(model, data.examples[split], document, images, batch_size)
        if own:
            run.write_evaluation(document)
    write_text(out, made(run, model, document, shots or {}, note))
    return out


def adapted(run: Run) -> bool:
    """Return True for a run of `adapt`, which has a report of its own kind."""
    return "method" in run.config


def check_run(run: Run, data=None, split=None) -> None:
    """Check, without Keras, that `write_report` can take a run.

    Raises:
        InputError: data or a split for an adaptation run, whose report measures nothing, or an
            adaptation run of version 0.1.
    """
    if not adapted(run):
        return
    if data is not None or split is not None:
        raise InputError(
            f"{run.path} is an adaptation run: its report measures nothing, so it takes no data and "
            "no split. Use evaluate."
        )
    if not run.feature_maps_path.is_file():
        raise InputError(
            f"{run.path} has no {run.feature_maps_path.name}: version 0.1 adapted it, and wrote its "
            f"report, {run.report_path}."
        )


def made(run: Run, model, document: dict | None, shots: dict, note: str | None = None) -> str:
    """The page as text.

    Args:
        run: finished.
        model: of the run.
        document: of its evaluation; None without images.
        shots: name of a head → `mistakes` and `unsure` → path → pixels.
        note: what is missing and why, plain text.
    """
    from keras_transfer.schedules.phases import Schedule
    from keras_transfer.schedules.plans import make_plan

    config, metrics, history = run.config, run.metrics, run.history
    schedule = Schedule.from_dict(config["schedule"])
    plan = make_plan(model, schedule, metrics["images"]["train"], config["batch_size"])
    parts, room = [], gallery.MOST_BYTES
    heads = document["heads"] if document else {}
    for number, (name, head) in enumerate(heads.items(), 1):
        title = name if len(heads) > 1 else ""
        part, room = scores.scores(title, head, number, shots.get(name, {}), room)
        parts.append(part)
    links = {"trained": "Trained on", "course": "Course", "measures-1": "How good"}
    links |= {"mistakes-1": "Mistakes", "unsure-1": "Least sure", "files": "Bad files"}
    links["again"] = "Run it again"
    body = [
        page.section("What was trained on what", summary.facts(run, model), name="trained"),
        page.section(
            "Course of the training",
            *course.schedule(plan, metrics),
            course.curves(history, metrics["best_epoch"]),
            name="course",
        ),
        *parts,
        summary.skipped(run),
        summary.again(run),
    ]
    links = {at: words for at, words in links.items() if any(f' id="{at}"' in b for b in body)}
    listed = "".join(f'<li><a href="#{at}">{words}</a></li>' for at, words in links.items())
    return page.page(
        summary.title(run),
        page.paragraph(_measured_on(run, document, note)),
        summary.numbers(run, document),
        f'<nav aria-label="Contents"><ul>{listed}</ul></nav>',
        *body,
        style=STYLE,
        script=SCRIPT,
    )


def _measured_on(run, document, note):
    if document is None:
        return f"Measured on the run's own validation images only. {note or ''}".strip()
    text = f"Measured on {document['images']} images of {document['split']}"
    if document["skipped"]:
        text += f" ({document['skipped']} files of the data cannot be read)"
    if document["split"] == "val" and run.config["keep"] == "best":
        text += ", by which the kept epoch was chosen too: on others expect a little less"
    calibrated = document["calibrated_on"]
    if calibrated:
        same = ", the same ones" if calibrated["split"] == document["split"] else ""
        text += f". Temperature and thresholds from {calibrated['images']} images of {calibrated['split']}{same}"
    return text + "."


def _own_images(run, split):
    """(what the run was trained on, None), or (None, why it cannot be had)."""
    config = run.config
    if "data" not in config:
        return None, "It was trained from Python: give the images to see its mistakes."
    names = {"val": "val", "val_split": "val_split", "test_split": "test_split", "group": "groups"}
    options = {given: config[name] for name, given in names.items() if config.get(name) is not None}
    options["split_file"] = run.split_path if run.split_path.is_file() else config.get("split")
    try:
        data = open_data(
            config["data"],
            task=config.get("task") or "single_label",
            columns=config.get("columns"),
            seed=config["seed"],
            **options,
        )
    except InputError as error:
        if split is not None:  # it was asked for
            raise
        print(f"the report goes without images: {error}", file=sys.stderr)
        return None, f"Its images cannot be opened any more: {error}"
    if split is None and not data.examples.keys() - {"train"}:
        return None, "All its images were trained on: none are left to measure it on."
    return data, None


def _split(data, split):
    if split is None:
        return next(
            name for name in ("test", "val", "all", *data.examples) if name in data.examples
        )
    if split not in data.examples:
        raise InputError(f"{data.root} has no {split} images; it has {', '.join(data.examples)}.")
    return split


def _measured(run, model, data, split, images, batch_size):
    from keras_transfer.evaluation.api import assess
    from keras_transfer.evaluation.calibration import calibrate
    from keras_transfer.evaluation.outputs import PROBABILITIES
    from keras_transfer.models.builders import check_targets, heads_of

    heads = heads_of(model)
    check_targets(heads, data)
    calibration = Calibration.from_dict(run.calibration) if run.calibration else None
    if calibration is not None and calibration.tta is not None:  # for views that are not used here
        calibration = None
    fits = any(head.task in PROBABILITIES for head in heads.values())
    if calibration is None and fits and "val" in data.examples:
        calibration = calibrate(model, data, "val", batch_size=batch_size)
    most = max(images, IMAGES)
    found = assess(model, data, split, calibration=calibration, most=most, batch_size=batch_size)
    return found.to_dict()


def _shots(model, examples, document, images, batch_size):
    """The pixels of what is shown of each head, and what speaks for its answers."""
    rows = {path: i for i, path in enumerate(examples.names)}
    found = {}
    for name, head in document["heads"].items():
        found[name] = {}
        for kind, most in (("mistakes", images), ("unsure", -(-images // 2))):
            items = items_of(head, kind)[:most]
            if items:
                found[name][kind] = _with_heat(model, examples, rows, items, name, batch_size)
    return found


def _with_heat(model, examples, rows, items: Sequence[Item], head, batch_size):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.evaluation.gradcam import grad_cam
    from keras_transfer.models.builders import heads_of

    part = examples.take(np.array([rows[item.path] for item in items]))
    size = model.input_shape[1]
    batches = pipeline.batches(part, image_size=size, batch_size=batch_size)
    pixels = np.concatenate([np.asarray(inputs) for inputs, _ in batches])
    heats: list[dict] = [{} for _ in items]
    for kind in ("answer", "truth"):
        chosen = [i for i, item in enumerate(items) if kind in item.heats]
        if not chosen:
            continue
        outputs = [items[i].heats[kind] for i in chosen]
        options = {"head": head if len(heads_of(model)) > 1 else None, "batch_size": batch_size}
        for i, heat in zip(chosen, grad_cam(model, pixels[chosen], outputs, **options)):
            heats[i][kind] = heat
    return {item.path: Shot(p, h) for item, p, h in zip(items, pixels, heats)}
