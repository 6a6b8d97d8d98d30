"""The report of a run: measure it, and write all results as one HTML page."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_transfer.data.classes import in_recorded_order
from keras_transfer.data.examples import ImageData, targets_of
from keras_transfer.data.sources import open_data
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import Calibration
from keras_transfer.evaluation.result import format_value, summary_values
from keras_transfer.modalities import find_modality, framing_from
from keras_transfer.reporting import training_curves
from keras_transfer.reporting.gallery import Budget, Item, Shot, gallery_items
from keras_transfer.reporting.page import render, skipped_files
from keras_transfer.reporting.scores import head_scores
from keras_transfer.runs import CONFIG, RACE, Run
from keras_transfer.utils.console import counted, listed, printable, say
from keras_transfer.utils.documents import read_json
from keras_transfer.utils.files import write_text

IMAGES = 48
_MOST_NAMES = 12


def write_report(
    run: Run | str | Path,
    data: ImageData | None = None,
    *,
    split: str | None = None,
    images: int = IMAGES,
    out: str | Path | None = None,
    batch_size: int = 32,
) -> Path:
    """Measure a finished run and write its report, a self-contained HTML page.

    If the images are the run's own, the evaluation is saved in the run as `evaluation.json`.
    Probabilities are scaled by the run's calibration; without one, a temperature is fitted on the
    validation images. The report of an adaptation run shows its training and measures nothing.

    Args:
        run: a `Run` or its path.
        data: labeled images; by default the run's own, as recorded in `config.yaml`. If those are
            not available, the report has only what the run recorded.
        split: the split to measure; by default test, else val, else all images.
        images: number of mistakes shown with image and Grad-CAM; for the least confident
            predictions it is half. 0 shows no images. All thumbnails together stay below 3.2 MB;
            further ones are listed as text.
        out: the HTML file; `report.html` in the run by default.
        batch_size: images per batch.

    Returns:
        The file, which is written atomically.

    Raises:
        InputError: if the run is not finished, or the images do not match the model.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    check_run(run, data, split)
    if _is_adapted(run):
        from keras_transfer.reporting import adaptation

        return adaptation.write_report(run, out)
    if images < 0:
        raise InputError(f"images must be 0 or more, not {images}.")
    out = run.report_path if out is None else Path(out)
    own, note = data is None, None
    if own:
        data, note = _open_own_data(run, split)
    document, shots = None, {}
    if data is None:
        model = run.model
    else:
        split = _choose_split(data, split)
        model = run.model_for(split, data.examples[split])
        document = _measure(run, model, data, split, images, batch_size)
        shots = _shots(model, data.examples[split], document, images, batch_size)
        if own:
            try:
                run.write_evaluation(document)
            except InputError as error:  # the report of a read-only run may be written elsewhere
                say(f"the measurement is not saved in the run: {error}")
    write_text(out, render_report(run, model, document, shots, note))
    return out


def check_run(run: Run, data=None, split=None) -> None:
    """Check, without Keras, that `write_report` can report on a run.

    Raises:
        InputError: if data or a split is given for an adaptation run, whose report measures
            nothing, or the adaptation run is of version 0.1.
    """
    if not _is_adapted(run):
        return
    if data is not None or split is not None:
        raise InputError(
            f"{run.path} is an adaptation run: its report measures nothing, so it takes no data and "
            "no split. Use evaluate."
        )
    if not run.feature_maps_path.is_file():
        raise InputError(
            f"{run.path} has no {run.feature_maps_path.name}, because it was adapted by version 0.1. "
            f"Its report is {run.report_path}."
        )


def _is_adapted(run):
    return "method" in run.config


# -- the page -------------------------------------------------------------------------------------


def render_report(
    run: Run, model, document: dict | None, shots: dict, note: str | None = None
) -> str:
    """Return the page as text.

    Args:
        run: finished.
        model: of the run.
        document: of its evaluation; None without images.
        shots: name of a head → `mistakes` and `unsure` → path → pixels.
        note: why there is no evaluation.
    """
    from keras_transfer.schedules.phases import Schedule
    from keras_transfer.schedules.plans import make_plan

    config, metrics, history = run.config, run.metrics, run.history
    schedule = Schedule.from_dict(config["schedule"])
    plan = make_plan(model, schedule, metrics["images"]["train"], config["batch_size"])
    single_epoch = training_curves.single_epoch_table(history) if len(history) == 1 else None
    race = read_json(run.path / RACE, optional=True)
    heads, budget = document["heads"] if document else {}, Budget()
    return render(
        "run",
        script="sort.js",
        title=f"{config.get('backbone', 'A model')} on {data_name(run)}",
        measured_on=_measured_on(config, document, note),
        numbers=_key_numbers(metrics, document),
        facts=_facts(config, metrics, model),
        race=training_curves.race_figure(race) if race else None,
        phases=training_curves.phase_table(plan, metrics),
        rates=training_curves.rate_figure(plan),
        single_epoch=single_epoch,
        curves=[] if single_epoch else training_curves.curves(history, metrics["best_epoch"]),
        heads=[
            head_scores(name if len(heads) > 1 else "", head, shots.get(name, {}), budget)
            for name, head in heads.items()
        ],
        skipped=skipped_files(run.skipped),
        reproduce=_reproduce(run),
    )


