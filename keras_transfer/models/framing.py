"""How a model reads images: its size and crop, and who decides the crop."""

from collections.abc import Callable

import keras

from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing, choose_crop
from keras_transfer.models.stages import Backbone
from keras_transfer.utils.console import say


def framing_of(model: keras.Model, image_size: int | None = None, data=None) -> Framing:
    """Return how images are resized for a model or a backbone.

    Args:
        image_size: by default the model's.
        data: decides the crop of a model that was built without one, see `choose_crop`; the model
            stays as it is.

    Raises:
        InputError: the model reads texts.
    """
    if len(model.input_shape) == 2:
        raise InputError(f"The model '{model.name}' reads token ids of texts, not images.")
    crop = next((backbone.crop for backbone in _backbones(model) if backbone.crop), None)
    if crop is None and data is not None:
        crop, _ = choose_crop(data, model.input_shape[1])
    return Framing(image_size or model.input_shape[1], crop)


def settle_crop(
    model: keras.Model, data, decide: Callable[[Callable], tuple] = lambda choose: choose()
) -> None:
    """Let the data decide the crop of a model that was built without one, and print why.

    Args:
        model: from `build_model`.
        data: an `ImageData` or `Examples`, see `choose_crop`.
        decide: calls the function it gets, for example on one worker only.
    """
    if framing_of(model).crop is None:
        crop, reason = decide(lambda: choose_crop(data, model.input_shape[1]))
        say(f"crop {crop}: {reason}")
        set_crop(model, crop)


def set_crop(model: keras.Model, crop: float) -> None:
    """Set the crop of a model's images."""
    for backbone in _backbones(model):
        backbone.crop = crop


def _backbones(model):
    return [part for part in [model, *model.layers] if isinstance(part, Backbone)]
