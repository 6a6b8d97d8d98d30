"""Backbones for images of any number of channels, from weights for RGB.

The first convolution reads the colors in turn, as in timm (`in_chans`): channel i of N gets the kernel of
color i mod 3, times 3/N, so that the sum remains about the same; a single channel gets the sum of the
three kernels. The normalization in front of it has the mean and deviation of the same color; for a single
channel, the mean of the three.
"""

from dataclasses import replace

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.graph import clone_with
from keras_transfer.models.stages import Backbone

_RGB = 3


def with_channels(backbone: Backbone, channels: int) -> Backbone:
    """Return a backbone that reads images of another number of channels.

    All other layers are shared with the given backbone.

    Args:
        backbone: for RGB images.
        channels: of the images, ≥ 1.

    Raises:
        InputError: the backbone does not read RGB images, or does not begin with a convolution.
    """
    shape = backbone.input_shape
    if len(shape) == 4 and shape[-1] == channels:
        return backbone
    if len(shape) != 4 or shape[-1] != _RGB:
        raise InputError(
            f"The backbone '{backbone.name}' reads inputs of shape {shape}: only one for RGB images can "
            f"read {channels} channels."
        )
    if backbone.cuts.tapped:
        raise InputError(
            f"{backbone.name} has taps, so its channels cannot change: build it without them."
        )
    inputs = keras.Input((*shape[1:3], channels), name="images")
    features = clone_with(backbone, inputs, _Inflation(backbone.name, inputs))
    framing = backbone.framing
    if isinstance(framing, Framing):
        framing = replace(framing, channels=channels)
    return Backbone(inputs, features, name=backbone.name, framing=framing)


class _Inflation:
    """Calls the layers of a backbone, those that read the image's channels inflated."""

    def __init__(self, name, inputs):
        self.name, self.channels = name, inputs.shape[-1]
        self.order = [i % _RGB for i in range(self.channels)]  # of the colors in the next layer
        self.images = {id(inputs): inputs}  # tensors of the image's channels

    def __call__(self, layer, *args, **kwargs):
        image = args[0] if args else None
        if id(image) not in self.images:
            return layer(*args, **kwargs)
        if type(layer).__name__ == "Flip":  # to BGR: kernels are taken in that order instead
            self.order = [_RGB - 1 - color for color in self.order]
            return image
        if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1:
            return self._convolution(layer)(image)
        if getattr(layer, "weights", None):
            raise InputError(
                f"The backbone '{self.name}' does not begin with a convolution, but with the layer "
                f"{layer.name} ({type(layer).__name__}), so it cannot read {self.channels} channels: "
                "choose a convolutional network."
            )
        if isinstance(layer, keras.layers.Rescaling):
            layer = self._rescaling(layer)
        result = layer(image, *args[1:], **kwargs)
        self.images[id(result)] = result
        return result

    def _rescaling(self, layer):
        values = {name: np.asarray(getattr(layer, name)) for name in ("scale", "offset")}
        for name, value in values.items():
            if value.ndim:
                chosen = value.mean(keepdims=True) if self.channels == 1 else value[self.order]
                values[name] = chosen
        changed = {name: value.tolist() for name, value in values.items()}
        return keras.layers.Rescaling.from_config({**layer.get_config(), **changed})

    def _convolution(self, layer):
        kernel, *bias = layer.get_weights()
        if self.channels == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        else:
            kernel = kernel[:, :, self.order] * (_RGB / self.channels)
        made = type(layer).from_config(layer.get_config())
        made.build((None, None, None, self.channels))
        made.set_weights([kernel, *bias])
        return made
