"""A model cut at its features: images → features, features → logits, on the model's own weights."""

import keras
from keras import ops

from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import Inference, folded
from keras_transfer.models.builders import head_layers, head_of
from keras_transfer.models.heads import BOTTLENECK
from keras_transfer.models.stages import backbone_of, clone_with

LAST = "last"


def single_label_head(model: keras.Model):
    """The model's head; InputError where it has several, or answers something else than classes."""
    head = head_of(model)
    if head.task != "single_label":
        raise InputError(
            f"Adaptation is for models that name one class per image, not {head.task}: give the "
            "model a Classification head."
        )
    return head


def cut_head(model: keras.Model, feature_layer: str | None = None) -> tuple[list, list]:
    """(layers between the backbone and the features, layers from there to the logits).

    Args:
        model: from `build_model`, with one head.
        feature_layer: name of the head's layer that gives the features [N, D]; by default the
            bottleneck where the head has one, else the backbone (its map flattened). `LAST` is
            whatever stands before the last layer.

    Raises:
        InputError: the head has no such layer, or it is the last one.
    """
    ((_, layers),) = head_layers(model).items()
    names = [layer.name for layer in layers]
    if feature_layer == LAST:
        return layers[:-1], layers[-1:]
    if feature_layer is None:
        feature_layer = next((n for n in (BOTTLENECK, "flatten") if n in names), None)
    elif feature_layer not in names[:-1]:
        raise InputError(
            f"The head has no layer '{feature_layer}' before its last one: it has "
            f"{', '.join(names)}."
        )
    cut = 0 if feature_layer is None else names.index(feature_layer) + 1
    return layers[:cut], layers[cut:]


def feature_models(
    model: keras.Model, feature_layer: str | None = None, *, frozen: int = 0, fold: bool = False
) -> tuple[keras.Model, keras.Model]:
    """(images [N, H, W, 3] → features [N, D], features → logits [N, C]), on shared weights.

    Args:
        model, feature_layer: see `cut_head`.
        frozen: number of leading stages that do not train; they run in inference mode, BatchNorm
            folded into the convolutions.
        fold: fold the BatchNorm of the other stages too, which must be frozen there.
    """
    before, after = cut_head(model, feature_layer)
    inputs, x, suffix = _after_prefix(model, frozen)
    if suffix is not None:
        x = (folded(suffix) if fold else suffix)(x)
    encoder = keras.Model(inputs, _through(before, x), name=f"{model.name}_features")
    x = inputs = keras.Input(encoder.output_shape[1:], dtype=encoder.outputs[0].dtype)
    return encoder, keras.Model(inputs, _through(after, x), name=f"{model.name}_classifier")


def other_domain_encoder(
    model: keras.Model, feature_layer: str | None = None, *, frozen: int = 0
) -> keras.Model:
    """images → features like that of `feature_models`, but with BatchNorm statistics of its own.

    Everything else, scales and offsets too, is shared.
    """
    before, _ = cut_head(model, feature_layer)
    inputs, x, suffix = _after_prefix(model, frozen)

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization):
            return OtherDomainNorm(layer)(*args, **kwargs)
        return layer(*args, **kwargs)

    if suffix is not None:
        start = keras.Input(suffix.input_shape[1:], dtype=suffix.inputs[0].dtype)
        x = keras.Model(start, clone_with(suffix, start, call), name=f"{suffix.name}_other")(x)
    return keras.Model(inputs, _through(before, x, call), name=f"{model.name}_other_domain")


def _after_prefix(model, frozen):
    """(symbolic images, the activations after the frozen stages, the model of the others)."""
    backbone = backbone_of(model)
    inputs = keras.Input(model.input_shape[1:], name="images")
    if frozen == 0:
        return inputs, inputs, backbone
    whole = frozen == len(backbone.stages)
    prefix, suffix = (backbone, None) if whole else backbone.split(frozen)
    return inputs, Inference(folded(prefix))(inputs), suffix


def _through(layers, x, call=lambda layer, x: layer(x)):
    for layer in layers:
        x = call(layer, x)
    return x


class OtherDomainNorm(keras.layers.BatchNormalization):
    """BatchNorm with statistics of its own and the scale and offset of another one."""

    def __init__(self, norm):
        config = {**norm.get_config(), "name": f"{norm.name}_other", "dtype": norm.dtype_policy}
        super().__init__(**{**config, "scale": False, "center": False})
        self.momentum = min(self.momentum, 0.9)  # it has all to learn within this training
        self.shared = norm

    def build(self, input_shape):
        super().build(input_shape)
        # Through NumPy: JAX would have two variables share one buffer, and give it up twice.
        self.moving_mean.assign(ops.convert_to_numpy(self.shared.moving_mean))
        self.moving_variance.assign(ops.convert_to_numpy(self.shared.moving_variance))

    def call(self, inputs, training=None, mask=None):
        x = super().call(inputs, training=training, mask=mask)
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        if self.shared.scale:
            x = x * ops.cast(ops.reshape(self.shared.gamma, shape), x.dtype)
        if self.shared.center:
            x = x + ops.cast(ops.reshape(self.shared.beta, shape), x.dtype)
        return x
