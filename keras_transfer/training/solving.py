"""The heads of a model, fitted in closed form on the features of a phase."""

from functools import partial

import numpy as np

from keras_transfer.data.examples import class_weights
from keras_transfer.models.builders import by_head
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import say


def solve_heads(trainer, phase, examples, features, chosen=None) -> dict[str, dict]:
    """Set the weights of a trainer's heads; with several workers, the chief computes them.

    Args:
        trainer: the `training.Trainer`.
        phase: the phase of the closed form.
        examples: the training examples.
        features: their `features.extraction.Activations`.
        chosen: what an earlier call for fewer examples returned, instead of a further cross-validation.

    Returns:
        Name of each head → `LinearHead.chosen`; nothing in other processes than the chief.
    """
    from keras_transfer.features.blocks import Rows, memory_budget
    from keras_transfer.features.closed_form import solve  # imports scikit-learn

    count = len(examples)
    shape = (count * features.views, int(np.prod(features.shape)))

    def read(rows):
        return features.gather(rows % count, rows // count).reshape(len(rows), -1)

    inputs = Rows(shape, read).within(memory_budget())
    if isinstance(inputs, Rows):
        say(
            f"head: {shape[0]:,} × {shape[1]:,} features are more than memory may hold: solving in blocks"
        )
    labels = by_head(trainer.heads, examples.labels)
    weights = phase.class_weights or ("balanced" if trainer.config.balance != "none" else None)
    cuts = backbone_of(trainer.model).cuts
    part = cuts.last_columns() if len(cuts.tapped) > len(cuts.branches) else None

    groups = np.tile(examples.together, features.views)
    settled: dict[str, dict] = {}

    def solution(name, head):
        found = solve(
            head.task,
            inputs,
            np.concatenate([head.from_units(labels[name])] * features.views),
            groups,
            class_weights=weights and class_weights(weights, head.names, labels[name]),
            part=part,
            seed=trainer.config.seed,
            chosen=(chosen or {}).get(name),
        )
        settled[name] = found.chosen
        say(f"head: {found}" if trainer.head else f"head {name}: {found}")
        return {"kernel": found.kernel, "bias": found.bias}

    for name, head in trainer.heads.items():
        arrays = trainer.workers.arrays_from_chief(partial(solution, name, head))
        layer = trainer.model.get_layer(name)
        layer.kernel.assign(arrays["kernel"])
        layer.bias.assign(arrays["bias"])
    return settled