def data_name(run: Run) -> str:
    """Return a short name of the run's data."""
    data = run.config.get("data") or run.config.get("source")  # an adaptation has a source
    return printable(Path(data).name or data) if data else "examples in memory"


def _measured_on(config, document, note):
    if document is None:
        return f"Measured on the run's own validation examples only. {note or ''}".strip()
    text = f"Measured on {counted(document['images'], 'example')} of {document['split']}"
    if document["skipped"]:
        text += f"; {document['skipped']} of the data's files cannot be read"
    text += "."
    if document["split"] == "val" and config["keep"] == "best":
        text += (
            " The epoch was selected on the same images, so expect slightly lower values on others."
        )
    calibrated = document["calibrated_on"]
    if calibrated:
        same = ", the same ones" if calibrated["split"] == document["split"] else ""
        text += (
            f" Temperature and thresholds were fitted on {calibrated['images']} examples of "
            f"{calibrated['split']}{same}."
        )
    return text


def _key_numbers(metrics, document):
    """Return (title, value, interval) of the most important metrics."""
    numbers = []
    if document is not None:
        where = {"val": "validation", "all": "all images"}.get(document["split"], document["split"])
        for name, head in document["heads"].items():
            of = f"{printable(name)}: " if len(document["heads"]) > 1 else ""
            for title, value in list(summary_values(head).items())[:3]:
                text, _, interval = format_value(value).partition(" ")
                numbers.append((f"{of}{printable(title)}, {where}", text, interval))
            numbers += _of_baseline(document, name, of)
    else:
        for key in ("accuracy", "map", "mae", "loss"):
            if (value := (metrics["val"] or {}).get(key)) is not None:
                numbers.append((f"{key}, validation", f"{value:.4g}", ""))
    return [*numbers, ("training time", f"{metrics['wall_seconds']:.0f} s", "")]


def _of_baseline(document, head, of):
    """Yield the number that the modality's simple model reaches on the same examples."""
    baseline = document.get("baseline")
    for title, value in baseline["heads"][head].items() if baseline else ():
        text, _, interval = format_value(value).partition(" ")
        yield f"{of}{printable(title)} of {baseline['name']}", text, interval


def _facts(config, metrics, model):
    from keras_transfer.models.framing import framing_of

    skipped = f"; {metrics['skipped']} files skipped" if metrics["skipped"] else ""
    chosen = " (chosen by the advisor)" if config.get("advice") else ""
    epochs = sum(phase["epochs"] for phase in metrics["phases"])
    framing = framing_from(config).at(config["image_size"])
    framing = framing if framing.settled else framing_of(model)  # with its tokenizer
    many = find_modality(framing.modality).many
    facts = {
        "Backbone": f"{config.get('backbone', model.name)}; {model.count_params():,} weights "
        "including the head",
        "Initial weights": config.get("weights", "those of the given model"),
        "Data": config.get("data", "passed from Python"),
        many.capitalize(): ", ".join(f"{n:,} {split}" for split, n in metrics["images"].items())
        + skipped,
        "Task": "; ".join(_tasks(config)),
        "Strategy": f"{config['schedule']['name']}{chosen}",
        "Batches": f"{config['batch_size']} {many} of {framing.extent} ({framing}), "
        f"{config['precision']}, seed {config['seed']}",
        "Augmentation": _augmentation(config),
        "Selected epoch": f"{metrics['best_epoch']} of {epochs} ({config['keep']})",
    }
    if again := metrics.get("refit"):
        facts["Refit"] = (
            f"trained again on all {again['examples']:,} {many}, {counted(again['epochs'], 'epoch')} in "
            f"{again['wall_seconds']:.0f} s; validation is measured with the model before it"
        )
    if "stopped" in metrics:
        facts["Stopped"] = metrics["stopped"]
    return facts


def _tasks(config):
    heads = config["heads"] if "heads" in config else {"": config["head"]}
    words = {"single_label": "classes", "multi_label": "labels", "regression": "numbers"}
    for name, head in heads.items():
        names = listed(head["names"], _MOST_NAMES)
        of = f"{name}: " if name else ""
        yield f"{of}{len(head['names'])} {words[head['task']]} ({names})"


def _augmentation(config):
    augment, mix = config["augment"], config.get("mix", "none")
    if isinstance(augment, dict) and "transform" in augment:
        names = [
            inner["__class_fullname__"] for inner in augment["transform"].get("transforms", ())
        ]
        augment = f"albumentations: {', '.join(names) or 'none'}"
    elif isinstance(augment, dict) and "class_name" in augment:
        augment = f"Keras layer {augment['class_name']}"
    elif isinstance(augment, dict):
        used = [f"{k} {v:.3g}" for k, v in augment.items() if v and not isinstance(v, (bool, dict))]
        flags = [k for k, v in augment.items() if v is True]
        augment = ", ".join([*flags, *used]) or "none"
    return augment if mix == "none" else f"{augment}, {mix}"


