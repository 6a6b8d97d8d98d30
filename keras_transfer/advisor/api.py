"""Advise what to train, from measurements before any training."""

from collections.abc import Sequence
from typing import Any

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.budget import estimates
from keras_transfer.advisor.rules import DEFAULT_POLICY, Choice, candidates, check_policy, classical
from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, open_framing
from keras_transfer.models.sources.backbones import check_backbone
from keras_transfer.utils.names import check_minutes

_MAX_PROBED = 600  # examples whose activations are probed after every stage


def advise(
    data,
    *,
    target=None,
    backbones: Sequence | None = None,
    image_size: int | str | Framing | None = None,
    batch_size: int = 32,
    minutes: float | None = None,
    policy: str = DEFAULT_POLICY,
    probes: bool = True,
    engine: str = "auto",
    seed: int = 0,
) -> Advice:
    """Measure data and backbones, and recommend what to train.

    Only the training examples are read. Features and measurements are cached.

    Args:
        data: a `keras_transfer.data.ImageData` of any task, or with several heads.
        target: `ImageData` or `Examples` of another domain in which the model will be used; its
            labels are not read. See `domain_distance`.
        backbones: backbone names, source models (files or runs), or models of `build_model`. By
            default at most six whose ImageNet weights are on this machine, those of
            `rules.SHORTLIST` first; if there are none, the shortlist, which is downloaded.
        image_size: the only size to try; a `Framing` also says the crop.
        batch_size: of the training whose time is estimated.
        minutes: limit of the estimated training time.
        policy: `"evidence"`, or `"classical"` for the textbooks' choice, see `rules.classical`.
        probes: also probe every stage of the chosen backbone. The choice does not depend on it.
        engine: see `features.extraction.extract`.
        seed: of samples and folds.

    Raises:
        InputError: an option is invalid, or no backbone can be built.
    """
    backbones = check_advice(backbones, image_size, minutes, policy)
    from keras_transfer.advisor.closed_forms import compare_closed_forms
    from keras_transfer.advisor.inputs import facts_of, sized_backbone
    from keras_transfer.advisor.plans import decide
    from keras_transfer.evaluation.baseline import baseline_note
    from keras_transfer.features.known import cautions

    options: dict[str, Any] = {"engine": engine, "seed": seed}
    evidence = compare_closed_forms(data, backbones, image_size=image_size, **options)
    choice = decide(data, evidence, batch_size, minutes)
    best = evidence.best
    # The measurements below need one chain: the last of several backbones, the larger one by default.
    given = {_name(backbone): backbone for backbone in backbones}
    single = best.backbone if best.backbone in given else best.backbone.split("+")[-1]
    network = sized_backbone(given[single], best.framing, data)
    facts = facts_of(data, network, seed)
    strategy, overrides, why = classical(facts)
    textbook = Choice(single, strategy, overrides, framing=best.framing, why=why)
    if policy != DEFAULT_POLICY:
        choice = textbook
    notes = list(evidence.notes)
    notes += [line.removeprefix("warning: ") for line in cautions(data)]
    if (note := baseline_note(data, seed)) is not None:
        notes.append(note)
    stages = None
    if probes:
        from keras_transfer.advisor.stage_probes import probe_stages

        try:
            stages = probe_stages(network, data, most=_MAX_PROBED, **options)
        except InputError as error:  # too few examples
            notes.append(str(error))
        if stages and stages.stages_worth_keeping == 0:
            notes.append(
                f"No stage of {single} is better than random weights for these labels, so transfer "
                "may not help or may even harm. Run `keras-transfer compare` to measure it."
            )
    distance = None
    if target is not None:
        from keras_transfer.advisor.domains import domain_distance

        distance = domain_distance(data, target, backbone=network, **options)
    return Advice(
        choice=choice,
        evidence=evidence,
        textbook=textbook,
        facts=facts,
        costs=estimates(data, evidence),
        minutes=minutes,
        probes=stages,
        distance=distance,
        notes=tuple(notes),
    )


def check_advice(backbones=None, image_size=None, minutes=None, policy=DEFAULT_POLICY) -> list:
    """Check the arguments of `advise` as far as possible without data and Keras.

    Returns:
        The backbones to compare.

    Raises:
        InputError: see `advise`.
    """
    check_policy(policy)
    size = open_framing(image_size).size
    check_minutes(minutes)
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


def _name(backbone):
    return backbone if isinstance(backbone, str) else backbone.name
