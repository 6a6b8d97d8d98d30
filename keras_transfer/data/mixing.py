"""MixUp and CutMix: batches in which each image has a share of another, and so have its labels."""

from dataclasses import dataclass

from keras_transfer.errors import InputError

_ALPHAS = {"none": None, "mixup": 0.2, "cutmix": 1.0}
MIXES = tuple(_ALPHAS)


@dataclass(frozen=True)
class Mix:
    """How the images of a training batch are mixed with each other.

    Attributes:
        kind: `"none"`; `"mixup"` adds two images, λ to 1-λ (arXiv:1710.09412); `"cutmix"` pastes a
            box of one into the other, whose share of the area is 1-λ (arXiv:1905.04899).
        alpha: λ is drawn from Beta(alpha, alpha), alpha > 0, for CutMix at most 1. None is the
            paper's: 0.2 for MixUp, 1 for CutMix.
    """

    kind: str = "none"
    alpha: float | None = None

    def __post_init__(self):
        if self.kind not in MIXES:
            raise InputError(f"mix must be one of {', '.join(MIXES)}, not {self.kind!r}.")
        if self.alpha is None:
            object.__setattr__(self, "alpha", _ALPHAS[self.kind])
        elif self.kind == "none":
            object.__setattr__(self, "alpha", None)
        elif not self.alpha > 0 or (self.kind == "cutmix" and self.alpha > 1):
            bounds = "above 0" + (" and at most 1" if self.kind == "cutmix" else "")
            raise InputError(f"mix_alpha of {self.kind} must be {bounds}, not {self.alpha}.")

    def __bool__(self):
        return self.kind != "none"


def mixer(mix: Mix):
    """A graph function (images, labels, seed) → (images, labels).

    Images uint8 [B, S, S, 3], labels float32 [B, C] (one-hot, multi-hot or shares already), seed
    int64 [2]. Each image keeps λ of its labels and gets 1-λ of another image's of the batch.
    """
    import keras
    import tensorflow as tf

    from keras_transfer.modalities.image.layers import drawn_from_seed

    if mix.kind == "mixup":
        layer = keras.layers.MixUp(alpha=mix.alpha, dtype="float32")
    else:
        # `factor` is the range that alpha is drawn from.
        layer = keras.layers.CutMix(factor=(mix.alpha, mix.alpha), dtype="float32")
    mixed = drawn_from_seed(layer)

    def call(images, labels, seed):
        both = mixed({"images": tf.cast(images, tf.float32), "labels": labels}, seed)
        images = tf.cast(tf.clip_by_value(tf.round(both["images"]), 0.0, 255.0), tf.uint8)
        return images, both["labels"]

    return call
