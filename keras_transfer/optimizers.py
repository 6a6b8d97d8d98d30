"""Optimizers and learning-rate shapes for transfer."""

import keras


def warmup_cosine(learning_rate: float, steps: int, warmup: float = 0.1):
    """Linear warm-up over a share of the steps, then a cosine to zero (SGDR, arXiv:1608.03983).

    Args:
        learning_rate: the highest rate, > 0.
        steps: optimizer steps of the whole phase.
        warmup: share of the steps, 0 ≤ warmup < 1.
    """
    warmup_steps = int(warmup * steps)
    return keras.optimizers.schedules.CosineDecay(
        # Floats: Keras fails on a whole-number start.
        initial_learning_rate=0.0 if warmup_steps else float(learning_rate),
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=float(learning_rate) if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def adamw(learning_rate, weight_decay: float) -> keras.optimizers.Optimizer:
    """AdamW (arXiv:1711.05101) that decays matrices only, not biases and normalisations."""
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
