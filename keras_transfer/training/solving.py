"""The heads of a model, fitted in closed form on the features of a phase."""

from functools import partial

import numpy as np

from keras_transfer.data.examples import class_weights
from keras_transfer.models.builders import by_head
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.console import say


def solve_heads(trainer, phase, examples, features) -> None:
    """Set the weights of a trainer's heads; with several workers, the chief computes them.

    Args:
        trainer: the `training.Trainer`.
        phase: the phase of the closed form.
        examples: the training examples.
        features: their `features.extraction.Activations`.
    """
    from keras_transfer.features.closed_form import solve  # imports scikit-learn

    rows = np.arange(len(examples))
    inputs = np.concatenate([features.gather(rows, view) for view in range(features.views)])
    inputs = inputs.astype("float32")
    labels = by_head(trainer.heads, examples.labels)
    weights = phase.class_weights or ("balanced" if trainer.config.balance != "none" else None)
    cuts = backbone_of(trainer.model).cuts
    part = cuts.last_columns() if len(cuts.tapped) > len(cuts.branches) else None

    groups = np.tile(examples.together, features.views)

    def solution(name, head):
        found = solve(
            head.task,
            inputs,
            np.concatenate([head.from_units(labels[name])] * features.views),
            groups,
            class_weights=weights and class_weights(weights, head.names, labels[name]),
            part=part,
            seed=trainer.config.seed,
        )
        say(f"head: {found}" if trainer.head else f"head {name}: {found}")
        return {"kernel": found.kernel, "bias": found.bias}

    for name, head in trainer.heads.items():
        arrays = trainer.workers.arrays_from_chief(partial(solution, name, head))
        layer = trainer.model.get_layer(name)
        layer.kernel.assign(arrays["kernel"])
        layer.bias.assign(arrays["bias"])
