"""Which backbone and which strategy suit the data, and why: measured, before anything is trained.

Looks at the training images only: how many there are, how much they look like what a backbone was
trained on (`likeness`), how well each backbone's features tell the classes apart
(`transferability`), where in the network that happens (`stage_probes`), and how long a batch takes
here (`timing`). The rules that follow are in `choices`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.rules import (
    CHEAPER,
    DEFAULT_POLICY,
    MINUTES,
    POLICIES,
    Choice,
    Facts,
    choose,
)
from keras_transfer.advisor.shortlist import candidates
from keras_transfer.errors import InputError
from keras_transfer.models.sources.applications import check_backbone
from keras_transfer.schedules.recipes import resolve_schedule

_MOST_PROBED = 600  # after each stage
_MOST_IMAGES = 800  # of the sample: standard errors of a point and a half at most
_LEAST_EPOCHS = 0.5  # of the choice's own number, before another strategy is taken


def advise(
    data,
    *,
    target=None,
    backbones: Sequence | None = None,
    image_size: int | None = None,
    batch_size: int = 32,
    minutes: float = MINUTES,
    policy: str = DEFAULT_POLICY,
    probes: bool = True,
    engine: str = "auto",
    store=None,
    seed: int = 0,
) -> Advice:
    """Measures data and backbones and says what to train.

    Args:
        data: a `keras_transfer.data.ImageData` of one class per image; only its training images
            are looked at.
        target: `ImageData` or `Examples` of images on which the model is to be used, if they are
            of another kind; their labels are not looked at. See `domain_distance`.
        backbones: names of the table, source models (files or runs), or models of `build_model`;
            by default those whose ImageNet weights are on this machine (six at most, of
            `SHORTLIST` first), or else the shortlist, downloaded.
        image_size: of the images, by default each backbone's own.
        batch_size: of training, for its cost.
        minutes: that training may take; what would take longer is not advised.
        policy: see `choices.choose`.
        probes: measure the accuracy after each stage of the chosen backbone, too: for a look, no
            rule needs it.
        engine, store: see `features.extraction.extract`.
        seed: of samples and folds.

    Raises:
        InputError: another task, too few images or classes, no backbone, or a backbone that
            cannot be had.
    """
    backbones = check_advice(backbones, image_size, minutes, policy)
    _check_data(data)
    from keras_transfer.advisor.scores import rank_scores
    from keras_transfer.advisor.similarity import activation_shift
    from keras_transfer.advisor.symmetry import mirror_symmetry
    from keras_transfer.advisor.transferability import score_backbone
    from keras_transfer.features.prefix import prefix_of

    options = {"engine": engine, "store": store, "seed": seed}
    by_name, networks, scores, notes = {}, {}, [], []
    for backbone in backbones:
        name = _name(backbone)
        try:
            networks[name] = _network(backbone, image_size)
            found = score_backbone(
                networks[name],
                data,
                name=name,
                most=_MOST_IMAGES,
                **options,
            )
        except InputError as error:
            if len(backbones) == 1:
                raise
            notes.append(f"{name} is left out: {error}")
            continue
        by_name[name] = backbone
        scores.append(found)
    if not scores:
        raise InputError("No backbone can be had. " + " ".join(notes))
    ranking = None
    if all(found["probe"].value is not None for found in scores):
        ranking = rank_scores(scores)
    facts = _facts(data, scores, ranking)
    first = networks[facts.ranked[0]]
    shift = activation_shift(first, data.examples["train"], seed=seed, store=store)
    prefix = prefix_of(first, len(first.stages))
    symmetry = mirror_symmetry(prefix, data.examples["train"], **options)
    facts = replace(facts, shift=shift, mirror=not (symmetry and symmetry.told_apart))
    wanted = choose(facts, policy)
    budget = _Budget(data, by_name, networks, image_size, batch_size, 60 * minutes)
    choice, more = budget.first_that_fits(wanted[0], facts)
    notes += more
    contender = None
    if len(wanted) > 1 and not more:
        contender = budget.timed(wanted[1])
        contender = contender if contender.seconds <= budget.seconds else None
    network = budget.network(choice.backbone)
    found = None
    if probes:
        from keras_transfer.advisor.stage_probes import probe_stages

        found = probe_stages(network, data, most=_MOST_PROBED, **options)
        if found.stages_worth_keeping == 0:
            notes.append(
                f"no stage of {choice.backbone} is better than random weights for these classes: "
                "transfer may bring nothing, or harm; `keras-transfer compare` measures it"
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
        probes=found,
        symmetry=symmetry,
        distance=distance,
        notes=tuple(notes),
    )


def check_advice(backbones=None, image_size=None, minutes=MINUTES, policy=DEFAULT_POLICY) -> list:
    """The backbones to look at, after all checks that need neither data nor Keras.

    Raises:
        InputError: see `advise`.
    """
    if policy not in POLICIES:
        raise InputError(f"Unknown policy '{policy}': give one of {', '.join(POLICIES)}.")
    if not minutes > 0:
        raise InputError(f"minutes {minutes:g}: give a number above 0.")
    if backbones is None:
        found = candidates(image_size)
        check_backbone(found[0], image_size)
        return found
    if not backbones:
        raise InputError("There is no backbone to look at: name one or more, or none at all.")
    for backbone in backbones:
        if isinstance(backbone, str):
            check_backbone(backbone, image_size)
    names = [_name(backbone) for backbone in backbones]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise InputError(f"Two backbones are called '{twice[0]}': give each once, by its own name.")
    return list(backbones)


class _Budget:
    """What choices cost, timed when first asked."""

    def __init__(self, data, backbones, networks, image_size, batch_size, seconds):
        self.images = len(data.examples["train"])
        self.backbones, self.networks = backbones, networks
        self.image_size, self.batch_size, self.seconds = image_size, batch_size, seconds

    def network(self, name):
        if name not in self.networks:
            self.networks[name] = _network(self.backbones[name], self.image_size)
        return self.networks[name]

    def timed(self, choice: Choice) -> Choice:
        from keras_transfer.advisor.costs import speed_of, stage_shares

        network = self.network(choice.backbone)
        speed = speed_of(network, self.batch_size)
        seconds = speed.seconds(self._plan(choice), stage_shares(network), self.images)
        return replace(choice, seconds=round(seconds, 1))

    def _plan(self, choice):
        from keras_transfer.schedules.plans import make_plan

        network = self.network(choice.backbone)
        schedule = resolve_schedule(
            choice.strategy,
            choice.overrides,
            images=self.images,
            image_size=network.input_shape[1],
            linear_head=True,
        )
        return make_plan(network, schedule, self.images, self.batch_size)

    def first_that_fits(self, choice: Choice, facts: Facts):
        """(the choice, or what comes nearest to it in the time there is; notes about that)."""
        wanted = self.timed(choice)
        if wanted.seconds <= self.seconds:
            return wanted, []
        note = (
            f"{wanted.with_time} would take longer than the {self.seconds / 60:g} minutes there are"
        )
        why = f"it comes nearest to {wanted} in the time there is"
        tried = []
        for backbone in facts.ranked:
            own = replace(choice, backbone=backbone, why=why)
            for other in (own, *(self._instead(own, *cheaper) for cheaper in CHEAPER)):
                timed = self._shortened(other)
                if timed.seconds <= self.seconds:
                    return timed, [note]
                tried.append(timed)
        cheapest = min(tried, key=lambda choice: choice.seconds)
        return cheapest, [note, "nothing fits; this is the cheapest"]

    def _instead(self, choice, strategy, overrides):
        rate = {k: v for k, v in choice.overrides.items() if k == "learning_rate"}
        return replace(
            choice, strategy=strategy, overrides={**overrides, **(rate if overrides else {})}
        )

    def _shortened(self, choice):
        """With fewer epochs where that is enough, else as it is."""
        timed = self.timed(choice)
        epochs = sum(phase.epochs for phase in self._plan(choice).phases)
        fitting = int(epochs * self.seconds / timed.seconds)
        if timed.seconds <= self.seconds or choice.strategy == "feature_extraction":
            return timed
        if fitting < max(3, _LEAST_EPOCHS * epochs):
            return timed
        return self.timed(replace(choice, overrides={**choice.overrides, "epochs": fitting}))

    def costs(self, choice: Choice) -> tuple[Choice, ...]:
        """Of each strategy with the chosen backbone."""
        every: tuple[tuple[str, dict], ...] = (*CHEAPER, ("lp_ft", {}), ("from_scratch", {}))
        plain = Choice(choice.backbone, choice.strategy)
        return tuple(
            self.timed(replace(plain, strategy=strategy, overrides=overrides))
            for strategy, overrides in every
        )


def _check_data(data):
    data.require_classes("advice", "train")
    train = data.examples["train"]
    different = train.labels[np.unique(train.digests, return_index=True)[1]]
    if (np.bincount(different) > 1).sum() < 2:
        raise InputError(
            f"{data.root} has no two classes with two different training images each: nothing can "
            "be measured; add images."
        )


def _facts(data, scores, ranking) -> Facts:
    counts = np.bincount(data.examples["train"].labels, minlength=len(data.class_names))
    rows = list(ranking.rows if ranking else scores)
    signal = ranking.signal if ranking else any(row.signal for row in rows)
    tied = [row for row in rows if ranking and row.name in ranking.best] or rows
    # Features that cannot be told apart: the larger network, whose size is a prior that is hard to
    # beat (arXiv:2510.06448), and without which small data would choose by chance.
    tied = sorted(tied, key=lambda row: -row.prior["multiplications"])
    rest = [row for row in rows if row not in tied]
    return Facts(
        images=int(counts.sum()),
        classes=len(counts),
        least=int(counts.min()),
        most=int(counts.max()),
        shift=None,
        signal=signal,
        ranked=tuple(row.name for row in [*tied, *rest]),
        tied=len(tied),
        probe=tied[0]["probe"].value,
    )


def _network(backbone, image_size):
    """The `Backbone` that a name or a model means."""
    from keras_transfer.models.builders import backbone_at
    from keras_transfer.models.sources.applications import build_backbone

    if isinstance(backbone, str):
        return build_backbone(backbone, image_size=image_size)
    return backbone_at(backbone, image_size)


def _name(backbone):
    return backbone if isinstance(backbone, str) else backbone.name
