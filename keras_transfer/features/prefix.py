"""The frozen part of a network: what it is, and what it costs."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property

import keras

from keras_transfer.models.builders import backbone_at
from keras_transfer.models.stages import Backbone, chain


@dataclass(frozen=True)
class Prefix:
    """The first stages of a backbone, from uint8 images to the activations at the cut.

    Attributes:
        model: [N, H, W, 3] → [N, …]; shares the backbone's weights.
        name: for people.
        takes: dtype of its input; what starts at a cut takes the activations there.
        engines: what was made ready to run it, by name.
    """

    model: keras.Model
    name: str
    takes: str = "uint8"
    engines: dict = field(default_factory=dict, compare=False, repr=False)

    @property
    def image_size(self) -> int:
        return self.model.input_shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the activations of one image."""
        return tuple(self.model.output_shape[1:])

    @property
    def size(self) -> int:
        """Numbers of one image's activations."""
        return math.prod(self.shape)

    @cached_property
    def cost(self) -> float:
        """Multiplications for one image, see `stage_costs`."""
        return sum(_layer_costs(self.model).values())

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the graph and all its weights; names of layers and what trains do not matter."""
        graph = _nameless(self.model.get_config())
        text = json.dumps(graph, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        for weight in self.model.weights:
            digest.update(keras.ops.convert_to_numpy(weight).tobytes())
        return digest.hexdigest()


def prefix_of(model: keras.Model, stages: int, image_size: int | None = None) -> Prefix:
    """The first `stages` stages (at least one) of a model's backbone, at one of its image sizes."""
    backbone = backbone_at(model, image_size)
    name = f"{backbone.name}, {stages} of {len(backbone.stages)} stages"
    whole = stages == len(backbone.stages)
    return Prefix(backbone if whole else backbone.split(stages)[0], name)


def stage_costs(backbone: Backbone) -> list[float]:
    """Multiplications of each stage for one image, forward: those of its weight matrices.

    Args:
        backbone: built for one image size.
    """
    costs = _layer_costs(backbone)
    return [sum(costs[id(layer)] for layer in stage.layers) for stage in backbone.stages]


def _nameless(config, places=None):
    """The configuration of a model with places in the graph for names, which Keras counts up.

    Names are told by where they stand: a layer may be called like a setting (MobileNetV3 has one
    with the name "activation").

    Args:
        places: name → place, of the operations of the model that it is a part of.
    """
    if isinstance(config, (list, tuple)):
        return [_nameless(item, places) for item in config]
    if not isinstance(config, dict):
        return config
    if "layers" in config and "output_layers" in config:
        places = {layer["name"]: i for i, layer in enumerate(config["layers"])}
    found = {}
    for key, value in config.items():
        if key in ("trainable", "name"):
            continue
        if key == "keras_history":
            found[key] = [places[value[0]], *value[1:]]
        elif key in ("input_layers", "output_layers"):
            found[key] = _placed(value, places)
        elif str(config.get("class_name")).endswith("Policy"):
            found[key] = value  # the name is what it says
        else:
            found[key] = _nameless(value, places)
    return found


def _placed(outputs, places):
    """[name, node, tensor], or nested lists and dicts of such, with the place for the name."""
    if isinstance(outputs, dict):
        return {key: _placed(value, places) for key, value in outputs.items()}
    if outputs and isinstance(outputs[0], str):
        return [places[outputs[0]], *outputs[1:]]
    return [_placed(value, places) for value in outputs]


def _layer_costs(model):
    costs = {}
    for node in (node for piece in chain(model) for node in piece):
        weights = getattr(node.operation, "weights", ())
        places = math.prod(node.output_tensors[0].shape[1:-1]) if weights else 0
        matrices = sum(math.prod(w.shape) for w in weights if len(w.shape) > 1)
        costs[id(node.operation)] = costs.get(id(node.operation), 0.0) + float(places * matrices)
    return costs
