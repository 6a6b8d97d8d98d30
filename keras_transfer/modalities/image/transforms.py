"""Augmentation by transforms of albumentations and by Keras layers.

Both are stored as JSON, so that a run can rebuild them, and both draw from the image's seed alone, so
that a resumed run sees the same variants. Neither library is imported until it is used.
"""

import json
import os
import random
import sys
import threading
import warnings
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.utils.extras import require
from keras_transfer.utils.global_state import restored
from keras_transfer.utils.image_sizes import sides

_MIRRORS = {"HorizontalFlip", "D4", "SquareSymmetry", "Transpose"}


@dataclass(frozen=True)
class _Stored:
    """A transform or layer as JSON; two with the same text are equal."""

    text: str

    changes = True

    def to_dict(self) -> dict:
        return json.loads(self.text)


_RANGE_DRAWS = 6  # of a random layer, to see which values it returns


# -- albumentations -------------------------------------------------------------------------------


class Albumentations(_Stored):
    """A transform of albumentations.

    It receives the decoded image, uint8 RGB [H, W, 3], and may return any size.

    Attributes:
        text: the result of the transform's `to_dict`, as JSON.
    """

    @classmethod
    def of(cls, transform) -> "Albumentations":
        """Serialize a transform; an InputError if it contains a function (`Lambda`) or arrays."""
        from albumentations.core.serialization import serialize_enum

        try:
            fields = serialize_enum(transform.to_dict())
            text = json.dumps(fields, sort_keys=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(f"augment: the transform cannot be serialized: {error}") from None
        if '"Lambda"' in text:
            raise InputError(
                "augment: the transform contains a Lambda, whose function cannot be serialized; "
                "write a subclass of albumentations.ImageOnlyTransform"
            )
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, fields: dict) -> "Albumentations":
        """Rebuild from `to_dict`, or from the content of a file of `albumentations.save`.

        Only transforms of albumentations and those that the running program defines are built:
        albumentations looks names up in its registry and imports nothing.
        """
        transform = _compose(fields)
        from albumentations.core.serialization import serialize_enum

        return cls(json.dumps(serialize_enum(transform.to_dict()), sort_keys=True))

    @property
    def flip(self) -> bool:
        """Whether it may exchange left and right."""

        return any(name in _MIRRORS for name in _class_names(self.to_dict()["transform"]))

    def function(self, names):
        """Return a function (image uint8 [H, W, 3], seed int64 [2], index) → uint8 [h, w, 3].

        The index selects the image's name in `names`, for error messages. Threads may call it.
        """
        local = threading.local()  # a transform contains its random state

        def vary(image, seed, index):
            if not hasattr(local, "transform"):
                local.transform = _build(self.to_dict())  # checked when it was stored
            return _apply(local.transform, image, seed, names[index])

        return vary


def _apply(transform, image, seed, name):
    number = int.from_bytes(seed.tobytes(), "little")
    # `set_random_seed` would start every transform of a Compose with the same draw, so that all
    # transforms with the same probability would be applied together.
    transform.set_random_state(np.random.default_rng(number), random.Random(number))
    try:
        # Pass a copy, because a transform may work in place and the array may stay in memory.
        result = transform(image=image.copy())["image"]
    except Exception as error:  # a user's transform may raise anything
        raise InputError(
            f"augment: the transform failed on {name} ({image.shape[0]}x{image.shape[1]}): "
            f"{type(error).__name__}: {_one_line(error)}; transform: {_one_line(transform)}"
        ) from None
    kind, shape = getattr(result, "dtype", type(result).__name__), np.shape(result)
    if kind != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise InputError(
            f"augment: the transform returned {kind} {list(shape)} for {name}; it must return uint8 "
            "[height, width, 3]: remove normalization and conversion to tensors, because the model "
            f"does both; transform: {_one_line(transform)}"
        )
    return np.ascontiguousarray(result)


def _compose(fields):
    """Build a transform, always as a Compose; an InputError if it is invalid.

    Not for tf.data's threads: warning filters belong to the process.
    """
    _import_albumentations()
    try:
        # albumentations only warns of unknown arguments, and replaces a missing p.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return _build(fields)
    except KeyError as error:
        raise InputError(_unknown(error.args[0])) from None
    except Exception as error:
        raise InputError(f"augment: invalid albumentations transform: {_one_line(error)}") from None


def _build(fields):
    albumentations = _import_albumentations()
    transform = albumentations.from_dict(fields)
    if not isinstance(transform, albumentations.Compose):
        transform = albumentations.Compose([transform])
    return transform


def _import_albumentations():
    require("albumentations", "augment: the transform")
    if "albumentations" not in sys.modules:
        name = "NO_ALBUMENTATIONS_UPDATE"
        given = os.environ.get(name)
        os.environ[name] = given or "1"  # importing it would access the network
        try:
            import albumentations  # noqa: F401
        finally:
            if given is None:
                del os.environ[name]
    return sys.modules["albumentations"]


