"""Which models of this process were trained already, because a second `fit` starts from there."""

import hashlib
import weakref

import keras

from keras_transfer.utils.console import say

# Model → the run of its last training and the digest of the weights that it left.
_trained: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def remember_training(model: keras.Model, out) -> None:
    """Record that the model's weights come from the run `out`."""
    _trained[model] = str(out), _digest(model)


def earlier_training(model: keras.Model) -> str | None:
    """Return the run that the model's present weights come from, or None."""
    out, digest = _trained.get(model, (None, None))
    return out if out is not None and digest == _digest(model) else None


def say_start(earlier: str) -> None:
    """Print that a training starts from the weights of a run."""
    say(f"the model starts from the weights of {earlier}: build a new one for a fresh start")


def _digest(model):
    digest = hashlib.blake2b(digest_size=16)
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.digest()
