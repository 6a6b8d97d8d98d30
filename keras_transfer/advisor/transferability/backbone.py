"""The scores of a backbone on the images of a data set, from features that are computed once."""

import os
import re
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np

from keras_transfer.advisor.transferability.scoring import score_features
from keras_transfer.advisor.transferability.table import Score, Scores
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.features.extraction import extract
from keras_transfer.features.memo import concluded, digest_of
from keras_transfer.features.pooled import averaged
from keras_transfer.features.prefix import Prefix, prefix_of
from keras_transfer.features.store import Store
from keras_transfer.models.builders import backbone_at
from keras_transfer.models.sources.applications import (
    BACKBONES,
    check_backbone,
    is_source_model,
    weights_path,
)
from keras_transfer.models.sources.build import build_backbone

_VERSION = 1  # of scores: raise it when formulas, probe or shuffles give other numbers
MOST_IMAGES = 2000
_SURE = 5  # of each class, before a large class gets more


def score_backbone(
    backbone: str | os.PathLike | keras.Model | Prefix,
    data: ImageData,
    *,
    name: str | None = None,
    image_size: int | None = None,
    network: keras.Model | None = None,
    most: int = MOST_IMAGES,
    engine: str = "auto",
    store: Store | None = None,
    shuffles: int = 99,
    seed: int = 0,
) -> Scores:
    """How well a backbone's features suit the training images, before anything is trained.

    Only the split `train` is looked at, and of it a stratified sample (see `stratified`). The
    features are those after global average pooling, found in the cache or computed into it.
    Identical files stay together in all folds. LEEP and NCE are added for a name of the table
    whose ImageNet classifier lies beside the other weights (it is not downloaded). The scores are
    kept in the store too: the same backbone on the same images and labels is not scored again.

    Args:
        backbone: a name of the table; a source model of one's own (a `.keras` file or a run
            directory); a model that has a `Backbone`; or a `Prefix`, to score the features after
            some stages.
        data: one class per image.
        name: what to call it; by default its own name, or the path of a source model.
        image_size: of the images, by default that of the ImageNet training, or of the source
            model. A model and a `Prefix` have theirs.
        network: what a name means, where it is built already.
        most: images in the sample.
        engine, store: see `features.extraction.extract`.
        shuffles, seed: see `score_features`; the seed is that of the sample too.

    Raises:
        InputError: other labels than one class per image, no training images, a single class, or
            what `build_backbone` and `extract` raise.
    """
    sample = _sample(data, most, seed)
    store = store or Store()
    file = None
    if isinstance(backbone, (str, os.PathLike)):
        backbone = os.fspath(backbone)
        check_backbone(backbone, image_size)
        if is_source_model(backbone):
            name = name or backbone  # its backbone may be called like one of the table
        else:
            file = _classifier_file(backbone)
        backbone = network or build_backbone(backbone, image_size=image_size)
    if isinstance(backbone, Prefix):
        prefix, own_name = backbone, backbone.name
    else:
        backbone = backbone_at(backbone)
        if backbone.input_shape[1] is None:
            raise InputError(
                f"The backbone '{backbone.name}' takes any image size: give a model of build_model, "
                "which has one."
            )
        prefix, own_name = prefix_of(backbone, len(backbone.stages)), backbone.name

    def compute():
        features = _features(prefix, sample, engine, store)
        classifier = None if file is None else imagenet_classifier(backbone)
        return _plain(
            score_features(
                features,
                sample.labels,
                groups=sample.copies,
                probabilities=None if classifier is None else np.asarray(classifier(features)),
                name=name or own_name,
                shuffles=shuffles,
                seed=seed,
            )
        )

    found = concluded(
        prefix,
        store,
        f"transferability {_VERSION}",
        compute,
        of=f"scores of {len(sample)} images",
        engine=engine,
        view="scores",
        sample=digest_of(sample.digests, np.asarray(sample.labels)),
        classifier=file and _stamp(file),
        shuffles=shuffles,
        seed=seed,
    )
    prior = {"parameters": prefix.model.count_params(), "multiplications": round(prefix.cost)}
    return _restored(found, name or own_name, prior)


def _features(prefix, sample, engine, store):
    """Averaged over their places, float32 [N, D]."""
    found = extract(prefix, sample, engine=engine, store=store)
    return averaged(found.gather(np.arange(len(sample))))


def _plain(scores: Scores) -> dict:
    """All but what is known without the data: name and prior."""
    plain = {key: value for key, value in vars(scores).items() if key not in ("name", "prior")}
    plain["statistics"] = scores.statistics.tolist()
    plain["scores"] = {key: asdict(score) for key, score in scores.scores.items()}
    for score in plain["scores"].values():
        if score["residuals"] is not None:
            score["residuals"] = score["residuals"].tolist()
    return plain


def _restored(plain: dict, name: str, prior: dict) -> Scores:
    scores = {key: Score(**score) for key, score in plain["scores"].items()}
    for key, score in scores.items():
        if score.residuals is not None:
            scores[key] = replace(score, residuals=np.array(score.residuals))
    statistics = np.array(plain["statistics"])
    return Scores(
        **{**plain, "scores": scores, "statistics": statistics, "name": name, "prior": prior}
    )


def stratified(labels: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Sorted positions [≤ most] of a sample in which each class has its share, but at least five
    images (or all it has), as far as `most` allows.

    Where several rows are of one image, and folds want some of each class: `solvers.some_rows`.

    Args:
        labels: int [N].
        most: size of the sample.
        seed: which images of each class.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank = np.arange(len(members))
        turn[members] = np.where(rank < _SURE, rank - _SURE, (rank + 0.5) / len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:most])


def imagenet_classifier(backbone) -> keras.Model | None:
    """Features [N, D] of a backbone of the table → probabilities [N, 1000] of the ImageNet classes.

    None where the file with the classifier is not on this machine, or the classifier does not start
    from averaged features (VGG).
    """
    spec, file = BACKBONES[backbone.name], _classifier_file(backbone.name)
    if file is None:
        return None
    whole = spec.constructor(weights=None, **spec.arguments)
    pooling, layers = _pooling(whole)
    if pooling is None:
        return None
    whole.load_weights(file)
    features = keras.Input(backbone.output_shape[1:])
    x = keras.layers.Reshape((1, 1, -1), name="as_map")(features) if pooling.keepdims else features
    # What the backbone has after its own pooling (ConvNeXt's normalisation) is not done twice.
    for layer in layers[len(_pooling(backbone)[1]) :]:
        x = layer(x)
    return keras.Model(features, x)


def _classifier_file(name) -> Path | None:
    """The weights of a row of the table with its ImageNet classifier, where they are here."""
    no_top = weights_path(BACKBONES[name])
    file = no_top.with_name(re.sub(r"_no_?top(_v2)?", "", no_top.name))
    return file if file.is_file() else None


def _stamp(file):
    found = file.stat()
    return [file.name, found.st_size, found.st_mtime_ns]


def _pooling(model):
    """(the last global average pooling or None, the layers after it)."""
    kind = keras.layers.GlobalAveragePooling2D
    place = max((i for i, x in enumerate(model.layers) if isinstance(x, kind)), default=None)
    return (None, []) if place is None else (model.layers[place], model.layers[place + 1 :])


def _sample(data, most, seed) -> Examples:
    data.require_classes("scoring backbones", "train")
    train = data.examples["train"]
    return train.take(stratified(train.labels, most, seed))
