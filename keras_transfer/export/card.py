"""The model card: what those who get an export want to know of it, from the run."""

import importlib.metadata
from collections import Counter
from pathlib import Path

import keras

from keras_transfer.evaluation.result import markdown
from keras_transfer.modalities.image.prepare import EVAL_CROP
from keras_transfer.models.builders import heads_of
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.stages import backbone_of
from keras_transfer.runs import read_split
from keras_transfer.utils.files import write_text
from keras_transfer.utils.statistics import wilson_interval
from keras_transfer.utils.tables import printable

CARD = "README.md"
_NAMES = 50  # classes that are written out

_APACHE, _MIT, _BSD = "Apache License 2.0", "MIT License", "BSD License"
# Module of keras.applications -> under which licence the weights were released, and by whom: what
# Keras's own documentation (keras.io/applications, of Keras 2) says of each family.
_LICENCES = {
    "vgg16": ("Creative Commons Attribution 4.0", "VGG, University of Oxford"),
    "vgg19": ("Creative Commons Attribution 4.0", "VGG, University of Oxford"),
    "resnet": (_MIT, "KaimingHe/deep-residual-networks"),
    "resnet_v2": (_BSD, "facebook/fb.resnet.torch"),
    "xception": (_MIT, "Keras"),
    "inception_v3": (_APACHE, "tensorflow/models"),
    "inception_resnet_v2": (_APACHE, "tensorflow/models"),
    "mobilenet": (_APACHE, "tensorflow/models"),
    "mobilenet_v2": (_APACHE, "tensorflow/models"),
    "nasnet": (_APACHE, "tensorflow/models"),
    "densenet": ("BSD 3-Clause License", "liuzhuang13/DenseNet"),
}
# Of later families Keras says nothing: the licence of the repository that they were ported from, which
# may or may not be that of the weights (of EfficientNet's it was asked in tensorflow/models, issue
# 13579, which has no answer).
_UNCONFIRMED = {
    "mobilenet_v3": (_APACHE, "tensorflow/models"),
    "efficientnet": (_APACHE, "tensorflow/tpu"),
    "efficientnet_v2": (_APACHE, "google/automl"),
    "convnext": (_MIT, "facebookresearch/ConvNeXt"),
}


def write_card(folder: Path, run, model: keras.Model, exported, temperatures) -> None:
    """Writes `README.md`, Markdown, into the folder of an export.

    Args:
        run: the `Run` that it comes from.
        exported: its `Exported`.
        temperatures: what was put into it.
    """
    config, metrics = run.config, run.metrics
    sections = (
        _title(config, model, exported),
        "## What it answers\n\n" + _answers(model),
        "## How to ask it\n\n" + _asking(model, exported),
        "## Data\n\n" + _data(run, config, metrics),
        "## Training\n\n" + _training(config, metrics, model),
        "## How good it is\n\n" + _quality(run, metrics, temperatures),
        "## Is it the model that was trained?\n\n" + _parity(exported),
        "## Limits\n\n" + _limits(model, metrics),
        "## Licence\n\n" + _licence(config, model),
    )
    write_text(folder / CARD, "\n\n".join(sections) + "\n")


def _title(config, model, exported):
    backbone = _backbone(config, model)
    form = f"{exported.format}{', int8' if exported.int8 else ''}"
    return (
        f"# {printable(backbone)} for {_source(config)}\n\n"
        f"{form}, {exported.bytes / 1e6:.1f} MB, "
        f"exported by keras_transfer {importlib.metadata.version('keras_transfer')} with Keras "
        f"{keras.__version__}."
    )


def _backbone(config, model):
    return Path(str(config.get("backbone") or backbone_of(model).name)).name


def _source(config):
    """The last part of where the data lay: the rest is nobody else's business."""
    source = config.get("data") or config.get("target")
    return printable(Path(str(source)).name) if source else "images"


def _answers(model):
    kinds = {
        "single_label": "one class per image, of",
        "multi_label": "any number of labels per image, of",
        "regression": "numbers:",
    }
    lines = []
    for name, head in heads_of(model).items():
        shown = ", ".join(f"`{printable(one)}`" for one in head.names[:_NAMES])
        rest = f" and {len(head.names) - _NAMES} more" if len(head.names) > _NAMES else ""
        lines.append(f"- {name}: {kinds[head.task]} {shown}{rest}")
    return "\n".join(lines)