def _unknown(name):
    if name in ("transform", "__class_fullname__"):
        return f"augment: {name!r} is missing; give the output of albumentations.save"
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY

    close = get_close_matches(str(name), SERIALIZABLE_REGISTRY, 3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return f"augment: albumentations has no transform {name!r}{hint}"


def _class_names(fields):
    yield fields["__class_fullname__"]
    for inner in fields.get("transforms", ()):
        yield from _class_names(inner)


# -- Keras ----------------------------------------------------------------------------------------


class KerasLayer(_Stored):
    """A Keras layer: `RandomRotation`, `RandAugment`, a `Pipeline`, a `Sequential`, or a custom one.

    It receives the image as in evaluation, resized and cropped, float32 [1, S, S, 3] with values
    0–255, and is called with `training=True`.

    Attributes:
        text: the result of `keras.saving.serialize_keras_object`, as JSON, without seeds, which have
            no effect here, and with names that depend on the layer alone.
    """

    @classmethod
    def of(cls, layer) -> "KerasLayer":
        """Serialize a layer, which is never called; an InputError if it cannot be rebuilt."""
        import keras

        try:
            fields = keras.saving.serialize_keras_object(layer)
            text = json.dumps(fields, sort_keys=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"augment: the layer cannot be serialized ({_one_line(error)}); add a get_config to "
                "its class"
            ) from None
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, fields: dict) -> "KerasLayer":
        """Rebuild from `to_dict`. Keras builds only its own and registered classes, and no Lambda."""
        _build_layer(fields)
        return cls(json.dumps(_anonymous(fields), sort_keys=True))

    @property
    def flip(self) -> bool:
        """Whether it may exchange left and right."""
        from keras_transfer.utils.keras_versions import inner_layers

        return any(
            getattr(layer, "mode", "vertical") != "vertical"
            for layer in inner_layers(_build_layer(self.to_dict()))
            if type(layer).__name__ == "RandomFlip"
        )

    def function(self, size: int | str, channels: int = 3):
        """Return a graph function (float32 [1, height, width, C], seed [2]) → float32 [1, h, w, C]."""
        import tensorflow as tf

        layer, shape = _build_layer(self.to_dict()), [1, *sides(size), channels]
        try:
            sample = layer(tf.zeros(shape), training=True)
        except Exception as error:  # a user's layer may raise anything
            raise InputError(
                f"augment: the layer {layer.name} failed on an image of {shape[1]}x{shape[2]}: "
                f"{type(error).__name__}: {_one_line(error)}"
            ) from None
        if len(sample.shape) != 4 or sample.shape[0] != 1 or sample.shape[3] != channels:
            raise InputError(
                f"augment: the layer {layer.name} returned {list(sample.shape)} for an image "
                f"{shape}; it must return [1, height, width, {channels}]"
            )
        drawn = drawn_from_seed(layer)
        _require_range(drawn, shape, layer.name)
        return drawn


def _require_range(drawn, shape, name):
    """Raise InputError if a layer normalizes: if most values of a noisy image leave 0–255, or all are tiny.

    The model would see black or white images, because it normalizes as well. A few draws of a valid
    layer are dark or bright, but not most of them.
    """
    image = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    draws = [np.asarray(drawn(image, [0, number])) for number in range(_RANGE_DRAWS)]
    wrong = sum(_tiny(draw) or _outside(draw) > 0.3 for draw in draws)
    if wrong > len(draws) // 2:
        low, high = min(draw.min() for draw in draws), max(draw.max() for draw in draws)
        raise InputError(
            f"augment: the layer {name} turns values of 0–255 into {low:.3g} to {high:.3g}; it must "
            "keep 0–255: remove Rescaling and Normalization, because the model does both, and set "
            "value_range=(0, 255)"
        )


def _tiny(values):
    return np.abs(values).max() < 16


def _outside(values):
    """Return the share of values that would be cut off."""
    return ((values < -1) | (values > 256)).mean()


def drawn_from_seed(layer):
    """Return a graph function (batch, seed [2]) → the layer's output, a function of both alone.

    In a tf.data pipeline, many threads would use a layer's own generators in an arbitrary order. The
    layer is changed permanently: all its draws come from the seed of the call.
    """
    import tensorflow as tf

    from keras_transfer.utils.keras_versions import redirect_draws, redirect_global_draws

    class Draws:
        def next(self, ordered=True):
            self.count += 1
            return tf.random.fold_in(self.seed, self.count)

    draws = Draws()
    redirect_draws(layer, draws.next)

    def call(batch, seed):
        draws.seed, draws.count = tf.cast(seed, tf.int64), 0
        with restored():
            redirect_global_draws(draws)  # of layers without a generator
            # AugMix draws its operations with `random`, once, while the graph is traced.
            random.seed(0)
            return layer(batch, training=True)

    return call


def _anonymous(fields):
    """Return the fields without seeds and with names that do not count layers."""
    names = {}

    def collect(value):
        if isinstance(value, dict):
            config, kind = value.get("config"), value.get("class_name", "DTypePolicy")
            named = isinstance(config, dict) and "name" in config
            if named and not kind.endswith("DTypePolicy"):  # whose name is its value
                names.setdefault(config["name"], f"layer_{len(names)}")
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    def renamed(value, key=None):
        if isinstance(value, dict):
            return {k: None if k == "seed" else renamed(v, k) for k, v in value.items()}
        if isinstance(value, list):  # a model's graph also contains layer names
            return [renamed(inner) for inner in value]
        fixed = key in ("class_name", "module", "registered_name")
        return names.get(value, value) if isinstance(value, str) and not fixed else value

    collect(fields)
    return renamed(fields)


def _build_layer(fields):
    import keras

    from keras_transfer.utils.keras_versions import inner_layers

    try:
        with restored():  # a layer without a seed draws one
            layer = keras.saving.deserialize_keras_object(fields, safe_mode=True)
    except Exception as error:  # Keras raises many types
        raise InputError(
            f"augment: the Keras layer cannot be rebuilt: {_one_line(error)} (a custom class needs "
            "keras.saving.register_keras_serializable)"
        ) from None
    if not isinstance(layer, keras.layers.Layer):
        raise InputError(f"augment: {layer!r} is not a Keras layer")
    for inner in inner_layers(layer):
        inner.dtype_policy = "float32"  # half precision is for models; pixels have 256 values
    return layer


def _one_line(value):
    return " ".join(str(value).split())[:1000]
