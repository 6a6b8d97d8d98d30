"""A folder for the Hugging Face Hub: the Keras model, its card with metadata, and a preview image."""

import json
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from keras_transfer.export.parity import Sample
from keras_transfer.modalities.image.bands import select
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.runs import MODEL
from keras_transfer.utils.documents import dump_yaml
from keras_transfer.utils.files import write_file, write_text
from keras_transfer.utils.plotting import GREEN, RED, save

PREVIEW, CONFIG = "preview.png", "config.json"
_SHOWN = 8  # examples in the preview


def write_hub(folder: Path, model: keras.Model, sample: Sample, scores: Mapping) -> None:
    """Write the model, `config.json`, and a preview of its answers where its inputs are images.

    Args:
        folder: exists.
        sample: examples whose answers the preview shows.
        scores: head name → scores [N, C] of these examples.
    """
    write_file(folder / MODEL, model.save)
    heads, framing = heads_of(model), framing_of(model)
    config = {
        "library_name": "keras_transfer",
        "keras_version": keras.__version__,
        "modality": framing.modality,
        "input_size": framing.size,
        "heads": {name: {"task": h.task, "names": list(h.names)} for name, h in heads.items()},
    }
    write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (name, head), *others = heads.items()
    if sample.inputs.ndim == 4 and not others and head.task == "single_label":
        write_file(folder / PREVIEW, lambda path: _draw(path, sample, scores[name], head.names))


def front_matter(run, model: keras.Model) -> str:
    """Return the metadata that the hub reads at the top of a card, between lines of `---`."""
    heads = heads_of(model)
    tasks = {head.task for head in heads.values()}
    kind = modality_of(model).name
    tag = f"{kind}-classification" if "regression" not in tasks else None
    metrics = {
        name: value
        for name, value in run.metrics.get("val", {}).items()
        if isinstance(value, float) and not name.startswith("images")
    }
    results = {
        "name": run.path.name,
        "results": [
            {
                "task": {"type": tag or "other"},
                "dataset": {"name": "validation examples", "type": "private"},
                "metrics": [{"type": name, "value": round(v, 4)} for name, v in metrics.items()],
            }
        ],
    }
    fields = {
        "library_name": "keras",
        "tags": ["keras_transfer", *([tag] if tag else [])],
        **({"pipeline_tag": tag} if tag else {}),
        "license": "other",
        "license_name": "see-license-section",
        **({"model-index": [results]} if metrics else {}),
    }
    return f"---\n{dump_yaml(fields)}---\n\n"


def _draw(path, sample, scores, names):
    """Draw examples with their label, or the answer where it differs, as a sheet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(_SHOWN, len(sample.inputs))
    rows = np.linspace(0, len(sample.inputs) - 1, count).astype(int)  # of all classes
    labels = None if sample.labels is None else next(iter(sample.labels.values()))
    figure = Figure(figsize=(8, 2.3 * -(-count // 4)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, row in enumerate(rows):
        axes = figure.add_subplot(-(-count // 4), 4, place + 1)
        axes.imshow(select(sample.inputs[row].astype("uint8"), None))
        axes.set_axis_off()
        best = int(np.argmax(scores[row]))
        right = labels is None or int(labels[row]) == best
        said = f"{names[best]} {scores[row][best]:.0%}"
        text = said if right or labels is None else f"{said}\n(is {names[int(labels[row])]})"
        axes.set_title(text, fontsize=9, color=GREEN if right else RED, parse_math=False)
    save(figure, path, format="png", dpi=100)
