"""Transfer against training from scratch: measures, verdicts, resuming."""

import json

import keras
import numpy as np
import pytest
from conftest import tiny_backbone
from scipy.stats import ttest_rel
from typer.testing import CliRunner

import keras_transfer as kt
from keras_transfer.cli.main import app
from keras_transfer.data import ImageData, Target
from keras_transfer.errors import InputError
from keras_transfer.experiments.compare import Experiment, draw_images
from keras_transfer.experiments.comparison import AtSize, Comparison
from keras_transfer.experiments.comparison_plot import saving_to_draw
from keras_transfer.experiments.learning_curves import (
    Curve,
    Interval,
    Saving,
    common_level,
    images_needed,
    savings,
    slope,
)
from keras_transfer.models.heads import Classification
from keras_transfer.utils.checkpoint import Checkpoint

# -- learning curves ------------------------------------------------------------------------------


def test_start_asymptote_and_slope_by_hand():
    low = Curve.of([0.1, 0.1, 0.2, 0.3, 0.5, 0.4, 0.5, 0.5])
    high = Curve.of([0.7, 0.8, 0.8, 0.8, 0.8, 0.9, 0.9, 0.9])
    assert (low.start, low.asymptote) == (0.1, pytest.approx(0.5))  # the last two of eight
    assert Curve.of([0.2, 0.6]).asymptote == 0.6
    level = common_level([high, low], chance=0.1)
    assert level == pytest.approx(0.1 + 0.95 * 0.4)
    assert (low.epochs_to(level), high.epochs_to(level)) == (5, 1)
    assert slope(low, level, 0.1) == pytest.approx(0.38 / 5)
    assert slope(high, level, 0.1) == pytest.approx(0.38)
    assert common_level([high, Curve.of([0.1, 0.1])], chance=0.1) is None


def test_every_curve_reaches_the_common_level(rng):
    for _ in range(200):
        pair = [Curve.of(rng.random(rng.integers(1, 12))) for _ in range(2)]
        level = common_level(pair, chance=0.0)
        assert all(1 <= curve.epochs_to(level) <= len(curve.accuracy) for curve in pair)


def test_the_interval_is_that_of_the_paired_t_test(rng):
    a, b = rng.random((2, 5))
    found, expected = Interval.of(a - b), ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    three = Interval.of([1.0, 2.0, 3.0])
    assert (three.mean, three.high) == (2, pytest.approx(2 + 4.302653 / 3**0.5))
    assert three.sign == 0 and Interval.of([1.0, 1.1, 1.2]).sign == 1
    assert Interval.of([-1.0, -2.0]).sign == 0 and Interval.of([-1.0, -1.01]).sign == -1
    one = Interval.of([0.3])
    assert (one.mean, one.low, one.high, one.sign) == (0.3, None, None, 0)


# -- images saved -------------------------------------------------------------------------------

IMAGES = np.array([10.0, 20.0, 40.0])


def test_images_needed_by_hand():
    rising = np.array([0.2, 0.4, 0.6])
    assert images_needed(IMAGES, rising, 0.4) == pytest.approx(20)
    assert images_needed(IMAGES, rising, 0.5) == pytest.approx(20 * 2**0.5)
    assert images_needed(IMAGES, rising, 0.2) == 10
    assert images_needed(IMAGES, rising, 0.1) == 0
    assert np.isinf(images_needed(IMAGES, rising, 0.61))
    # A dip: 0.4 and 0.2 both become 0.3, which ten images reach.
    assert images_needed(IMAGES, np.array([0.4, 0.2, 0.6]), 0.3) == pytest.approx(10)
    assert images_needed(IMAGES, np.array([0.4, 0.2, 0.6]), 0.45) == pytest.approx(20 * 2**0.5)


def test_saved_images_and_their_bounds():
    scratch = np.array([[0.2, 0.4, 0.6], [0.2, 0.4, 0.6]])
    transfer = np.array([[0.4, 0.6, 0.7], [0.4, 0.6, 0.7]])  # one size ahead, the last beyond all
    ten, twenty, forty = savings([10, 20, 40], transfer, scratch)
    for found in (ten, twenty):
        assert found.ratio == pytest.approx(2) and found.bound is None
        assert (found.low, found.high) == pytest.approx((2, 2))
    assert (forty.ratio, forty.bound, forty.low, forty.high) == (1, "least", 1, None)
    assert str(forty) == "≥ 1× [1, –]" and str(ten) == "2× [2, 2]"
    (worse,) = savings([10], np.array([[0.1]]), np.array([[0.2]]))
    assert (worse.ratio, worse.bound, worse.low, worse.high) == (1, "most", None, None)


