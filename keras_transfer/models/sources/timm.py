"""Weights of timm's ConvNeXt models, from their safetensors files, in the graph of `keras.applications`.

ImageNet-21k, CLIP and DINOv3 weights exist for PyTorch only. The networks are the same: only names
and the order of axes differ. PyTorch is not needed.
"""

import re
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import BACKBONES, BackboneSpec
from keras_transfer.models.sources.hub_files import HUB, downloaded
from keras_transfer.utils.console import listed
from keras_transfer.utils.extras import require

_FILE = "model.safetensors"
# Path of a Keras weight → name of timm's module; the last part of both names is the parameter.
_MODULES = (
    (r"_stem/.*conv/", "stem.0"),
    (r"_stem/.*layernorm/", "stem.1"),
    (r"_downsampling_layernorm_(\d)/", "stages.{}.downsample.0"),
    (r"_downsampling_conv_(\d)/", "stages.{}.downsample.1"),
    (r"_stage_(\d)_block_(\d+)_depthwise_conv/", "stages.{}.blocks.{}.conv_dw"),
    (r"_stage_(\d)_block_(\d+)_layernorm/", "stages.{}.blocks.{}.norm"),
    (r"_stage_(\d)_block_(\d+)_pointwise_conv_1/", "stages.{}.blocks.{}.mlp.fc1"),
    (r"_stage_(\d)_block_(\d+)_pointwise_conv_2/", "stages.{}.blocks.{}.mlp.fc2"),
    (r"_stage_(\d)_block_(\d+)_layer_scale/", "stages.{}.blocks.{}"),
    (r"^layer_normalization", "head.norm"),
)
_PARAMETERS = {"kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
_SCALE = "gamma"  # timm's name of the layer scale, which has none in Keras


def is_timm(weights) -> bool:
    """Return whether `weights` means a safetensors file: a path or `hf://…`."""
    return str(weights).startswith(HUB) or str(weights).endswith(".safetensors")


def timm_backbone(name) -> str | None:
    """Return the backbone of the table that `hf://timm/BACKBONE.WEIGHTS` means, or None."""
    found = re.match(r"hf://timm/(convnext_\w+)", str(name))
    return found[1] if found and found[1] in BACKBONES else None


def find_timm(weights: str, spec: BackboneSpec) -> Path:
    """Return the local safetensors file that `weights` means; download it if need be.

    Args:
        weights: a path, or `hf://org/name`, a repository of Hugging Face.
        spec: the backbone that the weights are for.

    Raises:
        InputError: the backbone is not a ConvNeXt, safetensors is not installed, or there is no file.
    """
    if spec.module != "convnext":
        raise InputError(
            f"Weights {weights} are for ConvNeXt backbones (convnext_tiny to convnext_xlarge), not "
            f"{spec.name}."
        )
    require("safetensors", f"Weights {weights}")
    if not weights.startswith(HUB):
        if not Path(weights).is_file():
            raise InputError(f"No weights file {weights}: pass a path, 'imagenet' or None.")
        return Path(weights)
    return downloaded(weights, _FILE)


def load_timm(model, file: Path, name: str) -> None:
    """Set the weights of a ConvNeXt without classifier from timm's.

    Args:
        model: of `keras.applications`.
        file: the safetensors file.
        name: of the backbone, for messages.

    Raises:
        InputError: the file is damaged, or its tensors are not those of this network.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except (
        SafetensorError,
        TypeError,
        KeyError,
    ) as error:  # the last two: an unknown number format
        raise InputError(f"Cannot read {file}: {error}.") from None
    tensors = {key: value for key, value in tensors.items() if not key.startswith("head.fc.")}
    wanted = {_timm_name(weight.path): weight for weight in model.weights}
    missing, unknown = (
        sorted(wanted.keys() - tensors.keys()),
        sorted(tensors.keys() - wanted.keys()),
    )
    if missing or unknown:
        part = f"lacks {listed(missing, 2)}" if missing else f"has {listed(unknown, 2)} too"
        raise InputError(f"{file} is not timm's weights of {name}: it {part}.")
    values = {key: _keras_axes(tensors[key], len(w.shape)) for key, w in wanted.items()}
    for key, weight in wanted.items():
        if values[key].shape != tuple(weight.shape):
            raise InputError(
                f"{file} is not timm's weights of {name}: {key} has the shape "
                f"{tensors[key].shape}, which does not fit {tuple(weight.shape)}."
            )
    for key, weight in wanted.items():
        weight.assign(values[key])


def _timm_name(path):
    for pattern, module in _MODULES:
        if found := re.search(pattern, path):
            places = [int(number) for number in found.groups()]
            if "downsample" in module:
                places[0] += 1  # timm counts it as the start of the next stage
            scale = pattern.endswith("_layer_scale/")
            parameter = _SCALE if scale else _PARAMETERS[path.rpartition("/")[2]]
            return f"{module.format(*places)}.{parameter}"
    raise AssertionError(f"no rule for {path}")


def _keras_axes(tensor, dimensions):
    """Return a PyTorch weight [out, in, …] as Keras stores it, […, in, out]."""
    if tensor.ndim > dimensions:  # a dense layer written as a convolution of 1×1
        tensor = tensor.reshape(tensor.shape[:dimensions])
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    return tensor.T
