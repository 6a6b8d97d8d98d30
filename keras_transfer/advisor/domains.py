"""How far two data sets are apart to a backbone, and whether adaptation is worth trying."""

import os
from dataclasses import asdict, dataclass

import numpy as np

from keras_transfer.advisor.distances import Estimate, frechet_by_chance, frechet_distance, mmd
from keras_transfer.advisor.distances import proxy_a_distance as proxy_a
from keras_transfer.advisor.inputs import distinct_rows, sized_backbone, stratified_sample
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import check_backbone

_VERSION = 2  # of the numbers: raise it when formulas, folds or sample give other ones
MOST_IMAGES = 1000
_COMPONENTS = 256  # principal components that the Fréchet distance is taken in
_LEAST = 5  # images of a domain that say anything
# Of the verdict. They are not calibrated on what adaptation gained, see docs/adaptation-measure.md.
_LEVEL = 0.01  # of the permutation test
# Proxy-A distance where the domain of 3 images in 4 is told. Hands of other people before the same
# wall were 0.46 apart, and need no adaptation.
_APART = 1.0
_SEPARABLE = 0.5  # share of what chance leaves that a linear probe must get right in the source


@dataclass(frozen=True)
class DomainDistance:
    """Distances between source and target on a backbone's features.

    Attributes:
        source, target: where the images came from.
        backbone: its name.
        image_size: height and width of the images.
        images: number of different ones that were looked at, of source and target.
        proxy_a: proxy-A distance, from 0 (the domains cannot be told apart) to 2.
        mmd: squared maximum mean discrepancy, with the p-value of its permutation test.
        frechet: squared Fréchet distance, in units of the source's total variance.
        frechet_by_chance: the same of random divisions of the pooled images.
        source_accuracy: of a cross-validated linear probe on the source's classes, 0–1; None where
            its labels are no two classes of two images or more.
        source_error: standard error of that.
        chance: accuracy of always naming the source's largest class.
    """

    source: str
    target: str
    backbone: str
    image_size: int
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
        """True where the features of the domains differ, surely and by enough to matter.

        The permutation test of MMD says so at 1 %, and a linear classifier names the domain of 3
        images in 4 (proxy-A distance 1), which is more than two standard errors above none.
        """
        apart = self.proxy_a.value >= max(_APART, 2 * self.proxy_a.error)
        return bool(apart and self.mmd.p_value is not None and self.mmd.p_value <= _LEVEL)

    @property
    def separable(self) -> bool | None:
        """True where a linear probe tells the source's classes apart; None: it has no classes.

        It gets half of what chance leaves right, and is above chance by two standard errors.
        """
        if self.source_accuracy is None or self.source_error is None or self.chance is None:
            return None
        above = self.source_accuracy - self.chance
        return bool(above >= _SEPARABLE * (1 - self.chance) and above > 2 * self.source_error)

    @property
    def worth_trying(self) -> bool:
        """True where adaptation has something to mend and something to hold on to."""
        return bool(self.differ and self.separable)

    @property
    def verdict(self) -> str:
        """What the numbers say, in a few sentences."""
        seen = (
            f"(proxy-A distance {self.proxy_a.value:.2f} ± {self.proxy_a.error:.2f} of 2, MMD "
            f"p = {self.mmd.p_value:.3f})"
        )
        if not self.differ:
            return (
                f"Adaptation is not worth trying: to {self.backbone} the target looks much like "
                f"the source {seen}. A model of the source should do as well on the target."
            )
        if self.source_accuracy is None or self.source_error is None or self.chance is None:
            return (
                f"The domains differ {seen}. Whether adaptation is worth trying cannot be said "
                "without classes in the source, two images or more of each."
            )
        probe = (
            f"a linear probe gets {100 * self.source_accuracy:.1f} ± "
            f"{100 * self.source_error:.1f} % right, chance {100 * self.chance:.1f} %"
        )
        if not self.separable:
            return (
                f"Adaptation is not worth trying with {self.backbone} as it is: the domains differ "
                f"{seen}, but the classes are hardly told apart in the source itself ({probe}). "
                "Train on the source first, or take another backbone."
            )
        return (
            f"Adaptation is worth trying: to {self.backbone} the domains differ {seen}, and the "
            f"classes are told apart in the source ({probe})."
        )

    def to_dict(self) -> dict:
        """All numbers as plain data, for JSON."""
        return {
            **asdict(self),
            "images": list(self.images),
            "differ": self.differ,
            "separable": self.separable,
            "worth_trying": self.worth_trying,
            "verdict": self.verdict,
        }

    def table(self) -> str:
        """The distances as Markdown, a row each."""
        rows = [
            ("proxy-A", self.proxy_a.value, self.proxy_a.error, "0, at most 2"),
            ("MMD²", self.mmd.value, self.mmd.error, f"0, p = {self.mmd.p_value:.3f}"),
            ("Fréchet", self.frechet, None, f"{self.frechet_by_chance:.4f} by chance"),
        ]
        lines = ["| distance | value | without a difference |", "|---|---|---|"]
        for name, value, error, expected in rows:
            shown = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
            lines.append(f"| {name} | {shown} | {expected} |")
        return "\n".join(lines)

    def __str__(self):
        return f"{self.table()}\n\n{self.verdict}"


