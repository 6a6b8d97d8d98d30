"""Advise which backbone and strategy suit the data, from measurements before any training."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.inputs import check_classes, sized_backbone
from keras_transfer.advisor.rules import (
    DEFAULT_POLICY,
    MINUTES,
    Facts,
    candidates,
    check_policy,
    choose,
)
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models.sources.backbones import check_backbone

_MAX_SCORED = 800  # images; standard errors are then at most 1.8 points
_MAX_PROBED = 600  # images whose activations are probed after every stage


def advise(
    data,
    *,
    target=None,
    backbones: Sequence | None = None,
    image_size: int | Framing | None = None,
    batch_size: int = 32,
    minutes: float = MINUTES,
    policy: str = DEFAULT_POLICY,
    probes: bool = True,
    engine: str = "auto",
    seed: int = 0,
) -> Advice:
    """Measure data and backbones, and recommend what to train.

    Only the training images are read. Features and measurements are cached.

    Args:
        data: a `keras_transfer.data.ImageData` with one class per image.
        target: `ImageData` or `Examples` of another domain in which the model will be used; its
            labels are not read. See `domain_distance`.
        backbones: backbone names, source models (files or runs), or models of `build_model`. By
            default at most six whose ImageNet weights are on this machine, those of
            `rules.SHORTLIST` first; if there are none, the shortlist, which is downloaded.
        image_size: by default that of each backbone; a `Framing` also says the crop, which the data
            decide otherwise.
        batch_size: of the training whose time is estimated.
        minutes: limit of the estimated training time.
        policy: `"evidence"` or `"classical"`, see `rules.choose`.
        probes: also probe every stage of the chosen backbone. The rules do not use the result.
        engine: see `features.extraction.extract`.
        seed: of samples, shuffles and folds.

    Raises:
        InputError: `data` has another task, too few images or classes, or no backbone can be built.
    """
    backbones = check_advice(backbones, image_size, minutes, policy)
    check_classes(data, "advice")
    from keras_transfer.advisor.costs import Budget
    from keras_transfer.advisor.scores import rank_scores

    options: dict[str, Any] = {"engine": engine, "seed": seed}
    networks, scores, notes = _score_all(backbones, data, image_size, options)
    scorable = all(row["probe"].value is not None for row in scores)
    ranking = rank_scores(scores) if scorable else None
    facts, symmetry = _facts(data, scores, ranking, networks, options)
    choices = choose(facts, policy)
    train = data.examples["train"]
    budget = Budget(networks, len(train), batch_size, 60 * minutes)
    choice, too_slow = budget.fit(choices[0], facts)
    notes += too_slow
    contender = None
    if len(choices) > 1 and not too_slow:
        contender = budget.timed(choices[1])
        contender = contender if budget.fits(contender) else None
    network = networks[choice.backbone]
    stages = None
    if probes:
        from keras_transfer.advisor.stage_probes import probe_stages

        stages = probe_stages(network, data, most=_MAX_PROBED, **options)
        if stages.stages_worth_keeping == 0:
            notes.append(
                f"No stage of {choice.backbone} is better than random weights for these classes, so "
                "transfer may not help or may even harm. Run `keras-transfer compare` to measure it."
            )
    distance = None
    if target is not None:
        from keras_transfer.advisor.domains import domain_distance

        distance = domain_distance(data, target, backbone=network, **options)
    return Advice(
        choice=choice,
        contender=contender,
        facts=facts,
        policy=policy,
        ranking=ranking,
        costs=budget.costs(choice),
        minutes=minutes,
        image_size=network.input_shape[1],
        probes=stages,
        symmetry=symmetry,
        distance=distance,
        notes=tuple(notes),
    )


def check_advice(backbones=None, image_size=None, minutes=MINUTES, policy=DEFAULT_POLICY) -> list:
    """Check the arguments of `advise` as far as possible without data and Keras.

    Returns:
        The backbones to compare.

    Raises:
        InputError: see `advise`.
    """
    check_policy(policy)
    size = Framing.of(image_size).size
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, not {minutes:g}.")
    if backbones is None:
        names = candidates(size)
        check_backbone(names[0], size)
        return names
    if not backbones:
        raise InputError("backbones is empty. Name at least one, or leave it out for the default.")
    for backbone in backbones:
        if isinstance(backbone, str):
            check_backbone(backbone, size)
    names = [_name(backbone) for backbone in backbones]
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(f"Two backbones are named '{repeated[0]}'. Give each one a unique name.")
    return list(backbones)


def _score_all(backbones, data, image_size, options):
    """Return ({name: `Backbone`}, [`Scores`], notes about backbones that are skipped)."""
    from keras_transfer.advisor.transferability import score_backbone

    networks, scores, notes = {}, [], []
    for backbone in backbones:
        name = _name(backbone)
        try:
            network = sized_backbone(backbone, image_size, data)
            scores.append(score_backbone(network, data, name=name, most=_MAX_SCORED, **options))
        except InputError as error:
            if len(backbones) == 1:
                raise
            notes.append(f"{name} is skipped: {error}")
        else:
            networks[name] = network
    if not scores:
        raise InputError(f"No backbone can be used. {' '.join(notes)}")
    return networks, scores, notes


def _facts(data, scores, ranking, networks, options):
    """Return (`Facts`, `Symmetry` or None)."""
    from keras_transfer.advisor.similarity import activation_shift, mirror_symmetry

    train = data.examples["train"]
    counts = np.bincount(train.labels, minlength=len(data.class_names))
    rows = list(ranking.rows if ranking else scores)
    tied = [row for row in rows if ranking and row.name in ranking.best] or rows
    # Among ties, take the larger network: its size is a prior that is hard to beat
    # (arXiv:2510.06448), and on small data the order would be random otherwise.
    tied = sorted(tied, key=lambda row: -row.prior["multiplications"])
    others = [row for row in rows if row not in tied]
    first = networks[tied[0].name]
    symmetry = mirror_symmetry(first, train, **options)
    facts = Facts(
        images=int(counts.sum()),
        classes=len(counts),
        smallest_class=int(counts.min()),
        largest_class=int(counts.max()),
        shift=activation_shift(first, train, seed=options["seed"]),
        signal=ranking.signal if ranking else any(row.signal for row in rows),
        ranked=tuple(row.name for row in [*tied, *others]),
        tied=len(tied),
        mirror=not (symmetry and symmetry.told_apart),
    )
    return facts, symmetry


def _name(backbone):
    return backbone if isinstance(backbone, str) else backbone.name