def test_the_bootstrap_draws_seeds_with_all_sizes_and_both_arms(rng):
    # Each seed has its own level, equal in both arms: transfer always saves half of the images.
    offsets = rng.normal(0, 0.05, (4, 1))
    scratch = np.array([[0.2, 0.4, 0.6]]) + offsets
    transfer = np.array([[0.4, 0.6, 0.6]]) + offsets
    ten, twenty, _ = savings([10, 20, 40], transfer, scratch)
    assert (ten.low, ten.high, twenty.high) == pytest.approx((2, 2, 2))
    # If the seeds disagree, the interval is wide.
    transfer[:, 0] = (0.2, 0.4, 0.4, 0.6)
    ten = savings([10, 20, 40], transfer, np.broadcast_to([[0.2, 0.4, 0.6]], (4, 3)))[0]
    assert ten.low < 1.5 and ten.high > 2.5


# -- a comparison ---------------------------------------------------------------------------------


def comparison(*sizes, chance=0.1, val_images=600):
    """Sizes as (images per class, curves of transfer, curves from scratch), ten classes."""
    found = tuple(
        AtSize(n, 10 * n, tuple(map(Curve.of, own)), tuple(map(Curve.of, other)), chance)
        for n, own, other in sizes
    )
    seeds = tuple(range(len(found[0].transfer)))
    return Comparison("net", "lp_ft", 10, val_images, seeds, 1.0, found)


FAST = [[0.6, 0.8, 0.9, 0.9], [0.5, 0.8, 0.9, 0.88], [0.55, 0.7, 0.9, 0.91]]
SLOW = [[0.1, 0.2, 0.4, 0.5], [0.1, 0.3, 0.4, 0.52], [0.12, 0.2, 0.5, 0.51]]


def test_all_three_advantages():
    found = comparison((5, FAST, SLOW))
    advantages = found.at(5).advantages
    differences = [0.5, 0.4, 0.43]
    assert advantages.start == Interval.of(differences)
    assert advantages.start.mean == pytest.approx(np.mean(differences))
    assert advantages.asymptote.mean == pytest.approx((0.9 + 0.88 + 0.91 - 0.5 - 0.52 - 0.51) / 3)
    levels = [0.1 + 0.95 * (end - 0.1) for end in (0.5, 0.52, 0.51)]
    assert found.at(5).levels == pytest.approx(levels)
    # Transfer reaches the level in the first epoch, training from scratch in the last two.
    expected = [(n - 0.1) * (1 - 1 / k) for n, k in zip(levels, (4, 4, 3))]
    assert advantages.slope.mean == pytest.approx(np.mean(expected))
    assert found.at(5).epochs_to_level("scratch") == pytest.approx(11 / 3)
    assert all(getattr(advantages, name).sign == 1 for name in ("start", "slope", "asymptote"))
    assert found.negative == ()
    for words in ("starts higher (+44.3", "learns faster", "after 1 epoch,", "ends higher (+38.7"):
        assert words in found.verdict
    assert "from scratch is not as good at any size (≥ 1× [1, –] the examples)" in found.verdict


def test_negative_transfer_is_reported():
    found = comparison((5, FAST, SLOW), (20, SLOW, FAST))
    assert found.negative == (20,) and found.to_dict()["negative_transfer"] == [20]
    first, second = found.verdict.splitlines()
    assert "Negative transfer" in second and "Negative transfer" not in first
    assert "starts lower" in second and "learns slower" in second and "ends lower" in second


def test_insignificant_differences_are_not_claimed():
    same = comparison((5, FAST, FAST[::-1]))
    assert same.negative == () and "shows no significant advantage at the end" in same.verdict
    assert "no significantly different speed" in same.verdict
    one = comparison((5, FAST[:1], SLOW[:1]))
    assert "With one seed" in one.verdict and one.negative == ()
    json.dumps(one.to_dict())
    chance = [[0.1, 0.11, 0.12]] * 3
    nothing = comparison((5, chance, [[0.1, 0.1, 0.09]] * 3), val_images=100)
    assert "neither arm learns anything" in nothing.verdict
    assert nothing.at(5).advantages.slope is None and "–" in nothing.table()
    alone = comparison((5, FAST, [[0.1, 0.1, 0.1, 0.1]] * 3))
    assert "is the only arm that learns" in alone.verdict


