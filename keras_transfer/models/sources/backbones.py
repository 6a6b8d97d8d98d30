"""Backbones by name, whatever their source: checks without Keras, and building.

The sources are `applications` (names of the table), `own` (files, runs and models) and `keras_hub`
(presets, addresses, folders of presets, and models of KerasHub).
"""

import os

from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import (
    BACKBONES,
    backbone_from_application,
    check_image_size,
    check_own_weights,
    check_source_model,
    check_weights,
    find_spec,
    is_source_model,
)
from keras_transfer.models.sources.presets import PRESETS, check_preset, is_preset, kind_of_preset
from keras_transfer.models.sources.timm import find_timm, is_timm, timm_backbone
from keras_transfer.utils.image_sizes import checked_size, size_of


def names_of(backbone) -> list:
    """Return the backbones that a name such as `"mobilenet+resnet50"`, or a list, stands for."""
    if isinstance(backbone, str) and not is_source_model(backbone) and not is_preset(backbone):
        return backbone.split("+")
    return list(backbone) if isinstance(backbone, (list, tuple)) else [backbone]


def check_several(names: list) -> None:
    """Raise InputError if a list of backbones is empty or contains one twice."""
    texts = [name if isinstance(name, str) else repr(name) for name in names]
    if not names or len(set(texts)) < len(texts):
        raise InputError(f"Backbones must be one or more different ones, not {', '.join(texts)!r}.")


def check_backbone(backbone: str, image_size: int | str | None = None, weights="imagenet") -> None:
    """Check everything that can be checked before Keras is imported and the data are known.

    Raises:
        InputError: unknown name, invalid source model, an image size below the family's minimum, or
            unavailable weights.
    """
    image_size = checked_size(image_size)
    names = names_of(backbone)
    check_several(names)
    for name in names:
        if table := timm_backbone(name):
            check_own_weights(name, weights)
            check_image_size(find_spec(table), image_size)
            find_timm(name, find_spec(table))
        elif is_preset(name):
            check_own_weights(name, weights)
            check_preset(os.fspath(name))
        elif is_source_model(name):
            check_own_weights(name, weights)
            check_source_model(name)
        else:
            spec = find_spec(name)
            check_image_size(spec, image_size)
            if weights == "imagenet":
                check_weights(spec)
            elif is_timm(weights):
                find_timm(weights, spec)


def check_kind(backbone, modality) -> None:
    """Raise InputError if a backbone, as far as its name tells it, does not read a modality's examples.

    Args:
        backbone: as for `build_backbone`.
        modality: a `Modality`.
    """
    for name in names_of(backbone):
        kind = _kind_of(name)
        if kind is not None and kind != modality.reads:
            raise InputError(
                f"The backbone '{name}' reads {kind}s, but these are {modality.many}: `keras-transfer "
                f"backbones --source hub --kind {modality.reads}` lists those that read them."
            )


def require_encoder_name(modality, option: str) -> None:
    """Raise InputError if a modality's backbones have to be named, because none of the table reads it."""
    if modality.reads != "image":
        raise InputError(
            f"Features of {modality.many} need an encoder: name one with {option} (backbone=… in Python); "
            f"`keras-transfer backbones --source hub --kind {modality.reads}` lists them."
        )


def _kind_of(name) -> str | None:
    """Return `"image"` or `"text"`; None if the name does not tell it."""
    if not isinstance(name, (str, os.PathLike)):
        return None
    name = os.fspath(name)
    if is_preset(name) and not timm_backbone(name):
        return kind_of_preset(name)
    return None if is_source_model(name) else "image"


def default_size(backbone: str | None) -> int | None:
    """Return the image size of a backbone's pretraining, as far as its name tells it."""
    name = timm_backbone(backbone) or backbone or ""
    spec = BACKBONES.get(name) or PRESETS.get(name)
    return spec.size if spec else None


