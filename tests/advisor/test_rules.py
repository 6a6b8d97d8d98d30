"""The rules: every scenario of the textbook, the cases between, and the evidence policy."""

import json
from dataclasses import replace

import pytest

from keras_transfer.advisor.rules import (
    BOLD_RATE,
    CHEAPER,
    CLASSICAL,
    DEFAULT_POLICY,
    DIFFERENT,
    POLICIES,
    SIMILAR,
    STRATEGIES,
    Choice,
    Facts,
    check_overrides,
    choose,
)
from keras_transfer.errors import InputError
from keras_transfer.schedules.recipes import RECIPES, resolve_schedule

SIZES = {"small": (400, 4), "medium": (5000, 10), "large": (50_000, 10)}
SHIFTS = {"similar": 0.02, "between": 0.07, "different": 0.2, "unknown": None}


def facts_of(size="small", likeness="similar", *, signal=True, ranked=("a", "b"), tied=1):
    images, classes = SIZES[size]
    each = images // classes
    return Facts(images, classes, each, each, SHIFTS[likeness], signal, ranked, tied)


def test_size_and_likeness_of_the_facts():
    for size in SIZES:
        for likeness in SHIFTS:
            facts = facts_of(size, likeness)
            assert (facts.size, facts.likeness) == (size, likeness)


@pytest.mark.parametrize(
    "images, classes, size",
    [
        (1999, 2, "small"),
        (2000, 2, "medium"),
        (2000, 101, "small"),  # 19.8 a class
        (19_999, 2, "medium"),
        (20_000, 200, "large"),
        (20_000, 201, "medium"),
    ],
)
def test_size_depends_on_all_images_and_on_images_per_class(images, classes, size):
    assert Facts(images, classes, 1, images, 0.0, True, ("a",)).size == size


def test_the_limits_of_likeness_are_between():
    for shift in (SIMILAR, DIFFERENT):
        assert Facts(100, 2, 50, 50, shift, True, ("a",)).likeness == "between"


@pytest.mark.parametrize(
    "size, likeness, strategy",
    [
        ("small", "similar", "feature_extraction"),
        ("small", "different", "freeze_k"),
        ("large", "similar", "lp_ft"),
        ("large", "different", "from_scratch"),
    ],
)
def test_the_textbook(size, likeness, strategy):
    (choice,) = choose(facts_of(size, likeness), "classical")
    assert (choice.backbone, choice.strategy) == ("a", strategy)
    assert f"textbook rule for a {size} dataset with {likeness} images" in choice.why


def test_cases_without_a_textbook_rule_are_named():
    between = [(s, x) for s in SIZES for x in SHIFTS if (s, x) not in CLASSICAL]
    assert len(between) == 8
    for size, likeness in between:
        (choice,) = choose(facts_of(size, likeness), "classical")
        assert choice.strategy == "lp_ft"
        assert f"no rule for this case (size {size}, similarity {likeness})" in choice.why


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("likeness", SHIFTS)
def test_the_learning_rate_is_low_if_images_resemble_the_pretraining(size, likeness):
    first, second = choose(facts_of(size, likeness), "evidence")
    assert (first.backbone, second.backbone) == ("a", "a")
    if likeness == "similar":
        assert (first.strategy, second.strategy) == ("lp_ft", "feature_extraction")
        assert first.overrides == second.overrides == {}
    else:
        assert (first.strategy, second.strategy) == ("lp_ft", "freeze_k")
        # 400 images have to be seen longer than the recipe's 20 epochs.
        bold = {"learning_rate": BOLD_RATE} | ({"epochs": 35} if size == "small" else {})
        assert first.overrides == bold and second.overrides == {"k": 1 / 3, **bold}
    said = {
        "similar": "resemble those of the pretraining",
        "between": "differ somewhat",
        "different": "every layer has to adapt",
        "unknown": "is unknown",
    }
    assert said[likeness] in first.why


@pytest.mark.parametrize("policy", POLICIES)
def test_few_images_are_augmented_more_and_flips_need_symmetry(policy):
    few, many = facts_of("small"), facts_of("medium")
    few = replace(few, classes=10)  # 40 a class
    for facts, preset in ((few, "medium"), (many, "light")):
        assert {c.augment for c in choose(facts, policy)} == {preset}
        for choice in choose(replace(facts, mirror=False), policy):
            assert choice.augment == {"preset": preset, "flip": False}
    assert choose(replace(few, signal=False), policy)[0].augment == "none"


@pytest.mark.parametrize("images, epochs", [(20, 200), (50, 200), (100, 140), (1400, None)])
def test_few_images_that_differ_get_more_epochs(images, epochs):
    facts = Facts(images, 2, images // 2, images // 2, 0.2, True, ("a",))
    assert choose(facts, "evidence")[0].overrides.get("epochs") == epochs


def test_tied_backbones_race():
    first, second = choose(facts_of("small", "different", tied=2), "evidence")
    assert (first.backbone, second.backbone) == ("a", "b")
    assert first.strategy == second.strategy and first.overrides == second.overrides
    assert "as good" in second.why
    # A backbone with worse features does not race.
    assert {c.backbone for c in choose(facts_of("small", "different"), "evidence")} == {"a"}


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_signal_the_cheapest_strategy_is_chosen_with_a_reason(policy):
    for likeness in SHIFTS:
        (choice,) = choose(facts_of("medium", likeness, signal=False), policy)
        assert (choice.backbone, choice.strategy) == ("a", "feature_extraction")
        assert "no signal for these labels" in choice.why and "Check the labels" in choice.why


@pytest.mark.parametrize("images, classes", [(19, 2), (40, 10)])
def test_few_images_do_not_prove_that_there_is_no_signal(images, classes):
    each = images // classes
    (choice,) = choose(Facts(images, classes, each, each, 0.02, False, ("a",)))
    assert choice.strategy == "feature_extraction"
    assert "too few images to tell" in choice.why and "Check the labels" not in choice.why


def test_unknown_policies_are_refused():
    with pytest.raises(InputError, match=r"Unknown policy 'magic'.*evidence, classical"):
        choose(facts_of(), "magic")
    assert DEFAULT_POLICY in POLICIES


def test_all_choices_are_valid_recipes():
    facts = [
        facts_of(size, likeness, signal=signal, tied=tied)
        for size in SIZES
        for likeness in SHIFTS
        for signal in (True, False)
        for tied in (1, 2)
    ]
    choices = [c for f in facts for policy in POLICIES for c in choose(f, policy)]
    assert {c.strategy for c in choices} | {s for s, _ in CHEAPER} == set(STRATEGIES)
    assert set(STRATEGIES) <= set(RECIPES)
    for choice in choices:
        resolve_schedule(choice.strategy, choice.overrides)
        json.dumps(choice.to_dict())


def test_a_choice_as_text():
    choice = Choice("a", "freeze_k", {"k": 1 / 3, "epochs": 4})
    assert str(choice) == "a freeze_k k=0.333 epochs=4"


def test_overrides_must_be_valid_for_every_strategy():
    check_overrides({"epochs": 5, "learning_rate": 1e-3, "*.weight_decay": 0.0})
    with pytest.raises(
        InputError, match=r"may choose feature_extraction: Cannot set k.*Name a str"
    ):
        check_overrides({"k": 0.5})
    check_overrides({"epochs": 1})
    with pytest.raises(InputError, match="weight_decay must be at least 0"):
        check_overrides({"*.weight_decay": -1})
