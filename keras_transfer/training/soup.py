"""The average of the last phase's best epochs, a greedy soup (arXiv:2203.05482, recipe 1)."""

from collections.abc import Callable, Iterable

import keras
import numpy as np

from keras_transfer.models.stages import norms_of

MOST = 5  # epochs that may be averaged


def obstacle(trainer, planned, validates: bool) -> str | None:
    """Return why a phase's epochs cannot be averaged, or None.

    Args:
        trainer: the `training.Trainer`.
        planned: the last `PlannedPhase`.
        validates: whether there are validation examples.
    """
    phase = planned.phase
    reasons = (
        (phase.solver != "gradient", "the last phase is a closed form"),
        (trainer.config.keep == "last", "keep='last' asks for the weights of the last epoch"),
        (not validates, "there are no validation examples to choose epochs by"),
        (trainer.workers.distributed, "several workers train together"),
        (
            # Statistics belong to one epoch's weights; those of an average would need another pass.
            phase.batch_norm == "train" and bool(norms_of(trainer.model, planned.frozen)),
            f"BatchNorm trains in phase '{phase.name}'",
        ),
    )
    return next((reason for holds, reason in reasons if holds), None)


def strongest(candidates: Iterable[dict]) -> list[dict]:
    """Return the `MOST` candidates of the highest rank, best first; of equals, the earlier first."""
    return sorted(candidates, key=lambda candidate: candidate["rank"], reverse=True)[:MOST]


def greedy(
    candidates: list[dict], weights_of: Callable, evaluate: Callable, rank: Callable
) -> tuple[dict, dict]:
    """Average epochs, best first, each only if the rank of the average does not fall.

    Args:
        candidates: at least one, best first: `epoch`, `rank` (ordered) and `val` (metric → value).
        weights_of: epoch → its arrays by name.
        evaluate: arrays → metric → value, on the validation examples.
        rank: metrics → rank.

    Returns:
        (`{"epochs", "rank", "val"}`, the averaged arrays).
    """
    best, *others = candidates
    found = {"epochs": [best["epoch"]], "rank": best["rank"], "val": best["val"]}
    parts = [average := weights_of(best["epoch"])]
    for other in others:
        trial = [*parts, weights_of(other["epoch"])]
        mean = average_of(trial)
        validation = evaluate(mean)
        if (now := rank(validation)) >= found["rank"]:
            epochs = [*found["epochs"], other["epoch"]]
            found = {"epochs": epochs, "rank": now, "val": validation}
            parts, average = trial, mean
    return found, average


def describe(soup: dict, best: int, metric: str) -> str:
    """Return the choice as a line.

    Args:
        soup: what `metrics.json` says of it.
        best: the best single epoch.
        metric: the one to print.
    """
    single = f"epoch {best} alone: {soup['single'][metric]:.4f}"
    epochs = ", ".join(map(str, soup["epochs"]))
    if len(soup["epochs"]) == 1:
        return f"soup: no average is better than one epoch ({metric}, {single})"
    saved = "saved" if soup["used"] else "not saved"
    return (
        f"soup: average of epochs {epochs}, {saved}: {metric} {soup['val'][metric]:.4f} ({single})"
    )


def average_of(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of arrays by name; equal arrays stay equal to the bit.

    Arrays of whole numbers, such as random states, are those of the first part.
    """
    return {name: _mean([part[name] for part in parts]) for name in parts[0]}


def _mean(values):
    first = values[0]
    if not keras.backend.is_float_dtype(first.dtype.name):
        return first
    return np.mean(values, axis=0, dtype="float64").astype(first.dtype)
