"""The textbooks' rules, the candidates' text, and overrides of the user."""

import json

import pytest

from keras_transfer.advisor.rules import (
    CLASSICAL,
    DEFAULT_POLICY,
    DIFFERENT,
    POLICIES,
    SIMILAR,
    STRATEGIES,
    Choice,
    Facts,
    check_overrides,
    check_policy,
    classical,
)
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule

SIZES = {"small": (400, 100), "medium": (5000, 500), "large": (50_000, 5000)}
SHIFTS = {"similar": 0.02, "between": 0.07, "different": 0.2, "unknown": None}


@pytest.mark.parametrize(
    "examples, per_class, size",
    [
        (1999, 1000, "small"),
        (2000, 1000, "medium"),
        (2000, 19.8, "small"),
        (19_999, 9999, "medium"),
        (20_000, 100, "large"),
        (20_000, 99.5, "medium"),
        (2000, None, "medium"),  # numbers have no classes
    ],
)
def test_size_depends_on_all_examples_and_on_those_of_a_class(examples, per_class, size):
    assert Facts(examples, per_class, 0.0).size == size


def test_the_textbook_has_four_cases_and_the_others_are_named():
    for size, (examples, per_class) in SIZES.items():
        for likeness, shift in SHIFTS.items():
            facts = Facts(examples, per_class, shift)
            assert (facts.size, facts.likeness) == (size, likeness)
            strategy, overrides, why = classical(facts)
            assert (strategy, overrides) == CLASSICAL.get((size, likeness), ("lp_ft", {}))
            known = (size, likeness) in CLASSICAL
            assert (f"no rule for this case (size {size}, similarity {likeness})" in why) != known
            resolve_schedule(strategy, overrides)
    assert len(CLASSICAL) == 4
    assert {strategy for strategy, _ in CLASSICAL.values()} == set(STRATEGIES) <= set(RECIPES)
    for shift in (SIMILAR, DIFFERENT):
        assert Facts(100, 50, shift).likeness == "between"


def test_unknown_policies_are_refused():
    with pytest.raises(InputError, match=r"Unknown policy 'magic'.*evidence, classical"):
        check_policy("magic")
    assert DEFAULT_POLICY in POLICIES


def test_a_choice_as_text_and_as_data():
    choice = Choice(
        "a", "freeze_k", {"k": 1 / 3, "epochs": 4}, taps="all", framing=Framing(96, 1.0)
    )
    assert str(choice) == "a (taps all, 96 px, crop 1.0) with freeze_k k=0.333 epochs=4"
    assert json.loads(json.dumps(choice.to_dict()))["overrides"]["epochs"] == 4


def test_overrides_must_be_valid_for_every_strategy():
    check_overrides({"epochs": 5, "learning_rate": 1e-3, "*.weight_decay": 0.0})
    with pytest.raises(
        InputError, match=r"may choose feature_extraction: Cannot set k.*Name a str"
    ):
        check_overrides({"k": 0.5})
    check_overrides({"epochs": 1})
    with pytest.raises(InputError, match="weight_decay must be at least 0"):
        check_overrides({"*.weight_decay": -1})
