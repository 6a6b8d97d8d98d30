"""Features of both domains in two dimensions, before and after an adaptation, for the report."""

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.adaptation.network import feature_models
from keras_transfer.advisor.distances import Estimate, proxy_a_distance
from keras_transfer.data.examples import Examples
from keras_transfer.utils.files import read_arrays, write_arrays

MOST_FEATURES = 500  # images per domain
_COMPONENTS = 50  # principal components passed to t-SNE
_LEAST_TSNE = 20  # images; fewer are placed by their principal components


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
    samples = [_sampled(examples, most, seed) for examples in (source, target)]
    a, b = (_features(encoder, sample, batch_size) for sample in samples)
    distance = proxy_a_distance(a, b, seed=seed) if min(len(a), len(b)) >= 5 else None
    places, how = _in_two_dimensions(np.concatenate([a, b]).astype("float64"), seed)
    return FeatureMap(places, samples[0].labels, distance, how)


def _sampled(examples, most, seed):
    rows = np.random.default_rng(seed).permutation(len(examples))[:most]
    return examples.take(np.sort(rows))


def _features(encoder, examples, batch_size):
    from keras_transfer.data import batches as pipeline
    from keras_transfer.evaluation.measures import outputs_of

    size = encoder.input_shape[1]
    batches = pipeline.batches(examples, image_size=size, batch_size=batch_size)
    return outputs_of(encoder, batches)[1]


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