def _reproduce(run):
    """Return `text` and `commands`: training again, and what else can be done with the run."""
    config, path = run.config, str(run.path)
    text = f"The run was trained from Python; {CONFIG} has all settings, with its schedule."
    data = config.get("data")
    if not data:
        return {"text": text, "commands": []}
    commands = [
        ["keras-transfer", "evaluate", path, data, "--split", "val"],
        ["keras-transfer", "export", path],
        ["keras-transfer", "report", path],
    ]
    others = "measure the run, export it and write this report."
    if "backbone" in config:  # the command needs it to build the model
        train = ["keras-transfer", "train", data, "--out", f"{path}-again"]
        commands.insert(0, [*train, "--config", str(run.path / CONFIG)])
        text = f"The first command repeats the training; the others {others}"
    else:
        text += f" These commands {others}"
    return {"text": text, "commands": [shlex.join(words) for words in commands]}


# -- measuring ------------------------------------------------------------------------------------


def _open_own_data(run, split):
    """Return (the run's own data, None), or (None, why it is not available)."""
    config = run.config
    if "data" not in config:
        return None, "The run was trained from Python: pass its images to see the mistakes."
    names = {"val": "val", "val_split": "val_split", "test_split": "test_split", "group": "groups"}
    options = {given: config[name] for name, given in names.items() if config.get(name) is not None}
    options["split_file"] = run.split_path if run.split_path.is_file() else config.get("split")
    try:
        data = open_data(
            config["data"],
            task=config.get("task") or "single_label",
            columns=config.get("columns"),
            seed=config["seed"],
            use_list=config.get("use_list"),
            **options,
        )
        data = in_recorded_order(data, targets_of(config))
        run.require_own_images(data)
    except InputError as error:
        if split is not None:
            raise
        print(f"The report has no images: {error}", file=sys.stderr)
        return None, f"Its images cannot be opened: {error}"
    if split is None and not data.examples.keys() - {"train"}:
        return None, "All of its images were used for training, so none are left for measuring."
    return data, None


def _choose_split(data, split):
    if split is None:
        return next(
            name for name in ("test", "val", "all", *data.examples) if name in data.examples
        )
    data.require(split)
    return split


def _measure(run, model, data, split, images, batch_size):
    from keras_transfer.evaluation.api import assess
    from keras_transfer.evaluation.baseline import measure_baseline
    from keras_transfer.evaluation.calibration import calibrate
    from keras_transfer.evaluation.outputs import PROBABILITIES
    from keras_transfer.models.builders import check_targets, heads_of

    heads = heads_of(model)
    data = check_targets(heads, data)
    calibration = Calibration.from_dict(run.calibration) if run.calibration else None
    if calibration is not None and calibration.tta is not None:  # the report uses no views
        calibration = None
    scalable = any(head.task in PROBABILITIES for head in heads.values())
    if calibration is None and scalable and "val" in data.examples:
        apart = split != "val" and run.validated_path.is_file()
        validated = run.model_for("val") if apart else model
        calibration = calibrate(validated, data, "val", batch_size=batch_size)
    most = max(images, IMAGES)
    evaluation = assess(
        model, data, split, calibration=calibration, most=most, batch_size=batch_size
    )
    document = evaluation.to_dict()
    if (baseline := measure_baseline(data, split)) is not None:
        document["baseline"] = baseline
    return document


def _shots(model, examples, document, images, batch_size):
    """Return the pixels and Grad-CAM maps of the images in the galleries of each head."""
    rows = {path: i for i, path in enumerate(examples.names)}
    shots: dict = {}
    for name, head in document["heads"].items():
        shots[name] = {}
        for kind, most in (("mistakes", images), ("unsure", -(-images // 2))):
            items = gallery_items(head, kind)[:most]
            if items:
                part = examples.take(np.array([rows[item.path] for item in items]))
                shots[name][kind] = _shots_of(model, part, items, name, batch_size)
    return shots


def _shots_of(model, examples, items: Sequence[Item], head, batch_size):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.evaluation.gradcam import grad_cam
    from keras_transfer.evaluation.occlusion import occlude
    from keras_transfer.models.framing import framing_of

    occluded = occlude(model, examples, head=head, batch_size=batch_size)
    if occluded is not None:
        return {
            item.path: Shot(
                None,
                {kind: parts.weights(output) for kind, output in item.outputs.items()},
                parts=parts.parts,
            )
            for item, parts in zip(items, occluded)
        }
    batches = pipeline.batches(examples, image_size=framing_of(model), batch_size=batch_size)
    pixels = np.concatenate([np.asarray(inputs) for inputs, _ in batches])
    heats: list[dict] = [{} for _ in items]
    for kind in ("prediction", "truth"):
        chosen = [i for i, item in enumerate(items) if kind in item.outputs]
        if chosen:
            outputs = [items[i].outputs[kind] for i in chosen]
            maps = grad_cam(model, pixels[chosen], outputs, head=head, batch_size=batch_size)
            for i, heat in zip(chosen, maps):
                heats[i][kind] = heat
    media = [examples.images.media(i) for i in range(len(items))]
    return {item.path: Shot(*parts) for item, *parts in zip(items, pixels, heats, media)}
