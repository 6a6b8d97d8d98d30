"""Diagnose a dataset: features once, then every question."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_transfer.data.examples import ImageData, label_texts, relative_paths
from keras_transfer.diagnosis.label_errors import LabelErrors, find_label_errors
from keras_transfer.diagnosis.near import near_groups
from keras_transfer.diagnosis.outliers import find_outliers
from keras_transfer.diagnosis.result import Diagnosis, Problem
from keras_transfer.diagnosis.seen import (
    Seen,
    can_sketch,
    check_channels,
    chosen_backbone,
    compare,
    is_seen,
    see,
)
from keras_transfer.features.known import remember_diagnosis
from keras_transfer.modalities import Modality
from keras_transfer.models.sources.backbones import check_backbone
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.console import counted
from keras_transfer.utils.extras import missing_extra


def diagnose(
    data: ImageData,
    *,
    backbone: str = AUTO,
    image_size: int | str | None = None,
    engine: str = AUTO,
    seed: int = 0,
) -> Diagnosis:
    """Find labels that are probably wrong, near-duplicates and outliers; nothing is changed.

    All splits are examined together. Each example is judged by heads in closed form that were fitted
    without it, its copies and its group, see `features.held_out`; then by confident learning
    (arXiv:1911.00068), or, for numbers, by its residual. Near-duplicates have nearly equal features and
    sketches, see `diagnosis.near`; outliers are far from their neighbors, see `diagnosis.outliers`.

    Args:
        data: any task, or several heads.
        backbone: a name, or several joined by `+`; `"auto"` is both small MobileNets if their weights
            are on this machine, or else another backbone.
        image_size: by default that of the backbone.
        engine: see `features.extraction.extract`.
        seed: of the folds.

    Raises:
        InputError: the backbone is invalid, or images do not have three channels.
    """
    check_channels(data, chosen_backbone(backbone, data.modality))
    backbone = check_diagnosis(backbone, image_size, data.modality)
    seen = see(data, backbone, image_size, engine)
    distinct = compare(seen)
    modality = data.modality
    groups = near_groups(seen, distinct) if can_sketch(modality) else []
    found = _label_errors(data, seen, seed)
    texts = label_texts(seen.examples.labels, data.targets)
    paths = relative_paths(seen.examples.names, data.root)

    def problem(row, kind, score, **more):
        return Problem(paths[row], kind, texts[row], seen.splits[row], float(score), **more)

    problems = [
        *_wrong(data, seen, found, problem),
        *_near(groups, texts, seen.splits, paths, problem),
    ]
    task = None if isinstance(data.targets, dict) else data.targets.task
    classes: Any = seen.examples.labels if task == "single_label" else None
    outliers = find_outliers(distinct, classes, modality.oddities)
    for row, score, reason in zip(outliers.rows, outliers.scores, outliers.reasons):
        problems.append(problem(row, "outlier", score, reason=reason))
    notes = []
    for name, errors in found.items():
        if missing := len(seen) - errors.judged:
            head = f"{name}: " if name else ""
            notes.append(
                f"{head}{counted(missing, 'label')} cannot be judged: a class needs two different examples"
            )
    if modality.sketched_by is not None and not can_sketch(modality):
        notes.append(
            "near-duplicates, dark and blurred examples were not looked for: this needs "
            + missing_extra(modality.sketched_by)
        )
    wrong = {name: errors.wrong for name, errors in found.items() if errors.judged}
    remember_diagnosis(data, backbone, wrong, [rows for rows, _ in groups])
    many = modality.many
    return Diagnosis(
        data.root, backbone, len(seen), many, tuple(problems), found, tuple(notes), data.title
    )


def _wrong(data, seen, found, problem: Callable) -> list[Problem]:
    """Return the problems of labels, the most doubtful first."""
    several, problems = isinstance(data.targets, dict), []
    for name, errors in found.items():
        labels: Any = seen.examples.take(errors.rows).labels
        labels = {**labels, name: errors.suggested} if several else errors.suggested
        suggestions = label_texts(labels, data.targets)
        for row, suggested, score in zip(errors.rows, suggestions, errors.scores):
            problems.append(problem(row, "label", score, suggested=suggested))
    return sorted(problems, key=lambda problem: -problem.score)


def _near(groups, texts, splits, paths, problem: Callable) -> Iterator[Problem]:
    """Yield a problem for each member of a group but its first, leakage first.

    Each names the members of other splits if there are any, or else the others of its own.
    """
    leaks: list[Problem] = []
    others: list[Problem] = []
    for rows, likeness in groups:
        for row in rows[1:]:
            related = [other for other in rows if splits[other] != splits[row]]
            leaks_here = splits[row] != splits[rows[0]]
            kind, into = ("leakage", leaks) if leaks_here else ("near-duplicate", others)
            related = related if leaks_here else [other for other in rows if other != row]
            reason = "" if all(texts[r] == texts[row] for r in rows) else "with another label"
            more = {"related": tuple(paths[other] for other in related), "reason": reason}
            into.append(problem(row, kind, likeness, **more))
    yield from leaks
    yield from others


def check_diagnosis(
    backbone: str, image_size: int | str | None = None, modality: Modality | None = None
) -> str:
    """Return the backbone to use, after what can be checked without Keras.

    Args:
        modality: of the examples, as soon as it is known; before, `"auto"` stays open.

    Raises:
        InputError: see `diagnose`.
    """
    if backbone == AUTO and modality is None:
        return backbone
    backbone = chosen_backbone(backbone, modality)
    check_backbone(backbone, image_size)
    return backbone


def is_examined(data: ImageData, backbone: str = AUTO, image_size: int | str | None = None) -> bool:
    """Return whether `diagnose` reads all features of these examples, so that it needs no Keras."""
    return is_seen(data, check_diagnosis(backbone, image_size, data.modality), image_size, AUTO)


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