def test_table_json_and_plot(tmp_path):
    found = comparison((5, FAST, SLOW), (20, [[0.9] * 4] * 3, FAST), (80, FAST, FAST))
    assert len(found.table().splitlines()) == 2 + 9
    assert "| 5 | transfer | 55.0 |" in found.table()
    assert found.at().a_class == 20  # the middle one
    with pytest.raises(
        InputError, match=r"7 examples per class were not compared. Choose from 5, 20"
    ):
        found.at(7)
    found.write(tmp_path, a_class=5)
    read = json.loads((tmp_path / "comparison.json").read_text())
    assert read == json.loads(json.dumps(found.to_dict()))
    assert read["sizes"][0]["transfer"]["curves"] == FAST
    assert read["sizes"][0]["images_saved"]["bound"] is None
    assert (tmp_path / "comparison.md").read_text().startswith("| examples per class |")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_shows_an_informative_saving():
    least, real, most = Saving(1, "least", 1, None), Saving(2, None, 1, 3), Saving(1, "most", 1, 1)
    assert saving_to_draw([real, real, least], 1) == 1
    assert saving_to_draw([real, real, least], 2) == 1  # no larger size: the one before it
    assert saving_to_draw([Saving(0.5, "most", 1, 1), most], 1) == 0
    assert saving_to_draw([least], 0) is None


# -- samples and settings -------------------------------------------------------------------------


def test_samples_are_nested_stratified_and_differ_by_seed(rng):
    labels = rng.permutation(np.repeat([0, 1, 2], [30, 30, 4]))
    before = set()
    for size in (1, 2, 5, 20, 30):
        rows = draw_images(labels, size, seed=3)
        assert before < set(rows) and (np.diff(rows) > 0).all()
        assert np.bincount(labels[rows]).tolist() == [size, size, min(size, 4)]
        before = set(rows)
    assert set(draw_images(labels, 5, 3)) != set(draw_images(labels, 5, 4))


@pytest.fixture
def data(colours):
    return kt.data.from_directory(colours, progress=False)


@pytest.fixture
def source(tmp_path):
    """A small model as a `.keras` file, so that nothing has to be downloaded."""
    keras.utils.set_random_seed(0)
    model = kt.build_model(tiny_backbone(), Classification("abc"), image_size=32)
    model.save(tmp_path / "source.keras")
    return str(tmp_path / "source.keras")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"sizes": [2, 11]}, "Cannot draw 11 training examples per class: give 1 to 10"),
        ({"sizes": []}, "at least one size"),
        ({"seeds": [1, 1]}, "seeds must be different"),
        ({"seeds": []}, "seeds must be different"),
        ({"epochs": 0}, "epochs must be 1 or more"),
        ({"scratch_budget": 0}, "scratch_budget must be above 0"),
        ({"strategy": "from_scratch"}, "trains from scratch: choose"),
        ({"strategy": "magic"}, "Unknown strategy"),
        ({"overrides": {"al.ema": 0.9}}, "has the phases head, all"),
        ({"scratch_overrides": {"head.ema": 0.9}}, "has the phases all"),
        ({"weights": None}, "cannot be transferred"),
        ({"show": 3}, "Cannot show 3"),
        ({"backbone": "resnet5"}, "did you mean resnet50"),
        ({"epoch": 3}, "Unknown option 'epoch' of compare. Did you mean epochs"),
    ],
)
def test_invalid_settings_are_reported_and_nothing_is_written(
    data, tmp_path, source, settings, words
):
    with pytest.raises(InputError, match=words):
        Experiment(data, tmp_path / "out", **{"backbone": source, **settings})
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_compared(data, tmp_path, source):
    alone = ImageData(data.class_names, {"train": data.examples["train"]}, [], "here")
    with pytest.raises(InputError, match="here has no val images"):
        Experiment(alone, tmp_path / "out", backbone=source)


def with_targets(data, targets, convert):
    """Return the same images with other labels, made from the classes."""
    parts = {
        split: kt.data.Examples(part.images, convert(part.labels))
        for split, part in data.examples.items()
    }
    names = () if isinstance(targets, dict) else targets.names
    return ImageData(names, parts, [], "", targets)


def as_labels(classes):
    return np.stack([classes > 0, classes < 2], axis=1).astype("float32")


def as_numbers(classes):
    return np.stack([5.0 + classes], axis=1).astype("float32")


