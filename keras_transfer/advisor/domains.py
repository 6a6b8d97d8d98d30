"""Measure how much two datasets differ to a backbone, and whether domain adaptation is worth trying."""

from dataclasses import asdict, dataclass

import numpy as np

from keras_transfer.advisor.distances import (
    Estimate,
    frechet_by_chance,
    frechet_distance,
    mmd,
    proxy_a_distance,
)
from keras_transfer.advisor.inputs import distinct_rows, pooled_features, sized_backbone
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.splits import stratified_sample
from keras_transfer.errors import InputError
from keras_transfer.features.probe import cross_validated_probe
from keras_transfer.utils.console import Table

MAX_EXAMPLES = 1000
_VERSION = 2  # of the stored results; increase it when formulas, folds or sample change
_COMPONENTS = 256  # principal components for the Fréchet distance
_MIN_EXAMPLES = 5  # per domain
# Limits of the verdict. They are not calibrated on gains from adaptation, see
# docs/adaptation-measure.md.
_SIGNIFICANCE = 0.01  # of the permutation test
# At this proxy-A distance the domain of 3 in 4 images is recognized. Hands of other people in front of
# the same wall have a distance of 0.46 and need no adaptation.
_MIN_DISTANCE = 1.0
_MIN_LEARNED = 0.5  # share of the errors of chance that a probe on the source must avoid


@dataclass(frozen=True)
class DomainDistance:
    """Distances between a source and a target domain on a backbone's features.

    Attributes:
        source, target: where the images are from.
        backbone: its name.
        image_size: height and width of the images.
        images: numbers of distinct images of source and target.
        proxy_a: proxy-A distance, from 0 (the domains cannot be told apart) to 2.
        mmd: squared maximum mean discrepancy, with the p-value of its permutation test.
        frechet: squared Fréchet distance, in units of the source's total variance.
        frechet_by_chance: the same for random divisions of the pooled images.
        source_accuracy: accuracy of a cross-validated linear probe on the source's classes, 0–1;
            None if fewer than two classes have two images.
        source_error: standard error of `source_accuracy`.
        chance: accuracy of always predicting the source's largest class.
    """

    source: str
    target: str
    backbone: str
    image_size: int | str
    images: tuple[int, int]
    proxy_a: Estimate
    mmd: Estimate
    frechet: float
    frechet_by_chance: float
    source_accuracy: float | None
    source_error: float | None
    chance: float | None

    @property
    def differ(self) -> bool:
        """True if the domains differ significantly and by enough to matter.

        The permutation test of MMD is significant at the 1 % level, and a linear classifier recognizes
        the domain of 3 in 4 images (proxy-A distance 1), by more than two standard errors.
        """
        apart = self.proxy_a.value >= max(_MIN_DISTANCE, 2 * self.proxy_a.error)
        return bool(apart and self.mmd.p_value is not None and self.mmd.p_value <= _SIGNIFICANCE)

    @property
    def separable(self) -> bool | None:
        """True if a linear probe tells the source's classes apart; None if there are no classes.

        It must avoid half of the errors of chance, and beat chance by two standard errors.
        """
        if self.source_accuracy is None or self.source_error is None or self.chance is None:
            return None
        above = self.source_accuracy - self.chance
        return bool(above >= _MIN_LEARNED * (1 - self.chance) and above > 2 * self.source_error)

    @property
    def worth_trying(self) -> bool:
        """True if the domains differ and the source's classes can be told apart."""
        return bool(self.differ and self.separable)

    @property
    def verdict(self) -> str:
        """The conclusion in a few sentences."""
        distances = (
            f"(proxy-A distance {self.proxy_a.value:.2f} ± {self.proxy_a.error:.2f} of 2, MMD "
            f"p = {self.mmd.p_value:.3f})"
        )
        if not self.differ:
            return (
                f"Adaptation is not worth trying: to {self.backbone}, the target looks much like "
                f"the source {distances}. A model trained on the source should do as well on the "
                "target."
            )
        if self.source_accuracy is None or self.source_error is None or self.chance is None:
            return (
                f"The domains differ {distances}. Whether adaptation is worth trying cannot be "
                "determined without at least two classes of two images in the source."
            )
        probe = (
            f"a linear probe reaches {100 * self.source_accuracy:.1f} ± "
            f"{100 * self.source_error:.1f} %, chance is {100 * self.chance:.1f} %"
        )
        if not self.separable:
            return (
                f"Adaptation is not worth trying with the features of {self.backbone}: the domains "
                f"differ {distances}, but even the source's classes can hardly be told apart "
                f"({probe}). Train on the source first, or choose another backbone."
            )
        return (
            f"Adaptation is worth trying: to {self.backbone}, the domains differ {distances}, and the "
            f"source's classes can be told apart ({probe})."
        )

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {
            **asdict(self),
            "images": list(self.images),
            "differ": self.differ,
            "separable": self.separable,
            "worth_trying": self.worth_trying,
            "verdict": self.verdict,
        }

    def table(self) -> str:
        """Return a Markdown table with one row per distance."""
        rows = [
            ("proxy-A", _with_error(self.proxy_a), "0, at most 2"),
            ("MMD²", _with_error(self.mmd), f"0, p = {self.mmd.p_value:.3f}"),
            ("Fréchet", f"{self.frechet:.4f}", f"{self.frechet_by_chance:.4f} by chance"),
        ]
        return Table(["distance", "value", "without a difference"], rows).markdown()

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def _with_error(estimate):
    return f"{estimate.value:.4f} ± {estimate.error:.4f}"


