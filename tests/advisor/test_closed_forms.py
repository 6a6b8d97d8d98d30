"""Evidence: candidates compared by the closed form, for every task."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import write_image

from keras_transfer.advisor import closed_forms
from keras_transfer.advisor.budget import TimeLeft
from keras_transfer.advisor.closed_forms import QUESTIONS, compare_closed_forms
from keras_transfer.advisor.evidence import Evidence, Row
from keras_transfer.advisor.inputs import comparable_sample
from keras_transfer.advisor.judging import Judged
from keras_transfer.data import from_arrays, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.errors import InputError
from keras_transfer.modalities.image.modality import Images
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.stages import backbone_of


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A source model whose last stage forgets colors: its first stage alone tells the classes apart."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, 2, "same", activation="relu", name="sees")(x)
    x = keras.layers.Conv2D(6, 3, 2, "same", name="forgets", kernel_initializer="zeros")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    path = tmp_path_factory.mktemp("models") / "blind.keras"
    keras.Model(inputs, x, name="blind").save(path)
    return str(path)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colors")
    for name, level in (("dark", 60), ("bright", 190)):
        for i in range(12):
            write_image(folder / name / f"{i}.png", [level] * 3, seed=i)
    return from_directory(folder, progress=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))


def compare(data, *backbones, **options):
    return compare_closed_forms(
        data, backbones, **{"engine": "keras", "questions": ("together", "mirror"), **options}
    )


def losses(evidence):
    return {row.candidate.taps: row.judged.loss for row in evidence.rows}


def test_an_earlier_stage_that_sees_more_is_read_and_every_crop_tried(blind, colors):
    found = compare(colors, blind, image_size=32, questions=QUESTIONS)
    assert found.best.taps == "all" and losses(found)["all"] < 0.3 < losses(found)["last"]
    assert {row.candidate.framing.crop for row in found.rows} == {0.875, 1.0}
    assert {row.candidate.framing.size for row in found.rows} == {32}
    assert found.signal and found.rows[0].behind == 0
    assert all(row.behind >= -row.error for row in found.rows)
    text = str(found)
    assert text.startswith(f"Evidence: {blind}, taps all, 32 px") and "standard error" in text
    assert len(found.table().splitlines()) == 1 + len(found.rows)
    json.dumps(found.to_dict(), allow_nan=False)
    only = compare(colors, blind, taps=("last",))
    assert set(losses(only)) == {"last"}


def test_the_cheapest_of_equally_good_ones_is_chosen(blind, colors):
    table = closed_forms._Comparison(colors, ("last", "all"), None, "keras", 0, {})
    table.together = np.arange(40)
    noise = np.random.default_rng(0).normal(0, 0.1, 40)

    def row(loss, cost, noise):
        return Row(str(cost), Judged(loss + noise, 1 - loss + noise), cost)

    def best(*rows):
        table.rows = [row(*each) for each in rows]
        return table.best.cost

    first = 0.5, 2.0, 0 * noise
    assert best(first, (0.501, 1.0, noise)) == 2.0  # no better than the first
    assert best(first, (0.3, 3.0, noise), (0.301, 1.5, -noise)) == 1.5  # nor worse than the lowest
    assert best(first, (0.3, 3.0, noise), (0.4, 1.5, noise)) == 3.0
    # Not surely below the first.
    assert best(first, (0.3, 3.0, noise), (0.495, 1.5, 3 * noise)) == 3.0


@pytest.mark.parametrize(
    ("enough", "sizes"),
    [
        (None, {32, 24}),  # the first smaller one is worse
        (24, {32, 24}),
        (16, {32, 24, 16}),
        (0, {32, 24, 16, 8}),  # never small enough
    ],
)
def test_sizes_get_smaller_until_one_can_be_trained_in_time(
    enough, sizes, blind, colors, monkeypatch
):
    smaller = [24, 16, 8]
    monkeypatch.setattr(Images, "smaller_framings", lambda _, f: [f.at(size) for size in smaller])
    monkeypatch.setattr(Images, "other_framings", lambda *_: [])
    # What is smaller is worse.
    monkeypatch.setattr(
        closed_forms._Comparison, "behind", lambda _, row: (32.0 - row.candidate.framing.size, 1.0)
    )
    monkeypatch.setattr(
        closed_forms, "seconds_per_example", lambda prefix, _: (prefix.image_size / 32) ** 2
    )
    most = 1.0 if enough is None else (enough / 32) ** 2 + 0.01
    asked = []

    def fits(seconds, layers):
        asked.append(layers)
        return seconds <= most

    found = compare(colors, blind, questions=("framings", "pace"), time_left=TimeLeft(fits=fits))
    assert {row.candidate.framing.size for row in found.rows} == sizes
    assert set(asked) == {found.layers}
    assert found.forward == (found.best.framing.size / 32) ** 2


def test_sizes_get_smaller_while_one_of_their_rows_is_no_worse(blind, colors, monkeypatch):
    smaller = [24, 16, 8]
    monkeypatch.setattr(Images, "smaller_framings", lambda _, f: [f.at(size) for size in smaller])
    monkeypatch.setattr(Images, "other_framings", lambda *_: [])

    def behind(_, row):  # the last stage alone, whose row is added last, sees nothing anyway
        size, taps = row.candidate.framing.size, row.candidate.taps
        return (9.0 if taps == "last" or size < 16 else 0.0), 1.0

    monkeypatch.setattr(closed_forms._Comparison, "behind", behind)
    found = compare(colors, blind, questions=("framings",))
    assert {row.candidate.framing.size for row in found.rows} == {32, 24, 16, 8}
    found = compare(colors, blind, questions=("framings",), image_size=32)
    assert {row.candidate.framing.size for row in found.rows} == {32}


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        ((0.0,), "; the other is within one standard error."),
        ((0.9,), "; the other is worse by more than one standard error."),
        ((0.0, 0.9, 0.9), "; 1 of 3 others is within one standard error."),
        ((0.0, 0.0, 0.9), "; 2 of 3 others are within one standard error."),
        ((0.9, 0.9), "; the 2 others are worse by more than one standard error."),
    ],
)
def test_the_others_are_counted_in_words(behind, words):
    judged = SimpleNamespace(score=0.9, loss=0.3)
    rows = tuple(Row("b", judged, 1.0, 1, each, 0.1) for each in (0.0, *behind))
    assert str(Evidence(rows, "b", "accuracy", 40)).endswith(words)


def test_a_second_backbone_that_sees_is_enough(blind, colors, tmp_path):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(5, 3, 4, "same", activation="relu", name="mean")(x)
    other = str(tmp_path / "other.keras")
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="other").save(other)
    model = build_model([blind, other], head_for(colors), taps="all")
    assert len(backbone_of(model).stages) == 3
    found = compare(colors, blind, other, taps=("last",))
    assert found.best.backbone == other and found.rows[-1].candidate.backbone == blind
    # Columns of each network in the joined features.
    cuts = backbone_of(model).cuts
    first, second = cuts.columns_of_branches()
    assert len(first) + len(second) == backbone_of(model).output_shape[-1]
    assert sorted([*first, *second]) == list(range(len(first) + len(second)))
    assert sorted(i for stages in cuts.stages_of_branches() for i in stages) == [0, 1, 2]


def shades(labels, rng):
    noise = rng.integers(0, 40, (len(labels), 32, 32, 3))
    return (noise + 150 * np.reshape(labels, (-1, 1, 1, 1))).astype("uint8")


def test_numbers_labels_and_several_heads(blind, rng):
    level = np.arange(40) % 5 / 5
    images = shades(level, rng)
    numbers = from_arrays((images, level[:, None] * 9), class_names=("level",), task="regression")
    found = compare(numbers, blind)
    assert found.best.taps == "all" and found.score == "R²" and found.expected > 0.8
    labels = np.stack([level > 0.5, level < 0.3, np.ones(40)], axis=1).astype("float32")
    several = from_arrays((images, labels), class_names=tuple("abc"), task="multi_label")
    found = compare(several, blind)
    assert found.best.taps == "all" and found.expected > 0.9 and found.signal
    targets = {
        "bright": Target("single_label", ("no", "yes")),
        "level": Target("regression", ("x",)),
    }
    both = {"bright": (level > 0.5).astype("int32"), "level": level[:, None]}
    examples = {"train": Examples(several.examples["train"].images, {})}
    rows = [int(i) for i in range(len(examples["train"].images))]
    known = np.array([several.examples["train"].labels[i].argmax() for i in rows])
    both = {"bright": known.astype("int32"), "level": known[:, None].astype("float64")}
    found = compare(
        ImageData((), {"train": Examples(examples["train"].images, both)}, [], "data", targets),
        blind,
    )
    assert found.score == "mean score" and found.best.taps == "all" and found.signal


def test_random_labels_carry_no_signal_and_rare_classes_are_left_out(blind, rng):
    images = shades(rng.uniform(size=60), rng)
    labels = np.r_[rng.integers(0, 2, 59), 2]  # one example of the last
    train = Examples(Arrays(images), labels.astype("int32"))
    data = ImageData(tuple("abc"), {"train": train}, [], "data")
    found = compare(data, blind)
    assert not found.signal and found.rows
    one_each = from_arrays((images[:4], [0, 1, 0, 1]), val_split=0.5, progress=False)
    nothing = compare(one_each, blind)
    assert not nothing.rows and nothing.best.taps == "all" and nothing.expected is None
    assert "too few examples" in str(nothing)
    # Neither do examples whose class lies in one group.
    groups = np.repeat(np.arange(3), 2)
    train = Examples(Arrays(images[:6]), groups.astype("int32"), groups)
    target = Target("single_label", tuple("abc"))
    assert not compare(ImageData((), {"train": train}, [], "data", target), blind).rows
    # Beside a class that each example has alone, numbers have no mean.
    targets = {"who": Target("single_label", tuple("abcd")), "age": Target("regression", ("x",))}
    labels = {"who": np.arange(4, dtype="int32"), "age": np.ones((4, 1), "float32")}
    train = Examples(Arrays(images[:4]), labels)
    assert not compare(ImageData((), {"train": train}, [], "data", targets), blind).rows
    with pytest.raises(InputError, match=r"No backbone can be used\. .*skipped"):
        compare(data, keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()]))


def test_some_examples_of_each_large_group_are_compared():
    """Of five speakers with 400 clips each, 1500 clips are of three, and of each class two would lack."""
    speakers = np.repeat(np.arange(5), 1000)
    labels = (np.arange(5000) % 10).astype("int32")
    pixels = np.arange(5000)[:, None, None, None] // np.array([1, 256, 1 << 16])
    train = Examples(Arrays((pixels % 256).astype("uint8")), labels, speakers)
    data = ImageData(tuple("abcdefghij"), {"train": train}, [], "data")
    found = comparable_sample(data, 1500, seed=0)
    assert len(found) == 1500 and len(np.unique(found.groups)) == 5
    few = comparable_sample(data, 3000, seed=0)  # three whole speakers
    assert len(few) == 3000 and len(np.unique(few.groups)) == 3


def test_a_class_that_another_head_leaves_too_small_is_left_out_too():
    labels = {
        "first": np.array([0, 0, 0, 1, 1, 2], "int32"),
        "second": np.array([0, 0, 1, 1, 0, 1], "int32"),
    }
    labels["second"][:] = [0, 0, 0, 0, 0, 1]
    labels["first"][:] = [0, 0, 1, 2, 2, 1]
    train = Examples(Arrays(np.arange(18, dtype="uint8").reshape(6, 1, 1, 3)), labels)
    targets = {name: Target("single_label", tuple("abc")) for name in labels}
    found = comparable_sample(ImageData((), {"train": train}, [], "data", targets), 10, seed=0)
    # Without the last example, whose second class is alone, that of the first class is alone, too.
    np.testing.assert_array_equal(found.labels["first"], [0, 0, 1, 1])
    np.testing.assert_array_equal(found.labels["second"], [0, 0, 0, 0])


def test_the_crop_of_a_fine_tuning_suits_its_size(blind, tmp_path, monkeypatch):
    """Images of 28 px are enlarged to 32 px, so all of them is seen there, but not at 24 px."""
    for name, level in (("dark", 60), ("bright", 190)):
        for i in range(6):
            write_image(tmp_path / name / f"{i}.png", [level] * 3, size=(28, 30), seed=i)
    monkeypatch.setattr(Images, "smaller_framings", lambda _, f: [f.at(24)] if f.size > 24 else [])
    found = compare(from_directory(tmp_path, progress=False), blind, questions=QUESTIONS)
    candidates = {row.candidate.framing.size: row.candidate for row in found.rows}
    crops = {size: found.tuned(one).framing.crop for size, one in candidates.items()}
    assert crops == {32: 1.0, 24: 0.875}


def test_mirror_images_of_other_classes_are_found_out(tmp_path, rng):
    """Brighter towards the left or towards the right, seen by a network that detects edges."""
    inputs = keras.Input((32, 32, 3))
    edges = keras.layers.Conv2D(2, 5, 2, activation="relu", name="edges")
    x = edges(inputs)
    slope = np.linspace(-1, 1, 5)[None, :, None] * np.ones((5, 1, 3))
    edges.set_weights([np.stack([slope, -slope], axis=-1), np.zeros(2)])
    path = str(tmp_path / "edges.keras")
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="edges").save(path)
    labels = np.arange(80) % 2
    ramp = 4 * np.arange(32)[None, None, :, None]
    images = np.where(labels[:, None, None, None], ramp, ramp[:, :, ::-1])
    images = images + rng.integers(0, 100, (80, 32, 32, 3))
    found = compare(from_arrays((images.astype("uint8"), labels)), path, image_size=32)
    assert not found.mirror and found.mirror_gain[0] < -found.mirror_gain[1]
    same = compare(from_arrays((shades(labels, rng), labels)), path, image_size=32)
    assert same.mirror
