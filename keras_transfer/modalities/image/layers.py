"""A Keras layer as augmentation, its draws a function of the image's seed alone."""

import json
import random
from dataclasses import dataclass

from keras_transfer.errors import InputError


@dataclass(frozen=True)
class KerasLayer:
    """A layer of Keras: `RandomRotation`, `RandAugment`, a `Pipeline`, a `Sequential`, or one's own.

    It gets the image as evaluation has it, resized and cropped, float32 [1, S, S, 3] with values
    0-255, and is called with `training=True`.

    Attributes:
        text: what `keras.saving.serialize_keras_object` gives, as JSON, without seeds, which mean
            nothing here, and with names that depend on the layer alone. Two with the same text are
            equal.
    """

    text: str

    @classmethod
    def of(cls, layer) -> "KerasLayer":
        """Writes a layer down; the layer itself is never called.

        Raises:
            InputError: it is no layer, or cannot be made again from what is written down.
        """
        import keras

        try:
            fields = keras.saving.serialize_keras_object(layer)
            text = json.dumps(fields, sort_keys=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"augment: the layer cannot be written down ({_one_line(error)}); give its class a "
                "get_config"
            ) from None
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, fields: dict) -> "KerasLayer":
        """Takes back `to_dict`. Keras makes its own and registered classes only, and no Lambda.

        Raises:
            InputError: no such layer, or arguments that it does not take.
        """
        _made(fields)
        return cls(json.dumps(_anonymous(fields), sort_keys=True))

    def to_dict(self) -> dict:
        return json.loads(self.text)

    @property
    def flip(self) -> bool:
        """Whether it may exchange left and right."""
        return any(
            getattr(layer, "mode", "vertical") != "vertical"
            for layer in _made(self.to_dict())._flatten_layers()
            if type(layer).__name__ == "RandomFlip"
        )

    def varied(self, size: int):
        """A graph function (image uint8 [size, size, 3], seed [2]) → float32 [h, w, 3].

        Raises:
            InputError: the layer fails on an image, or makes something else of it.
        """
        import tensorflow as tf

        layer = _made(self.to_dict())
        try:
            sample = layer(tf.zeros([1, size, size, 3]), training=True)
        except Exception as error:  # the user's
            raise InputError(
                f"augment: layer {layer.name} failed on an image of {size}x{size}: "
                f"{type(error).__name__}: {_one_line(error)}"
            ) from None
        if len(sample.shape) != 4 or sample.shape[0] != 1 or sample.shape[3] != 3:
            raise InputError(
                f"augment: layer {layer.name} made {list(sample.shape)} of an image "
                f"{[1, size, size, 3]}; it must give [1, height, width, 3]"
            )
        return drawn_from_seed(layer)


def drawn_from_seed(layer):
    """A graph function (batch, seed [2]) → the layer's output, a function of the two alone.

    In a tf.data pipeline a layer's own generators would be asked by many threads at once, in an
    order that nobody fixes.

    Args:
        layer: is changed for good: all its draws come from the seed of the call.
    """
    import tensorflow as tf
    from keras.src.random.seed_generator import global_seed_generator

    class Draws:
        def next(self, ordered=True):
            self.count += 1
            return tf.random.fold_in(self.seed, self.count)

    draws = Draws()
    for inner in layer._flatten_layers():
        for generator in inner._seed_generators:
            generator.next = draws.next
        if hasattr(inner, "_get_seed_generator"):
            # Layers for tf.data make another generator where Keras runs on another backend.
            inner._get_seed_generator = lambda backend=None, own=inner: own.generator

    def call(batch, seed):
        draws.seed, draws.count = tf.cast(seed, tf.int64), 0
        shared = global_seed_generator()  # of layers that name no generator
        shared.next = draws.next
        # AugMix draws its operations with this, once, while the graph is made.
        state = random.getstate()
        random.seed(0)
        try:
            return layer(batch, training=True)
        finally:
            random.setstate(state)
            del shared.next

    return call


def _anonymous(fields):
    """The same layer, without what differs from one making of it to the next."""
    names = {}

    def find(value):
        if isinstance(value, dict):
            config, kind = value.get("config"), value.get("class_name", "DTypePolicy")
            named = isinstance(config, dict) and "name" in config
            if named and not kind.endswith("DTypePolicy"):  # whose name is its value
                names.setdefault(config["name"], f"layer_{len(names)}")
            for inner in value.values():
                find(inner)
        elif isinstance(value, list):
            for inner in value:
                find(inner)

    def renamed(value, key=None):
        if isinstance(value, dict):
            return {k: None if k == "seed" else renamed(v, k) for k, v in value.items()}
        if isinstance(value, list):  # a model's graph, too, names its layers
            return [renamed(inner) for inner in value]
        in_place = key not in ("class_name", "module", "registered_name")
        return names.get(value, value) if isinstance(value, str) and in_place else value

    find(fields)
    return renamed(fields)


def _made(fields):
    import keras

    try:
        layer = keras.saving.deserialize_keras_object(fields, safe_mode=True)
    except Exception as error:  # Keras raises many types
        raise InputError(
            f"augment: no Keras layer can be made of this: {_one_line(error)} (a class of your own "
            "needs keras.saving.register_keras_serializable)"
        ) from None
    if not isinstance(layer, keras.layers.Layer):
        raise InputError(f"augment: {layer!r} is no Keras layer")
    for inner in layer._flatten_layers():
        inner.dtype_policy = "float32"  # half precision is for models; pixels have 256 values
    return layer


def _one_line(error):
    return " ".join(str(error).split())[:500]
