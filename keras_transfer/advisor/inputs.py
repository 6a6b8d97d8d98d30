"""Prepare what the measurements take: a sample of the examples, and a backbone of one image size.

Importing this module loads neither Keras nor TensorFlow.
"""

import os

import numpy as np

from keras_transfer.advisor.rules import Facts
from keras_transfer.data.examples import Examples, ImageData, map_labels, rough_classes
from keras_transfer.data.splits import stratified_sample
from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, open_framing
from keras_transfer.models.sources.backbones import check_backbone


def distinct_rows(examples: Examples) -> np.ndarray:
    """Return the sorted positions of the examples that remain when each copy is dropped."""
    return np.sort(np.unique(examples.digests, return_index=True)[1])


def random_sample(examples: Examples, most: int, seed: int) -> Examples:
    """Return at most `most` examples, drawn at random, in their own order."""
    rows = np.random.default_rng(seed).permutation(len(examples))[:most]
    return examples.take(np.sort(rows))


def comparable_sample(data: ImageData, most: int, seed: int) -> Examples:
    """Return at most `most` training examples, without classes that have fewer than two groups.

    These would make folds impossible. The others are numbered anew.
    """
    train = data.examples["train"]
    classes = train.labels
    if data.task == "single_label" and not isinstance(classes, dict) and len(train) > most:
        whole = train
        train = whole.take(stratified_sample(classes, most, groups=whole.together, seed=seed))
        if _in_groups(train).sum() / len(train) < _in_groups(whole).mean():
            # Large groups, such as speakers, fill the sample: some examples of each have to do.
            train = whole.take(stratified_sample(classes, most, seed=seed))
    else:
        train = random_sample(train, most, seed)
    while not (enough := _in_groups(train)).all():  # of several heads, each may lack others
        train = train.take(np.flatnonzero(enough))
    return Examples(train.images, map_labels(_renumbered, train.labels), train.groups)


def _in_groups(examples) -> np.ndarray:
    """Return for each example whether its classes have two groups or more, bool [N]."""
    labels = examples.labels
    enough = np.ones(len(examples), bool)
    for classes in labels.values() if isinstance(labels, dict) else [labels]:
        if classes.ndim == 1 and len(classes):
            pairs = np.unique(np.stack([classes, examples.together]), axis=1)
            enough &= np.bincount(pairs[0])[classes] > 1
    return enough


def _renumbered(labels):
    if labels.ndim > 1:
        return labels
    return np.unique(labels, return_inverse=True)[1].astype(labels.dtype)


def facts_of(data: ImageData, backbone, seed: int) -> Facts:
    """Return what the textbooks' rules ask of the data, for any task (of several heads, the first)."""
    from keras_transfer.advisor.similarity import activation_shift

    train = data.examples["train"]
    classes = rough_classes(train.labels)
    numbers = data.task == "regression"
    per_class = None if numbers else len(train) / max(1, len(np.unique(classes)))
    return Facts(len(train), per_class, activation_shift(backbone, train, seed=seed))


def pooled_features(prefix, examples: Examples, engine: str, store) -> np.ndarray:
    """Return the features of examples after a prefix, averaged over positions: float32 [N, D]."""
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import averaged

    activations = extract(prefix, examples, engine=engine, store=store)
    return averaged(activations.gather(np.arange(len(examples))))


def check_classes(data: ImageData, purpose: str) -> np.ndarray:
    """Return the distinct training rows after checking that classes can be told apart on them.

    Of several labels or heads the first counts, and of numbers the side of the median.

    Args:
        purpose: completes the error messages, for example "advice".

    Raises:
        InputError: fewer than two classes have two different training examples, or the train split is missing.
    """
    train = data.require("train")
    rows = distinct_rows(train)
    counts = np.bincount(rough_classes(train.labels)[rows])
    usable = (counts > 1).sum()
    if usable < 2:
        raise InputError(
            f"{data.title}: {usable} of {max(len(counts), len(data.class_names))} classes have two different training "
            f"{data.modality.many}, but {purpose} needs at least two such classes. Add {data.modality.many}."
        )
    return rows


def sized_backbone(
    backbone,
    image_size: int | str | Framing | None = None,
    data=None,
    *,
    taps: str = "last",
    weights: str | None = "imagenet",
):
    """Return the `Backbone` that a name, a path or a model stands for, at one image size and crop.

    A given model stays as it is.

    Args:
        backbone: a backbone name, the path of a source model or a run, a model of `build_model`,
            or a `Backbone`.
        image_size: by default that of the pretraining or of the model; a framing also says the rest.
        data: decides a framing that is open, see `models.framing.framing_of`.
        taps, weights: of a backbone that is built here, see `build_backbone`.

    Raises:
        InputError: the backbone is unknown, cannot be built at this size, or has no fixed size.
    """
    framing = open_framing(image_size)
    if isinstance(backbone, (str, os.PathLike)):
        backbone = os.fspath(backbone)
        check_backbone(backbone, framing.built_size, weights)
        from keras_transfer.models.sources.backbones import build_backbone

        found = build_backbone(
            backbone,
            image_size=framing.built_size,
            taps=taps,
            weights=weights,
            channels=framing.built_channels,
            data=data,
        )
    else:
        from keras_transfer.models.builders import backbone_at

        found = backbone_at(backbone, framing.built_size)
    from keras_transfer.models.framing import framing_of, modality_of

    if found.input_shape[1] is None and not modality_of(found).any_length:
        raise InputError(
            f"The backbone '{found.name}' takes any image size. Pass a model of build_model, which "
            "has a fixed size."
        )
    if not framing.settled:
        framing = framing.settled_as(framing_of(found, data=data)).at(framing.size)
    same = not framing.settled or framing.at(None) == found.framing
    return found if same else found.with_framing(framing.at(None))