def build_backbone(
    backbone,
    *,
    image_size=None,
    weights="imagenet",
    pooling="auto",
    taps="last",
    data=None,
    channels=None,
):
    """Build a backbone from the table or from KerasHub, or take one out of your own model.

    Args:
        backbone: a name of `BACKBONES`; `hf://timm/convnext_…`, timm's weights in it; a preset of KerasHub (a name of `PRESETS`, `hf://…`,
            `kaggle://…`, or a folder) or one of its models; or a source model as for
            `backbone_from_model`. A list of them, or names joined by `+`, makes one backbone that
            computes the features of all.
        image_size: height and width of the images, such as 224 or `"96x192"`, at least the row's `min_size`; by default the
            row's `size`, or that of the source model (of the first, if there are several). A row's for
            clips is 96, if `data` tells that these are clips.
        weights: `"imagenet"` (found in `KERAS_HOME`, or downloaded), a path to a weights file of
            the same architecture without classifier, for a ConvNeXt also timm's (a safetensors
            file or `hf://timm/…`), or None for random weights. A source model brings its own
            weights; None makes them random again.
        pooling: `"avg"` or `"max"` for features [N, D], None for a feature map [N, h, w, D]; for a
            transformer also `"class"` (the class token) and `"class+avg"`, and None for all tokens
            [N, T, D]. `"auto"` is what the family was trained with, or else `"avg"`.
        taps: `"last"` for the features of the last stage, `"all"` for mean and standard deviation
            over the positions after every stage, see `models.taps`; of texts also `"all+tfidf"`, every stage
            and TF-IDF features, see `models.tfidf`. A source model that was built with taps has them
            already, and retains them.
        data: an `ImageData` or `Examples`: what is read, which decides the default size. TF-IDF features are
            fitted to the training texts of an `ImageData`.
        channels: of the images; by default 3 (RGB), or those of the source model. For others the first
            convolution is inflated, see `models.channels.with_channels`.

    Returns:
        A `keras_transfer.models.stages.Backbone`: images [N, height, width, channels] (float or
        uint8, 0–255) to float features. The graph is the same for every `weights`.

    Raises:
        InputError: unknown name, unknown pooling or taps, an image size that the family does not
            allow, or unavailable weights.
    """
    from keras_transfer.models import TAPS, WITH_TFIDF
    from keras_transfer.models.channels import with_channels
    from keras_transfer.models.stages import Backbone
    from keras_transfer.models.taps import tapped

    image_size = checked_size(image_size)
    if taps not in TAPS:
        raise InputError(f"Unknown taps {taps!r}. Choose one of {', '.join(TAPS)}.")
    names = names_of(backbone)
    check_several(names)
    if pooling is None and len(names) > 1:
        raise InputError("Several backbones need pooling: their feature maps differ in size.")
    parts: list = []
    for name in names:
        size = image_size or (size_of(parts[0].input_shape) if parts else None)
        source, tokens = _source(name)
        resizable = source in (backbone_from_application, _backbone_from_timm)
        if size is None and data is not None and resizable:
            size = data.modality.image_size
        if source is not backbone_from_application:
            check_own_weights(getattr(name, "name", name), weights)
        # The trained features of a transformer are those of its pooling, not the mean of its tokens.
        pooled = pooling if taps == "last" or tokens else None
        part = source(name, image_size=size, weights=weights, pooling=pooled)
        parts.append(part if channels is None else with_channels(part, channels))
    if len(parts) > 1 and any(len(part.input_shape) == 2 for part in parts):
        raise InputError(
            "Several backbones read the same images: an encoder of texts stands alone."
        )
    if len(parts) == 1 and (taps == "last" or parts[0].cuts.tapped):
        return parts[0]
    for part in parts:
        if part.cuts.tapped:
            raise InputError(
                f"{part.name} has taps already: it cannot be joined to another backbone."
            )
    framing = next((part.framing for part in parts if part.framing), None)
    tfidf = _tfidf(parts[0], data) if taps == WITH_TFIDF else None
    name = "_and_".join(part.name for part in parts)
    return Backbone(*tapped(parts, taps, tfidf), name=name, framing=framing)


def _tfidf(encoder, data):
    from keras_transfer.models.framing import framing_of
    from keras_transfer.models.tfidf import fitted_tfidf

    if len(encoder.input_shape) != 2:
        raise InputError(f"TF-IDF features are for texts, but {encoder.name} reads images.")
    if data is None:
        raise InputError(
            f"taps 'all+tfidf' needs the training texts of {encoder.name}: build_model(…, data=data)."
        )
    return fitted_tfidf(data.examples["train"], framing_of(encoder))


def _backbone_from_timm(backbone, *, weights, **options):
    weights = None if weights is None else backbone
    return backbone_from_application(timm_backbone(backbone), weights=weights, **options)


def _source(backbone):
    """Return (the function that builds a backbone of its source, whether it pools tokens).

    Imports Keras.
    """
    if timm_backbone(backbone):
        return _backbone_from_timm, False
    if is_preset(backbone):
        check_preset(os.fspath(backbone))
        from keras_transfer.models.sources.keras_hub import backbone_from_preset

        return backbone_from_preset, True
    if type(backbone).__module__.partition(".")[0] == "keras_hub":
        from keras_transfer.models.sources.keras_hub import backbone_from_hub

        return backbone_from_hub, True
    if not isinstance(backbone, str) or is_source_model(backbone):
        from keras_transfer.models.sources.own import backbone_from_model

        return backbone_from_model, False
    return backbone_from_application, False
