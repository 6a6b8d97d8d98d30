"""Write the model card: what the users of an exported model need to know about it."""

import importlib.metadata
from collections import Counter
from pathlib import Path

import keras

from keras_transfer.evaluation.result import markdown
from keras_transfer.export.hub import PREVIEW, front_matter
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import printable
from keras_transfer.utils.documents import read_rows
from keras_transfer.utils.files import write_text
from keras_transfer.utils.statistics import wilson_interval

CARD = "README.md"
_LISTED_NAMES = 50  # classes that are written out

_APACHE, _MIT, _BSD = "Apache License 2.0", "MIT License", "BSD License"
# Module of keras.applications → license of the weights and their publisher, as stated for each family
# by the documentation of Keras (keras.io/applications, of Keras 2).
_LICENSES = {
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
# Keras does not state the license of later families. This is the license of the repository that they
# were ported from, which may or may not cover the weights (for EfficientNet, the question in
# tensorflow/models, issue 13579, is unanswered).
_UNCONFIRMED = {
    "mobilenet_v3": (_APACHE, "tensorflow/models"),
    "efficientnet": (_APACHE, "tensorflow/tpu"),
    "efficientnet_v2": (_APACHE, "google/automl"),
    "convnext": (_MIT, "facebookresearch/ConvNeXt"),
}


def write_card(folder: Path, run, model: keras.Model, exported, temperatures) -> None:
    """Write `README.md`, in Markdown, into the folder of an export.

    Args:
        run: the exported `Run`.
        exported: its `Exported`.
        temperatures: head name → temperature that the export includes.
    """
    config, metrics = run.config, run.metrics
    sections = (
        _title(config, model, exported),
        "## Outputs\n\n" + _outputs(model),
        "## Usage\n\n" + _usage(model, exported, (folder / PREVIEW).exists()),
        "## Data\n\n" + _data(run, config, metrics, modality_of(model).many),
        "## Training\n\n" + _training(config, metrics, model),
        "## Quality\n\n" + _quality(run, metrics, temperatures, modality_of(model).many),
        "## Comparison with the Keras model\n\n" + _parity(exported, modality_of(model).many),
        "## Limits\n\n" + _limits(model, metrics),
        "## License\n\n" + _license(config, model),
    )
    top = front_matter(run, model) if exported.format == "hub" else ""
    write_text(folder / CARD, top + "\n\n".join(sections) + "\n")


def _title(config, model, exported):
    form = f"{exported.format}{', int8' if exported.int8 else ''}"
    return (
        f"# {printable(_backbone(config, model))} for {_source(config, modality_of(model).many)}\n\n"
        f"{form}, {exported.bytes / 1e6:.1f} MB, exported by keras_transfer "
        f"{importlib.metadata.version('keras_transfer')} with Keras {keras.__version__}."
    )


def _backbone(config, model):
    return Path(str(config.get("backbone") or backbone_of(model).name)).name


def _source(config, many):
    """Return the last part of the data's path; the rest may be confidential."""
    source = config.get("data") or config.get("target")
    return printable(Path(str(source)).name) if source else many


def _outputs(model):
    kinds = {
        "single_label": "one class per example, of",
        "multi_label": "any number of labels per example, of",
        "regression": "numbers:",
    }
    lines = []
    for name, head in heads_of(model).items():
        names = ", ".join(f"`{printable(one)}`" for one in head.names[:_LISTED_NAMES])
        more = len(head.names) - _LISTED_NAMES
        rest = f" and {more} more" if more > 0 else ""
        lines.append(f"- {name}: {kinds[head.task]} {names}{rest}")
    return "\n".join(lines)


def _usage(model, exported, shown):
    modality, framing = modality_of(model), framing_of(model)
    framing = modality.framing_for(framing, None)
    if exported.format == "saved_model":
        return (
            "Give TF Serving the parent folder, which contains the numbered versions. The signature\n"
            f"`serve_bytes` takes {modality.served} and returns\n"
            "`label`, `score`, `scores` and `class_names`, as far as the task has them, and `error`:\n"
            "empty, or why an example was not processed. `typicality` (-1 to 1) and `is_typical`, if the\n"
            "export has them, say whether an example is like those of the training. `features` returns the backbone's features.\n"
            f"{modality.served_decoded}\n\n"
            "```bash\n"
            'curl -d \'{"signature_name": "serve_bytes", "instances": [{"b64": "\'$(base64 -w0 '
            f"{modality.file_example})'"
            "\"}]}' \\\n    http://localhost:8501/v1/models/NAME:predict\n```"
        )
    if exported.format == "hub":
        preview = f" ![examples with the model's answers]({PREVIEW})" * shown
        return (
            "```python\nimport keras_transfer as kt\n\n"
            'model = kt.load_model("hf://USER/NAME")  # a keras.Model; the folder\'s path works, too\n'
            f'predictions, skipped = kt.evaluation.predict(model, ["{modality.file_example}"])\n```\n\n'
            f"The model is `model.keras`.{preview}"
        )
    if exported.format == "page":
        return (
            "Put this folder on any file server and open it in a browser; to try it here:\n\n"
            "```bash\npython -m http.server --directory FOLDER\n```\n\n"
            "The model runs in the browser, by ONNX Runtime (MIT License, Microsoft). Camera and\n"
            "microphone need an https address, or localhost."
        )
    count = "1" if exported.format == "litert" else "N"
    script = _IN_JAVASCRIPT if exported.format == "tfjs" else ""
    return (
        f"{modality.describe_input(framing, count)} Outputs: `scores` (`scores_NAME`\n"
        "for each of several heads), in the order of `labels.txt`. "
        f"{modality.describe_preparation(framing)}{script}"
    )


_IN_JAVASCRIPT = """

In TensorFlow.js, which has no uint8 (images are int32 there):

```js
const model = await tf.loadGraphModel("model.json"); // the npm package @tensorflow/tfjs
const outputs = await model.predictAsync(inputs); // by name
```"""


def _data(run, config, metrics, many):
    counts = metrics.get("images", {})
    images = ", ".join(f"{count} {split}" for split, count in counts.items()) or "unknown"
    skipped = metrics.get("skipped", 0)
    lines = [f"`{_source(config, many)}`: {images} {many}; {skipped} faulty files were skipped."]
    labels = Counter(row["label"] for row in read_rows(run.split_path) if row["split"] == "train")
    if 1 < len(labels) <= _LISTED_NAMES:
        names = ", ".join(f"{printable(name)} {count}" for name, count in sorted(labels.items()))
        lines.append(f"Training {many} per class: {names}.")
    return "\n\n".join(lines)


def _training(config, metrics, model):
    framing = modality_of(model).framing_for(framing_of(model), None)
    rows = {
        "backbone": f"`{printable(_backbone(config, model))}`",
        "initial weights": config.get("weights"),
        "strategy": config.get("strategy"),
        "size of the input": framing.extent,
        "input": str(framing),
        "precision": config.get("precision"),
        "seed": config.get("seed"),
        "selected epoch": metrics.get("best_epoch"),
    }
    return "\n".join(
        f"- {name}: {printable(Path(str(value)).name)}"
        for name, value in rows.items()
        if value is not None
    )


def _quality(run, metrics, temperatures, many):
    val, count = metrics.get("val", {}), metrics.get("images", {}).get("val")
    values = ", ".join(
        f"{name} {value:.4f}"
        for name, value in val.items()
        if isinstance(value, float) and not name.startswith("images")
    )
    lines = [f"On the validation {many}: {values or 'not measured'}."]
    if "refit" in metrics:
        lines[0] += f" Then the model was trained again, on these {many} too."
    if "accuracy" in val and count:
        low, high = wilson_interval(round(val["accuracy"] * count), count)
        lines[0] += f" 95 % interval of the accuracy: {low:.3f}–{high:.3f} ({count} {many})."
    if temperatures:
        each = ", ".join(f"{name} {value:.4f}" for name, value in temperatures.items())
        lines.append(f"Scores are calibrated; temperature: {each}.")
    else:
        lines.append("Scores are not calibrated: a score of 0.9 may be correct less or more often.")
    if run.evaluation is not None:
        lines.append("### Evaluation\n\n" + markdown(run.evaluation))
    return "\n\n".join(lines)


def _parity(exported, many):
    if exported.parity is None:
        return f"Scores of a few generated {many} are equal up to rounding."
    return f"The export and the Keras model give the {exported.parity.text()}."


def _limits(model, metrics):
    one, many = modality_of(model).one, modality_of(model).many
    by_task = {
        "single_label": f"It always returns one of its classes, even if the {one} is of none of them.",
        "multi_label": "It recognizes only the labels above.",
        "regression": "Numbers are meaningless outside the range of the training labels.",
    }
    lines = [by_task[task] for task in sorted({head.task for head in heads_of(model).values()})]
    lines += [
        f"The quality was measured on {many} from the same source as the training {many}. Measure it "
        "on yours: other cameras, places, times or people may give other results.",
        modality_of(model).describe_limits(framing_of(model)),
    ]
    count = metrics.get("images", {}).get("val")
    if count and count < 1000:
        lines.append(f"The quality was measured on only {count} {many}; note the interval above.")
    return "\n".join(f"- {line}" for line in lines)


def _license(config, model):
    weights, name = config.get("weights"), config.get("backbone") or backbone_of(model).name
    if weights == "none":
        return "No pretrained weights were used. Your own images have their own terms."
    modules = [BACKBONES[one].module if one in BACKBONES else "" for one in name.split("+")]
    if (
        weights not in ("imagenet", None)
        or not {*modules} <= _LICENSES.keys() | _UNCONFIRMED.keys()
    ):
        return "The initial weights are not known to keras_transfer. Ask their publisher for the terms."
    condition = "" if weights else "If training began with the ImageNet weights of Keras: "
    terms = "\n".join(dict.fromkeys(map(_terms, modules)))
    return (
        f"{condition}{terms}\nThe images of ImageNet are for non-commercial research and teaching; "
        "ask a lawyer whether\nthat affects the weights. Your own images have their own terms."
    )


def _terms(module):
    if module in _LICENSES:
        license, publisher = _LICENSES[module]
        return f"The ImageNet weights were released under the {license} ({publisher})."
    license, publisher = _UNCONFIRMED[module]
    return (
        f"The ImageNet weights were ported from {publisher}, a repository under the {license}. "
        "It is not confirmed that this license covers the weights. Ask there before you "
        "distribute them."
    )