def domain_distance(
    data_a: ImageData | Examples,
    data_b: ImageData | Examples,
    *,
    backbone,
    image_size: int | str | None = None,
    most: int = MAX_EXAMPLES,
    seed: int = 0,
    engine: str = "auto",
    store=None,
) -> DomainDistance:
    """Measure how much a target domain differs from a source domain to a backbone.

    Features are those after global average pooling; they are read from the store or computed and
    stored, and so is the result. Identical images of a domain count once. Labels of the target are not
    read.

    Args:
        data_a: the source. Of an `ImageData`, the training images are used (or the first split if
            there is no `train`). If it has one class per example, the verdict includes a probe.
        data_b: the target, in the same form; its labels may be anything.
        backbone: a backbone name, the path of a source model or a run, or a model that contains a
            `Backbone`.
        image_size: by default that of the pretraining or of the model.
        most: maximum number of images per domain, drawn at random; in the source by class.
        seed: of samples, folds and permutations.
        engine, store: see `features.extraction.extract`.

    Raises:
        InputError: a domain has fewer than five distinct images; or the errors of `build_backbone`
            and `extract`.
    """
    source, labels = _sample(data_a, "source", most, seed, classes=True)
    target, _ = _sample(data_b, "target", most, seed, classes=False)
    network = sized_backbone(backbone, image_size, data_a)
    # Deferred, so that invalid input is reported before Keras is imported.
    from keras_transfer.features.prefix import prefix_of
    from keras_transfer.features.store import Store, concluded, digest_of

    prefix = prefix_of(network, len(network.stages))
    store = store or Store()

    def compute():
        features = [pooled_features(prefix, part, engine, store) for part in (source, target)]
        groups = np.unique([*source.digests, *target.digests], return_inverse=True)[1]
        return _measure(*features, labels, groups, seed)

    stored = concluded(
        prefix,
        store,
        f"domain distance {_VERSION}",
        compute,
        of=f"distance of {len(source)} and {len(target)} images",
        engine=engine,
        view="distances",
        source=digest_of(source.digests, np.zeros(0) if labels is None else labels),
        target=digest_of(target.digests),
        seed=seed,
    )
    estimates = {name: Estimate(**stored[name]) for name in ("proxy_a", "mmd")}
    return DomainDistance(
        source=_name(data_a, "source"),
        target=_name(data_b, "target"),
        backbone=network.name,
        image_size=prefix.image_size,
        images=(len(source), len(target)),
        **{**stored, **estimates},
    )


def _measure(a, b, labels, groups, seed):
    """Return the numbers of a `DomainDistance` as plain data, from features [N, D] and [M, D].

    `labels` are the classes of the source or None; rows of one image share a group.
    """
    from sklearn.decomposition import PCA

    joined = np.concatenate([a, b]).astype("float64")
    components = min(_COMPONENTS, *joined.shape)
    reduced = PCA(components, random_state=seed).fit_transform(joined)
    parts = reduced[: len(a)], reduced[len(a) :]
    variance = max(float(parts[0].var(axis=0, ddof=1).sum()), 1e-12)
    probe = chance = None
    if labels is not None:
        probe = cross_validated_probe(a, labels, seed=seed)
        chance = float(np.bincount(labels).max() / len(labels))
    return {
        "proxy_a": asdict(proxy_a_distance(a, b, groups, seed=seed)),
        "mmd": asdict(mmd(a, b, seed=seed)),
        "frechet": frechet_distance(*parts) / variance,
        "frechet_by_chance": frechet_by_chance(*parts, seed=seed) / variance,
        "source_accuracy": probe and probe.accuracy,
        "source_error": probe and probe.standard_error,
        "chance": chance,
    }


def _sample(data, role, most, seed, classes):
    """Return (distinct examples, their classes int [N] or None if there are none)."""
    examples = data
    if isinstance(data, ImageData):
        examples = data.examples.get("train") or next(iter(data.examples.values()), None)
    distinct = distinct_rows(examples) if examples is not None and len(examples) else []
    if len(distinct) < _MIN_EXAMPLES:
        raise InputError(
            f"The {role} ({_name(data, role)}) has {len(distinct)} distinct images, but a distance "
            f"needs at least {_MIN_EXAMPLES} in each domain."
        )
    labels = examples.labels[distinct] if classes and _has_classes(data) else None
    if labels is not None and (np.bincount(labels) > 1).sum() < 2:
        labels = None
    if labels is None:
        rows = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:most])
    else:
        rows = stratified_sample(labels, most, seed=seed)
        labels = labels[rows]
    images = examples.images.take(distinct[rows])
    return Examples(images, np.zeros(len(rows), "int32")), labels


def _has_classes(data):
    if isinstance(data, ImageData):
        return data.task == "single_label"
    return isinstance(data.labels, np.ndarray) and data.labels.dtype.kind in "iu"


def _name(data, role):
    return data.root if isinstance(data, ImageData) else role