@pytest.mark.parametrize(
    "targets, convert, score, chance",
    [
        (Target("multi_label", ("a", "b")), as_labels, "mean average precision", 5 / 7),
        (Target("regression", ("age",)), as_numbers, "R²", 0.0),
        (
            {"age": Target("regression", ("age",)), "kind": Target("multi_label", ("a", "b"))},
            lambda classes: {"age": as_numbers(classes), "kind": as_labels(classes)},
            "mean score",
            5 / 14,
        ),
    ],
    ids=["labels", "numbers", "heads"],
)
def test_other_tasks_are_compared_by_their_own_score(
    data, tmp_path, source, cache, targets, convert, score, chance
):
    other = with_targets(data, targets, convert)
    found = kt.compare(other, tmp_path / "out", **{**settings_of(source), "epochs": 2}, sizes=[12])
    assert found.score == score and found.at(12).images == 12  # in all, not per class
    assert found.at(12).chance == pytest.approx(chance, abs=0.1)
    start, *_ = found.at(12).transfer[0].accuracy
    assert start > found.at(12).scratch[0].start and start > chance
    assert found.verdict.startswith("12 examples: ") and "per class" not in str(found)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["sizes_are"] == "images"


def test_default_sizes_and_lengths(data, tmp_path, source):
    many = ImageData(
        data.class_names,
        {
            "train": kt.data.Examples(["x.png"] * 330, np.repeat([0, 1, 2], [150, 130, 50])),
            "val": data.examples["val"],
        },
        [],
        "",
    )
    many.fingerprint = dict  # the files do not exist
    found = Experiment(many, tmp_path / "a", backbone=source)
    assert found.sizes == (5, 10, 20, 40, 80, 150)  # 160 is left out, and 150 means all
    assert [found._images(n) for n in (5, 80, 150)] == [15, 210, 330]
    # Both arms have the epochs of from_scratch.
    assert found._epochs("transfer", 5) == found._epochs("scratch", 5) == 120
    more = Experiment(many, tmp_path / "b", backbone=source, epochs=10, scratch_budget=2.5)
    assert (more._epochs("transfer", 5), more._epochs("scratch", 5)) == (10, 25)
    # The strategy has a length of its own in steps: 8000 of 32 images.
    bit = Experiment(many, tmp_path / "c", backbone=source, strategy="bit", sizes=[None])
    assert bit._epochs("scratch", 150) == -(-8000 // 11)


# -- training -------------------------------------------------------------------------------------


class Stop(Exception):
    """Simulates the death of the process at an exact moment."""


def stop_at(monkeypatch, run, epoch):
    """Dies when an epoch of the run-th training is written."""
    save, begun = Checkpoint.save, []

    def save_and_stop(self, state, *args):
        save(self, state, *args)
        begun.extend([self.folder] * (self.folder not in begun))
        if len(begun) == run and state["epoch"] == epoch:
            raise Stop

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)


def command(*args):
    return CliRunner().invoke(app, ["compare", *map(str, args)])


def put(out, size, seed, **accuracies):
    """Write curves as if their runs had been trained."""
    for arm, accuracy in accuracies.items():
        file = out / "runs" / f"{size}_a_class" / f"seed_{seed}" / f"{arm}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"accuracy": accuracy}))


def settings_of(source):
    return {
        "backbone": source,
        "seeds": [0],
        "epochs": 3,
        "batch_size": 8,
        "augment": "none",
        "precision": "float32",
    }


def test_a_killed_comparison_is_resumed(data, tmp_path, source, cache, monkeypatch):
    settings = {**settings_of(source), "sizes": [2]}
    out, folder = tmp_path / "out", tmp_path / "out/runs/2_a_class/seed_0"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, run=2, epoch=2)
        kt.compare(data, out, **settings)
    assert (folder / "transfer.json").is_file() and not (folder / "scratch.json").exists()
    stamp = (folder / "transfer.json").stat().st_mtime_ns
    found = kt.compare(data, out, **settings)
    assert (folder / "transfer.json").stat().st_mtime_ns == stamp  # not trained again
    assert "resuming after epoch 2" in (folder / "scratch.log").read_text()
    assert len(found.at(2).scratch[0].accuracy) == 3
    assert len(found.at(2).transfer[0].accuracy) == 4  # the closed-form head comes before them
    assert not list(out.rglob("model.keras")) and not list(out.rglob("state"))
    # The killed run, trained in one go, gives the same curve; its model is saved on request.
    put(tmp_path / "alone", 2, 0, transfer=[0.5] * 4)
    (tmp_path / "alone" / "settings.json").write_text((out / "settings.json").read_text())
    alone = kt.compare(data, tmp_path / "alone", **settings, keep_models=True)
    assert alone.at(2).scratch == found.at(2).scratch
    assert alone.at(2).transfer[0].accuracy == (0.5,) * 4
    assert (tmp_path / "alone/runs/2_a_class/seed_0/scratch/model.keras").is_file()


