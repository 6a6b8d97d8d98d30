"""What to train, from evidence alone: which candidate, whether to fine-tune it, and for how long."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from keras_transfer.advisor.budget import (
    TRIED,
    WORTH,
    WORTH_WITH_LIMIT,
    Clock,
    Pace,
    lengths_up_to,
    longest,
)
from keras_transfer.advisor.evidence import Candidate, Evidence
from keras_transfer.advisor.rules import Choice
from keras_transfer.data.examples import ImageData
from keras_transfer.schedules.recipes import AUTO, DEFAULT, default_epochs

NO_SIGNAL = (
    "The features carry no signal for these labels that so few examples could show: longer training would "
    "gain nothing. Check the labels, or add examples."
)


@dataclass(frozen=True)
class Plan:
    """A fine-tuning and what is expected of it.

    Attributes:
        candidate: whose network is trained.
        equal: whether its closed form is as good as the best one, within the standard error.
        pace: how fast.
        epochs: how long.
        points: by which the score is expected to exceed that of the best closed form.
        minutes: that it is expected to take.
    """

    candidate: Candidate
    equal: bool
    pace: Pace
    epochs: int
    points: float
    minutes: float


def first_plan(
    data: ImageData,
    evidence: Evidence,
    lengths: Sequence[int],
    *,
    error: float | None = None,
    begun: Mapping | None = None,
    tried: float = 0.0,
    **limits,
) -> Plan | None:
    """Return the fine-tuning that is expected to bring most, or None if none is worth its time.

    It is that of the cheapest candidate that is as good as the best one within the standard error, if
    its preferred length fits. If not, a cheaper one, which can be trained for longer, may end higher
    although it begins lower.

    Args:
        evidence: the candidates.
        lengths: see `budget.longest`.
        error: 1 − score of the best closed form; by default as in the evidence.
        begun: plain data of a training that was interrupted, whose candidate is taken again.
        tried: minutes that it may take without being expected to be worth them, because what it brings
            is uncertain; not if one validation example would be too many to tell.
        limits: other arguments of `budget.longest`.
    """
    rows, equal = evidence.rows, evidence.equal
    left_to_gain = evidence.error_left if error is None else error

    def plan(candidate, row=None, **changed):
        pace, as_good = Pace.of(data, evidence, row), row is None or row in equal
        behind = 0.0 if as_good else rows[0].judged.score - row.judged.score
        found = longest(
            pace, left_to_gain + behind, (), lengths=lengths, behind=behind, **limits | changed
        )
        return Plan(candidate, as_good, pace, *found) if found else None

    if begun is not None:
        for row in rows:
            own = evidence.tuned(row.candidate).to_dict()
            if json.loads(json.dumps(own)).items() <= begun.items():
                return plan(row.candidate, row)
    if not rows:
        return plan(evidence.best)
    cheapest = min(equal, key=lambda row: row.cost)
    found = plan(cheapest.candidate, cheapest)
    if found and found.epochs == lengths[0]:
        return found
    plans = (plan(row.candidate, row) for row in rows if row.cost <= rows[0].cost)
    worth_it = max(filter(None, plans), key=lambda each: each.points, default=None)
    if worth_it:
        return worth_it
    found = plan(cheapest.candidate, cheapest, worth=0.0, left=min(limits["left"], tried))
    return found if found and _is_visible(found.points, data) else None


def _is_visible(points: float, data: ImageData) -> bool:
    """Return whether some points are one validation example or more."""
    return points / 100 * len(data.examples.get("val", ())) >= 1


def questions_of(augment, questions):
    """Return the questions without that about mirror images, if the user answers it."""
    return [each for each in questions if each != "mirror" or augment == AUTO]


def closed_form_of(candidate: Candidate, augment) -> Choice:
    """Return the choice to fit a candidate's head alone."""
    return Choice(strategy="feature_extraction", augment=augment, **vars(candidate))


def decide(
    data: ImageData,
    evidence: Evidence,
    batch_size: int = 32,
    minutes: float | None = None,
    overrides: dict | None = None,
) -> Choice:
    """Return what to train, from evidence alone: the closed form, or the fine-tuning worth most."""
    train = len(data.examples["train"])
    steps = -(-train // batch_size)
    augment = "light" if evidence.mirror else {"preset": "light", "flip": False}
    closed = closed_form_of(evidence.best, augment)
    if not evidence.signal:
        return replace(closed, why=NO_SIGNAL)
    pace = Pace.of(data, evidence)
    given = (overrides or {}).get("epochs")
    lengths = [given] if given else lengths_up_to(default_epochs(train))
    of = partial(longest, pace, evidence.error_left, (), steps_per_epoch=steps, lengths=lengths)
    plan = of(WORTH if minutes is None else WORTH_WITH_LIMIT, Clock(minutes).left)
    if plan is None and minutes is None:  # as in a race
        plan = of(0.0, TRIED)
        plan = plan if plan and _is_visible(plan[1], data) else None
    if plan is None:
        why = "Fine-tuning is not expected to be worth its time."
        return replace(closed, why=why, minutes=pace.minutes(0, 0))
    epochs, points, took = plan
    why = f"Fine-tuning is expected to add {points:.1f} points to the closed form."
    tuned = closed_form_of(evidence.tuned(evidence.best), augment)
    return replace(tuned, strategy=DEFAULT, overrides={"epochs": epochs}, why=why, minutes=took)
