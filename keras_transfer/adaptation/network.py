"""A model cut at its features, sharing the weights; and a map of the features for the report."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_transfer.advisor.distances import Estimate, proxy_a_distance
from keras_transfer.advisor.inputs import random_sample
from keras_transfer.data.examples import Examples
from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import Inference, folded
from keras_transfer.models.builders import head_layers, head_of
from keras_transfer.models.framing import framing_of
from keras_transfer.models.graph import clone_with
from keras_transfer.models.heads import BOTTLENECK
from keras_transfer.models.stages import backbone_of
from keras_transfer.utils.files import read_arrays, write_arrays

LAST = "last"
MOST_FEATURES = 500  # images per domain in a feature map
_COMPONENTS = 50  # principal components passed to t-SNE
_LEAST_TSNE = 20  # images; fewer are placed by their principal components


# -- cutting --------------------------------------------------------------------------------------


def single_label_head(model: keras.Model):
    """Return the head of a model, or raise InputError unless it is a single single-label one."""
    head = head_of(model)
    if head.task != "single_label":
        raise InputError(
            f"Adaptation needs a model that predicts one class per example, not {head.task}: give the "
            "model a Classification head."
        )
    return head


def cut_head(model: keras.Model, feature_layer: str | None = None) -> tuple[list, list]:
    """Return (layers from the backbone to the features, layers from there to the logits).

    Args:
        model: from `build_model`, with one head.
        feature_layer: layer of the head that outputs the features [N, D]. By default the bottleneck
            if the head has one, else the flattened output of the backbone. `LAST` means the input of the
            last layer.

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
            f"The head has no layer '{feature_layer}' before its last one. Choose from "
            f"{', '.join(names[:-1])}."
        )
    cut = 0 if feature_layer is None else names.index(feature_layer) + 1
    return layers[:cut], layers[cut:]


def feature_models(
    model: keras.Model, feature_layer: str | None = None, *, frozen: int = 0, fold: bool = False
) -> tuple[keras.Model, keras.Model]:
    """Return (images [N, H, W, 3] → features [N, D], features → logits [N, C]) on shared weights.

    Args:
        model, feature_layer: see `cut_head`.
        frozen: number of frozen leading stages; they run in inference mode, with BatchNorm folded
            into the convolutions.
        fold: also fold the BatchNorm of the other stages, which must be frozen.
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
    """Return images → features as in `feature_models`, with separate BatchNorm statistics.

    Everything else, including scales and offsets, is shared.
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
    """Return (symbolic images, activations after the frozen stages, model of the other stages)."""
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
    """A BatchNorm that shares scale and offset with another one, but not the statistics."""

    def __init__(self, norm):
        config = {**norm.get_config(), "name": f"{norm.name}_other", "dtype": norm.dtype_policy}
        super().__init__(**{**config, "scale": False, "center": False})
        self.momentum = min(self.momentum, 0.9)  # it learns within this training only
        self.shared = norm

    def build(self, input_shape):
        super().build(input_shape)
        # Through NumPy, because on JAX two variables would share a buffer and free it twice.
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


# -- feature map ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of images of both domains, reduced to two dimensions.

    Attributes:
        places: float [N + M, 2], the source first.
        labels: int [N], classes of the source images.
        distance: between the domains, computed on the full features (`proxy_a_distance`); None if
            a domain has fewer than five images.
        how: name of the reduction.
    """

    places: np.ndarray
    labels: np.ndarray
    distance: Estimate | None
    how: str


def feature_map(
    model: keras.Model,
    source: Examples,
    target: Examples,
    *,
    batch_size: int = 32,
    most: int = MOST_FEATURES,
    seed: int = 0,
) -> FeatureMap:
    """Map the features that adaptation aligns, for images of both domains, to two dimensions.

    Args:
        model: from `build_model`, with one single-label head.
        source, target: a random sample of `most` images is taken of each; target labels are ignored.
        batch_size: images per batch.
        most: images per domain, ≥ 1.
        seed: of the sample and of t-SNE.
    """
    encoder, _ = feature_models(model)
    samples = [random_sample(examples, most, seed) for examples in (source, target)]
    framing = framing_of(model)
    a, b = (_features(encoder, sample, framing, batch_size) for sample in samples)
    distance = proxy_a_distance(a, b, seed=seed) if min(len(a), len(b)) >= 5 else None
    places, how = _in_two_dimensions(np.concatenate([a, b]).astype("float64"), seed)
    return FeatureMap(places, np.asarray(samples[0].labels), distance, how)


def _features(encoder, examples, framing, batch_size):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.evaluation.measures import predict_batches

    batches = pipeline.batches(examples, image_size=framing, batch_size=batch_size)
    return predict_batches(encoder, batches)[1]


def _in_two_dimensions(features, seed):
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    few = len(features) < _LEAST_TSNE
    reduced = PCA(min(2 if few else _COMPONENTS, *features.shape), random_state=seed)
    places = reduced.fit_transform(features)
    if few:
        return np.pad(places, ((0, 0), (0, 2 - places.shape[1]))), "principal components"
    perplexity = min(30.0, (len(features) - 1) / 4)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    # t-SNE takes many small steps: on a busy machine its threads mostly wait for each other.
    with threadpool_limits(1):
        places = tsne.fit_transform(places)
    return places, "t-SNE (distances between groups say little)"


def write_feature_maps(path: Path, before: FeatureMap, after: FeatureMap) -> None:
    """Save both maps in one .npz file."""
    arrays = {}
    for when, found in (("before", before), ("after", after)):
        distance = found.distance and [found.distance.value, found.distance.error]
        arrays[f"{when}/places"], arrays[f"{when}/labels"] = found.places, found.labels
        arrays[f"{when}/distance"] = np.array(distance or [], "float64")
        arrays[f"{when}/how"] = np.array(found.how)
    write_arrays(path, arrays)


def read_feature_maps(path: Path) -> tuple[FeatureMap, FeatureMap]:
    """Load the maps (before, after) from a file of `write_feature_maps`."""
    arrays = read_arrays(path)

    def read(when):
        distance = arrays[f"{when}/distance"].tolist()
        return FeatureMap(
            arrays[f"{when}/places"],
            arrays[f"{when}/labels"],
            Estimate(*distance) if distance else None,
            str(arrays[f"{when}/how"]),
        )

    return read("before"), read("after")
