"""Diagnose a dataset: features once, then every question."""

from typing import Any

import numpy as np

from keras_transfer.data.examples import ImageData, label_texts, relative_paths
from keras_transfer.diagnosis.label_errors import LabelErrors, find_label_errors
from keras_transfer.diagnosis.result import Diagnosis, Problem
from keras_transfer.diagnosis.seen import Seen, default_backbone, see
from keras_transfer.models.sources.backbones import check_backbone, check_kind
from keras_transfer.schedules.recipes import AUTO


def diagnose(
    data: ImageData,
    *,
    backbone: str = AUTO,
    image_size: int | None = None,
    engine: str = AUTO,
    seed: int = 0,
) -> Diagnosis:
    """Find labels that are probably wrong; nothing is changed.

    All splits are examined together. Each example is judged by heads in closed form that were fitted
    without it, its copies and its group, see `features.held_out`; then by confident learning
    (arXiv:1911.00068), or, for numbers, by its residual.

    Args:
        data: any task, or several heads.
        backbone: a name, or several joined by `+`; `"auto"` is both small MobileNets if their weights
            are on this machine, or else another backbone.
        image_size: by default that of the backbone.
        engine: see `features.extraction.extract`.
        seed: of the folds.

    Raises:
        InputError: the backbone is invalid.
    """
    backbone = check_diagnosis(backbone, image_size)
    check_kind(backbone, data.modality)
    seen = see(data, backbone, image_size, engine)
    several = isinstance(data.targets, dict)
    found = _label_errors(data, seen, seed)
    texts = label_texts(seen.examples.labels, data.targets)
    paths = relative_paths(seen.examples.names, data.root)
    problems = []
    for name, errors in found.items():
        labels: Any = seen.examples.take(errors.rows).labels
        labels = {**labels, name: errors.suggested} if several else errors.suggested
        suggestions = label_texts(labels, data.targets)
        problems += [
            Problem(paths[row], "label", texts[row], suggested, float(score), (), seen.splits[row])
            for row, suggested, score in zip(errors.rows, suggestions, errors.scores)
        ]
    problems.sort(key=lambda problem: -problem.score)
    notes = []
    for name, errors in found.items():
        if missing := len(seen) - errors.judged:
            head = f"{name}: " if name else ""
            notes.append(
                f"{head}{missing} labels cannot be judged: a class needs two different examples"
            )
    return Diagnosis(
        data.root,
        backbone,
        len(seen),
        data.modality.many,
        tuple(problems),
        found,
        tuple(notes),
    )


def check_diagnosis(backbone: str, image_size: int | None = None) -> str:
    """Return the backbone to use, after what can be checked without Keras.

    Raises:
        InputError: see `diagnose`.
    """
    backbone = default_backbone() if backbone == AUTO else backbone
    check_backbone(backbone, image_size)
    return backbone


def _label_errors(data: ImageData, seen: Seen, seed: int) -> dict[str, LabelErrors]:
    """Return name of each head ("" for the only one) → its label errors."""
    from keras_transfer.features.held_out import held_out_outputs

    several = isinstance(data.targets, dict)
    targets: dict[str, Any] = data.targets if several else {"": data.targets}  # type: ignore[assignment]
    labels: dict[str, Any] = seen.examples.labels if several else {"": seen.examples.labels}  # type: ignore[assignment]
    groups = np.asarray(seen.examples.together)
    return {
        name: find_label_errors(
            target,
            held_out_outputs(target.task, seen.features, labels[name], groups, seed=seed),
            labels[name],
        )
        for name, target in targets.items()
    }