def test_the_minutes_are_a_limit_and_what_is_complete_is_the_result(
    data, tmp_path, source, cache, capsys
):
    settings = {**settings_of(source), "seeds": [0, 1], "sizes": [2], "minutes": 1e-12}
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"minutes are over.* 0 of 4 runs"):
        kt.compare(data, out, **settings)
    assert "4 trainings on" in capsys.readouterr().err
    Experiment(data, out, **settings)
    put(out, 2, 0, transfer=[0.6, 0.8, 0.8], scratch=[0.4, 0.5, 0.6])
    assert kt.compare(data, out, **settings).seeds == (0,)
    assert "over after 2 of 4 runs" in capsys.readouterr().err
    # Finished runs behind a missing one count, too.
    more = {**settings, "sizes": [2, 5]}
    put(out, 2, 1, transfer=[0.6, 0.8, 0.8], scratch=[0.4, 0.5, 0.6])
    with pytest.raises(InputError, match=r"minutes are over.* 4 of 8 runs are saved"):
        kt.compare(data, out, **more)


def test_sizes_and_seeds_may_grow_but_settings_must_not_change(
    data, tmp_path, source, cache, colours
):
    settings, out = settings_of(source), tmp_path / "out"
    Experiment(data, out, **settings, sizes=[2])
    put(out, 2, 0, transfer=[0.6, 0.8, 0.8], scratch=[0.4, 0.5, 0.6])
    assert kt.compare(data, out, **settings, sizes=[2]).at(2).advantages.start.low is None
    put(out, 2, 1, transfer=[0.7, 0.9, 0.9], scratch=[0.4, 0.5, 0.6])
    put(out, 10, 0, transfer=[0.7, 0.9, 0.9], scratch=[0.4, 0.7, 0.8])
    put(out, 10, 1, transfer=[0.7, 0.9, 0.9], scratch=[0.4, 0.7, 0.9])
    grown = kt.compare(data, out, **{**settings, "seeds": [0, 1]}, sizes=[2, None])
    assert [size.images for size in grown.sizes] == [6, 29]
    assert grown.at(2).advantages.asymptote == Interval.of([0.8 - 0.6, 0.9 - 0.6])
    # Training from scratch reaches the 0.85 of transfer with all images.
    assert grown.savings[0].ratio == pytest.approx(29 / 6)
    with pytest.raises(InputError, match="with different settings: batch_size: 8 is now 4"):
        Experiment(data, out, **{**settings, "batch_size": 4})
    with pytest.raises(InputError, match="is not empty and contains no comparison"):
        Experiment(data, colours, **settings)
    (colours / "red" / "0.png").unlink()
    fewer = kt.data.from_directory(colours, progress=False)
    with pytest.raises(InputError, match="the images changed"):
        Experiment(fewer, out, **settings, sizes=[2])


def test_the_command(tmp_path, colours, source, cache):
    options = ("--backbone", source, "--epochs", 2, "--no-flip", "--batch-size", 8)
    wrong = command(colours, "--out", tmp_path / "out", *options, "--sizes", "2,many")
    assert isinstance(wrong.exception, InputError)
    assert "use numbers and commas" in str(wrong.exception)
    wrong = command(colours, "--out", tmp_path / "out", *options, "--seeds", "few")
    assert isinstance(wrong.exception, InputError) and "--seeds few" in str(wrong.exception)
    assert not (tmp_path / "out").exists()
    options = (*options, "--sizes", "all", "--seeds", 1, "--json")
    done = command(colours, "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["seeds"] == [0] and found["sizes"][0]["a_class"] == 10
    assert len(found["sizes"][0]["scratch"]["curves"][0]) == 2
    assert found["sizes"][0]["advantages"]["start"]["low"] is None
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    assert (tmp_path / "out" / "comparison.png").is_file()


@pytest.mark.large  # by default notebook 03 does it, in test_notebooks.py
def test_real_weights_give_a_higher_start(real_weights, real_data, tmp_path, cache):
    whole = kt.data.from_directory(real_data / "sign_digits", progress=False)
    val = whole.examples["val"]
    few = val.take(draw_images(val.labels, 10, 0))
    examples = {"train": whole.examples["train"], "val": few}
    data = ImageData(whole.class_names, examples, [], whole.root)
    found = kt.compare(
        data,
        tmp_path / "out",
        backbone="mobilenet_0.25",
        overrides={"head_epochs": 4, "head_learning_rate": 1e-2},
        sizes=[10],
        seeds=[0],
        image_size=96,
        epochs=5,
        batch_size=20,
        augment="none",
        precision="float32",
    )
    (size,) = found.sizes
    assert size.mean("transfer", "start") > size.mean("scratch", "start") + 0.1
    assert size.mean("transfer", "asymptote") > size.mean("scratch", "asymptote") + 0.2
