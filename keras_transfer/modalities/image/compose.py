"""A transform of albumentations as augmentation: written down, made again in each thread."""

import json
import os
import random
import threading
import warnings
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from keras_transfer.errors import InputError

_MIRRORS = {"HorizontalFlip", "D4", "SquareSymmetry", "Transpose"}


@dataclass(frozen=True)
class Albumentations:
    """A transform of albumentations.

    It gets the decoded image, uint8 RGB [H, W, 3], and gives one of any size.

    Attributes:
        text: what the transform's `to_dict` gives, as JSON. Two with the same text are equal.
    """

    text: str

    @classmethod
    def of(cls, transform) -> "Albumentations":
        """Writes a transform down.

        Raises:
            InputError: it cannot be made again from that: a function in it (`Lambda`), or arrays.
        """
        from albumentations.core.serialization import serialize_enum

        try:
            fields = serialize_enum(transform.to_dict())
            text = json.dumps(fields, sort_keys=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(f"augment: the transform cannot be written down: {error}") from None
        if '"Lambda"' in text:
            raise InputError(
                "augment: the transform has a Lambda, whose function cannot be written down; make it "
                "a class of its own, an albumentations.ImageOnlyTransform"
            )
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, fields: dict) -> "Albumentations":
        """Takes back `to_dict`, or a file of `albumentations.save`.

        Only transforms of albumentations, and those that the running program has defined itself,
        are made: albumentations looks names up in a table of them and imports nothing.

        Raises:
            InputError: no such transform, or arguments that it does not take.
        """
        made = _made(fields)
        from albumentations.core.serialization import serialize_enum

        return cls(json.dumps(serialize_enum(made.to_dict()), sort_keys=True))

    def to_dict(self) -> dict:
        return json.loads(self.text)

    @property
    def flip(self) -> bool:
        """Whether it may exchange left and right."""
        return any(name in _MIRRORS for name in _names(self.to_dict()["transform"]))

    def varied(self, names):
        """A graph function (image uint8 [H, W, 3], seed [2], index) → uint8 [h, w, 3].

        Args:
            names: what to call the image of each index, for errors.
        """
        import tensorflow as tf

        from keras_transfer.utils.python_calls import python_calls

        own = threading.local()  # a transform keeps its random state in itself

        def vary(image, seed, index):
            with python_calls:
                if not hasattr(own, "transform"):
                    own.transform = _made(self.to_dict())
                return _varied(own.transform, image, seed, names[index])

        return lambda image, seed, index: tf.ensure_shape(
            tf.numpy_function(vary, [image, seed, index], tf.uint8), [None, None, 3]
        )


def _varied(transform, image, seed, name):
    number = int.from_bytes(seed.tobytes(), "little")
    # Not `set_random_seed`: it would start every transform of a Compose with the same draw, so
    # that all those of one probability happened together.
    transform.set_random_state(np.random.default_rng(number), random.Random(number))
    try:
        # A copy, for transforms that work in place: the array is TensorFlow's.
        varied = transform(image=image.copy())["image"]
    except Exception as error:  # the user's
        # One line: TensorFlow adds a traceback to it.
        reason = " ".join(str(error).split())
        raise InputError(
            f"augment: the transform failed on {name} ({image.shape[0]}x{image.shape[1]}): "
            f"{type(error).__name__}: {reason}; transform: {_shown(transform)}"
        ) from None
    kind, shape = getattr(varied, "dtype", type(varied).__name__), np.shape(varied)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise InputError(
            f"augment: the transform made {kind} {list(shape)} of {name}; it must give uint8 "
            "[height, width, 3]: leave out what normalises or makes tensors, the model does that; "
            f"transform: {_shown(transform)}"
        )
    return np.ascontiguousarray(varied)


def _made(fields):
    """The transform itself, always a Compose."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look at the network
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # images run side by side already
    try:
        # Unknown arguments are warned of only, and a missing p replaced.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            made = albumentations.from_dict(fields)
    except KeyError as error:
        raise InputError(_unknown(error.args[0])) from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"augment: this is no transform of albumentations: {reason}") from None
    if not isinstance(made, albumentations.Compose):
        made = albumentations.Compose([made])
    return made


def _unknown(name):
    if name in ("transform", "__class_fullname__"):
        return f"augment: {name!r} is missing; give what albumentations.save writes"
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY

    close = get_close_matches(str(name), SERIALIZABLE_REGISTRY, 3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return f"augment: albumentations has no transform {name!r}{hint}"


def _names(fields):
    yield fields["__class_fullname__"]
    for inner in fields.get("transforms", ()):
        yield from _names(inner)


def _shown(transform):
    return " ".join(str(transform).split())
