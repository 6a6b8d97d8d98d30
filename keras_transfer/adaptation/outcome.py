"""What the run directory of an adaptation says: history.csv, metrics.json, a line for people."""

import numpy as np

from keras_transfer.runs import Run


def history_rows(adapted, plans: dict) -> list[dict]:
    """The history, a dict an epoch.

    Args:
        adapted: an `easy.Adapted` whose history has `seconds`.
        plans: name of each part of the training → its `PlannedPhase`, in their order.
    """
    rows: list[dict] = []
    for name, planned in plans.items():
        history = adapted.source_history if name == "source" else adapted.history
        rates = planned.learning_rate((np.arange(planned.epochs) + 1) * planned.steps_per_epoch - 1)
        for i, rate in enumerate(rates):
            found = {key: values[i] for key, values in history.items()}
            seconds = found.pop("seconds")
            row = {"epoch": len(rows) + 1, "phase": name, "learning_rate": float(rate), **found}
            target = adapted.selector.target_accuracy(i + 1) if name == "adapt" else None
            if target is not None:
                row["target_accuracy"] = target
            rows.append({**row, "seconds": seconds})
    return rows


def metrics_of(
    model,
    adapted,
    rows,
    frozen,
    *,
    source,
    report,
    methods,
    keep,
    target_images,
    skipped,
    batch_size,
) -> dict:
    """The content of metrics.json; the model is measured as it is now.

    Args:
        rows: of `history_rows`.
        frozen: what was frozen, a `freezing.Frozen`.
        source, report: `ImageData` of the source, and of the target for reporting or None.
        methods, keep: as asked for.
        target_images, skipped: how many.
    """
    from keras_transfer.evaluation import evaluate

    val, target = {}, None
    if "val" in source.examples:
        found = evaluate(model, source, "val", batch_size=batch_size)
        val = {name: found[name] for name in ("accuracy", "loss")}
    if report:
        (split,) = report.examples
        found = evaluate(model, report, split, batch_size=batch_size)
        names = ("images", "accuracy", "accuracy_interval", "balanced_accuracy", "loss")
        target = {name: found[name] for name in names}
    phases = [
        _phase(name, [row for row in rows if row["phase"] == name], frozen)
        for name in dict.fromkeys(row["phase"] for row in rows)
    ]
    return {
        "val": val,
        "best_epoch": sum(phase["epochs"] for phase in phases[:-1]) + adapted.epoch,
        "wall_seconds": round(sum(phase["wall_seconds"] for phase in phases), 3),
        "images": {
            **{split: len(part) for split, part in source.examples.items()},
            "target": target_images,
        },
        "skipped": skipped,
        "phases": phases,
        "adaptation": {
            "method": list(methods),
            "keep": keep,
            "epoch": adapted.epoch,
            "target": target,
            "selection": adapted.selector.to_dict(),
        },
    }


def _phase(name, rows, frozen):
    last = rows[-1].items()
    return {
        "name": name,
        "epochs": len(rows),
        "frozen_stages": frozen.stages,
        "trainable_parameters": frozen.trainable_parameters,
        "wall_seconds": round(sum(row["seconds"] for row in rows), 3),
        "val": {key.removeprefix("val_"): value for key, value in last if key.startswith("val_")},
    }


def outcome(run: Run) -> str:
    """A line for people: what a finished run came to."""
    metrics = run.metrics
    found = metrics["adaptation"]
    parts = []
    if found["target"]:
        low, high = found["target"]["accuracy_interval"]
        parts.append(
            f"target accuracy {found['target']['accuracy']:.4f} (95 % interval {low:.3f}–"
            f"{high:.3f}, {found['target']['images']} images)"
        )
    if metrics["val"]:
        parts.append(f"source val accuracy {metrics['val']['accuracy']:.4f}")
    epochs = found["selection"]["epochs"][-1]["epoch"]
    parts.append(f"{found['keep']} epoch {found['epoch']} of {epochs}")
    parts.append(f"{metrics['wall_seconds']:.0f} s of training, {metrics['skipped']} files skipped")
    return ", ".join(parts)