def domain_distance(
    data_a: ImageData | Examples,
    data_b: ImageData | Examples,
    *,
    backbone,
    image_size: int | None = None,
    most: int = MOST_IMAGES,
    seed: int = 0,
    engine: str = "auto",
    store=None,
) -> DomainDistance:
    """Measures how far the target's images are from the source's, to a backbone.

    Features are those after global average pooling, found in the cache or computed into it; the
    answer is kept there too. Identical images of a domain count once. Labels of the target are
    not looked at.

    Args:
        data_a: the source; of an `ImageData` the training images (where it has no split of that
            name, those of its first). With one class per image the verdict says more.
        data_b: the target, likewise; its labels may be anything.
        backbone: a name of the table, a source model of one's own (a `.keras` file or a run
            directory), or a model that has a `Backbone`.
        image_size: of the images; by default that of the ImageNet training, or the model's.
        most: images of each domain; of more a random sample, in the source with each class in its
            share.
        seed: of samples, folds and permutations.
        engine, store: see `features.extraction.extract`.

    Raises:
        InputError: fewer than five different images in a domain, or what `build_backbone` and
            `extract` raise.
    """
    source, labels = _sample(data_a, "source", most, seed, classes=True)
    target, _ = _sample(data_b, "target", most, seed, classes=False)
    if isinstance(backbone, (str, os.PathLike)):
        backbone = os.fspath(backbone)
        check_backbone(backbone, image_size)
    # Late, as wrong input is answered before Keras is imported.
    from keras_transfer.features.extraction import extract
    from keras_transfer.features.prefix import averaged, prefix_of
    from keras_transfer.features.store import Store, concluded, digest_of

    network = sized_backbone(backbone, image_size)
    prefix = prefix_of(network, len(network.stages))
    store = store or Store()

    def compute():
        features = [
            averaged(extract(prefix, part, engine=engine, store=store).gather(np.arange(len(part))))
            for part in (source, target)
        ]
        groups = np.unique([*source.digests, *target.digests], return_inverse=True)[1]
        return measured(*features, labels, groups, seed=seed)

    found = concluded(
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
    return DomainDistance(
        source=_name(data_a, "source"),
        target=_name(data_b, "target"),
        backbone=network.name,
        image_size=prefix.image_size,
        images=(len(source), len(target)),
        **{**found, "proxy_a": Estimate(**found["proxy_a"]), "mmd": Estimate(**found["mmd"])},
    )


def measured(
    a: np.ndarray, b: np.ndarray, labels: np.ndarray | None, groups: np.ndarray, *, seed: int = 0
) -> dict:
    """The numbers of a `DomainDistance` as plain data, from features.

    Args:
        a, b: of the source, float [N, D], and of the target, float [M, D].
        labels: of the source, int [N]; None where there are no classes.
        groups: int [N + M], rows of one image.
        seed: of folds and permutations.
    """
    from sklearn.decomposition import PCA

    joined = np.concatenate([a, b]).astype("float64")
    components = min(_COMPONENTS, *joined.shape)
    reduced = PCA(components, random_state=seed).fit_transform(joined)
    parts = reduced[: len(a)], reduced[len(a) :]
    spread = max(float(parts[0].var(axis=0, ddof=1).sum()), 1e-12)
    accuracy = error = chance = None
    if labels is not None:
        accuracy, error = _probed(a, labels, seed)
        chance = float(np.bincount(labels).max() / len(labels))
    return {
        "proxy_a": asdict(proxy_a(a, b, groups, seed=seed)),
        "mmd": asdict(mmd(a, b, seed=seed)),
        "frechet": frechet_distance(*parts) / spread,
        "frechet_by_chance": frechet_by_chance(*parts, seed=seed) / spread,
        "source_accuracy": accuracy,
        "source_error": error,
        "chance": chance,
    }


def _probed(features, labels, seed):
    """(accuracy, standard error) of the cross-validated linear probe."""
    from keras_transfer.features.closed_form import cross_validated_probe

    probe = cross_validated_probe(features, labels, seed=seed)
    return probe.accuracy, probe.standard_error


def _sample(data, role, most, seed, classes):
    """(examples of different images, their classes int [N] or None where there are none)."""
    examples = data
    if isinstance(data, ImageData):
        examples = data.examples.get("train") or next(iter(data.examples.values()), None)
    different = []
    if examples is not None and len(examples):
        different = distinct_rows(examples)
    if len(different) < _LEAST:
        raise InputError(
            f"The {role} ({_name(data, role)}) has {len(different)} different images: a distance "
            f"needs {_LEAST} or more of each domain."
        )
    labels = examples.labels[different] if classes and _has_classes(data) else None
    if labels is not None and (np.bincount(labels) > 1).sum() < 2:
        labels = None
    if labels is None:
        rows = np.sort(np.random.default_rng(seed).permutation(len(different))[:most])
    else:
        rows = stratified_sample(labels, most, seed)
        labels = labels[rows]
    images = examples.images.take(different[rows])
    return Examples(images, np.zeros(len(rows), "int32")), labels


def _has_classes(data):
    if isinstance(data, ImageData):
        return data.task == "single_label"
    return isinstance(data.labels, np.ndarray) and data.labels.dtype.kind in "iu"


def _name(data, role):
    return data.root if isinstance(data, ImageData) else role