def _asking(model, exported):
    size = model.input_shape[1]
    if exported.format == "saved_model":
        return (
            "TF Serving serves the folder above this one, whose versions are numbers. Signature\n"
            "`serve_bytes` takes encoded images, turned as their EXIF says, and gives `label`,\n"
            "`score`, `scores`, `class_names` (as the task has them) and `error`: empty, or why a\n"
            "image was not answered. `features` gives what the backbone sees.\n\n"
            "```bash\n"
            'curl -d \'{"signature_name": "serve_bytes", "instances": [{"b64": "\'$(base64 -w0 '
            "image.jpg)'\"}]}' \\\n    http://localhost:8501/v1/models/NAME:predict\n```"
        )
    one = "one at a time, [1" if exported.format == "litert" else "[N"
    return (
        f"Input `images`: uint8 {one}, {size}, {size}, 3], RGB. Outputs: `scores` (of several\n"
        "heads `scores_NAME`), in the order of `labels.txt`. Images are turned as their EXIF says,\n"
        "and the central square is cut out and scaled in one step, as in training:\n\n"
        "```python\n"
        "from PIL import Image, ImageOps\n\n"
        'image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")\n'
        f"side = min(image.size) * {size} / {round(size / EVAL_CROP)}\n"
        "left, top = ((edge - side) / 2 for edge in image.size)\n"
        "box = (left, top, left + side, top + side)\n"
        f"image = image.resize(({size}, {size}), Image.Resampling.BILINEAR, box=box)\n"
        "```"
    )


def _data(run, config, metrics):
    images = metrics.get("images", {})
    shown = ", ".join(f"{count} {split}" for split, count in images.items())
    lines = [
        f"`{_source(config)}`: {shown or 'unknown'} images; {metrics.get('skipped', 0)} files "
        "were left out as faulty."
    ]
    labels = Counter(row["label"] for row in read_split(run.split_path) if row["split"] == "train")
    if 1 < len(labels) <= _NAMES:
        counts = ", ".join(f"{printable(name)} {count}" for name, count in sorted(labels.items()))
        lines.append(f"Trained on: {counts}.")
    return "\n\n".join(lines)


def _training(config, metrics, model):
    rows = {
        "backbone": f"`{printable(_backbone(config, model))}`",
        "weights before training": config.get("weights"),
        "strategy": config.get("strategy"),
        "image size": f"{model.input_shape[1]} px",
        "precision": config.get("precision"),
        "seed": config.get("seed"),
        "epoch kept": metrics.get("best_epoch"),
    }
    return "\n".join(
        f"- {name}: {printable(Path(str(value)).name)}"
        for name, value in rows.items()
        if value is not None
    )


def _quality(run, metrics, temperatures):
    val, count = metrics.get("val", {}), metrics.get("images", {}).get("val")
    shown = ", ".join(
        f"{name} {value:.4f}"
        for name, value in val.items()
        if isinstance(value, float) and not name.startswith("images")
    )
    lines = [f"On the validation images: {shown or 'not measured'}."]
    if "accuracy" in val and count:
        low, high = wilson_interval(round(val["accuracy"] * count), count)
        lines[0] += f" 95 % interval of the accuracy {low:.3f}–{high:.3f} ({count} images)."
    if temperatures:
        each = ", ".join(f"{name} {value:.4f}" for name, value in temperatures.items())
        lines.append(f"Scores are calibrated; temperature: {each}.")
    else:
        lines.append("Scores are not calibrated: 0.9 need not be right in nine of ten images.")
    found = run.evaluation
    if found is not None:
        lines.append("### Evaluation\n\n" + markdown(found))
    return "\n\n".join(lines)


def _parity(exported):
    if exported.parity is None:
        return "It was compared with the Keras model on a few made-up images: equal to rounding."
    return f"Compared with the Keras model: {exported.parity.text()}."


def _limits(model, metrics):
    answers = {
        "single_label": "It always names one of its classes, also for an image of something else.",
        "multi_label": "It knows no other labels than its own.",
        "regression": "Outside of the range it was trained on its numbers mean nothing.",
    }
    lines = [answers[task] for task in sorted({head.task for head in heads_of(model).values()})]
    lines += [
        "It was measured on images from where its training images come from; other cameras, "
        "places, times or people may give other numbers: measure on yours.",
        f"Images are scaled to {model.input_shape[1]} px and lose their edges to a central square: "
        "what is small or at the rim may go unseen.",
    ]
    count = metrics.get("images", {}).get("val")
    if count and count < 1000:
        lines.append(f"{count} images measure it no more finely than the interval above says.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(config, model):
    weights, name = config.get("weights"), config.get("backbone") or backbone_of(model).name
    if weights == "none":
        return "No pretrained weights went into it. Your own images have their own terms."
    module = BACKBONES[name].module if name in BACKBONES else None
    if weights not in ("imagenet", None) or module not in _LICENCES | _UNCONFIRMED:
        return (
            "It began with weights that keras_transfer does not know: ask those who made them for "
            "their terms."
        )
    said = "" if weights else " if it began with those of Keras"
    if module in _LICENCES:
        licence, by = _LICENCES[module]
        terms = f"The ImageNet weights that it began with were released under the {licence} ({by}){said}."
    else:
        licence, by = _UNCONFIRMED[module]
        terms = (
            f"The ImageNet weights that it began with were ported from {by}{said}, a repository under "
            f"the {licence}. It is not confirmed that the weights are under it too: Keras says "
            "nothing of it. Ask there before you pass them on."
        )
    return (
        f"{terms} ImageNet's\nimages are for non-commercial research and teaching; whether that "
        "bears on weights is for your\nlawyers to say. Your own images have their own terms."
    )
