"""Advice on a few real images: its content, its time limit and its errors."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.advisor import api as advisor
from keras_transfer.advisor import costs as timing
from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.api import advise
from keras_transfer.advisor.rules import (
    SHORTLIST,
    STRATEGIES,
    candidates,
    choose,
    fallback_backbone,
)
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Target
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import BACKBONES

SIZE = 64
SECONDS = {"step": 0.01, "start": 4.0}  # an image, and to begin


@pytest.fixture(scope="module", autouse=True)
def same_speed(tmp_path_factory):
    """Use a separate cache, and a machine whose speed does not vary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(timing, "_timed", lambda backbone, batch_size: dict(SECONDS))
        yield


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """{train,val}/{0,5,9}: 24 and 4 hands each."""
    folder = tmp_path_factory.mktemp("signs")
    for name in "059":
        files = sorted((real_data / "sign_digits" / name).iterdir())[:28]
        for i, file in enumerate(files):
            to = folder / ("train" if i < 24 else "val") / name
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return from_directory(folder, progress=False)


@pytest.fixture(scope="module")
def source(real_weights, tmp_path_factory):
    """A run directory with the user's own source model, with ImageNet weights."""
    run = tmp_path_factory.mktemp("source")
    model = build_model("mobilenet_v2_0.35", Classification("ab"), image_size=SIZE)
    model.save(run / "model.keras")
    return str(run)


@pytest.fixture(scope="module")
def advice(data, source):
    names = ["mobilenet_0.25", source]
    return advise(data, backbones=names, image_size=SIZE, engine="keras")


def shuffled(data):
    train = data.examples["train"]
    labels = np.random.default_rng(1).permutation(train.labels)
    return ImageData(data.class_names, {"train": Examples(train.images, labels)}, [], data.root)


# -- content ---------------------------------------------------------------------------------------


def test_a_source_model_is_ranked_with_those_of_imagenet_and_chosen(advice, source):
    assert {row.name for row in advice.ranking.rows} == {"mobilenet_0.25", source}
    assert advice.choice.backbone == source
    assert advice.choice.strategy == "lp_ft" and advice.facts.likeness == "different"
    assert advice.facts.signal and advice.ranking.rows[0]["probe"].value > 0.7
    # Another network, or less of the same: what is worth a race.
    assert advice.contender is not None and advice.contender != advice.choice


def test_the_text_gives_the_reasons(advice):
    text = str(advice)
    assert "72 training images in 3 classes, 24 per class: a small dataset" in text
    shift = f"activation shift from the pretraining images is {advice.facts.shift:.3f}: different"
    assert shift in text
    recommendation, reason = text.splitlines()[:2]
    assert recommendation.startswith(f"Advice: train {advice.choice.backbone} with lp_ft")
    assert f"takes about {advice.choice.time}" in recommendation and reason == advice.choice.why
    assert "Signal: the features tell the classes apart" in text
    assert advice.probes.verdict in text
    others = text.split("other strategies: ")[1].splitlines()[0]
    assert "feature_extraction" in others and "lp_ft" not in others  # it is the choice


def test_json_is_plain_data(advice, source):
    plain = json.loads(json.dumps(advice.to_dict(), allow_nan=False))
    assert plain["choice"]["backbone"] == source
    assert plain["choice"]["overrides"] == {"learning_rate": 1e-3, "epochs": 194}
    assert plain["data"]["images"] == 72 and plain["data"]["likeness"] == "different"
    assert {row["backbone"] for row in plain["ranking"]["backbones"]} == {"mobilenet_0.25", source}
    assert [cost["strategy"] for cost in plain["costs"]][2:] == [
        "feature_extraction",
        "lp_ft",
        "from_scratch",
    ]
    assert {cost["strategy"] for cost in plain["costs"]} == set(STRATEGIES)
    assert plain["stages"]["stages_worth_keeping"] == advice.probes.stages_worth_keeping
    assert set(advice.brief()) == {"policy", "choice", "data", "notes"}
    assert choose(advice.facts)[0].strategy == plain["choice"]["strategy"]


def test_the_stages_are_plotted(advice, tmp_path):
    advice.draw(tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    plain = {**vars(advice), "probes": None}
    with pytest.raises(InputError, match="probes=True"):
        Advice(**plain).draw(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_command_prints_one_document(advice, folder, source, tmp_path):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    options = ["--backbones", f"mobilenet_0.25, {source}", "--image-size", str(SIZE), "--json"]
    image = tmp_path / "stages.png"
    result = CliRunner().invoke(app, ["advise", str(folder), *options, "--plot", str(image)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["choice"]["backbone"] == source
    assert found["data"] == advice.to_dict()["data"]
    assert image.read_bytes().startswith(b"\x89PNG")


def test_advice_says_whether_adaptation_is_worth_trying(data, folder, source, tmp_path):
    """The same images, and darkened copies of them."""
    same = advise(data, target=data, backbones=[source], image_size=SIZE, probes=False)
    assert not same.distance.worth_trying and not same.to_dict()["target"]["worth_trying"]
    assert (
        "Adaptation is not worth trying" in same.text()
        and "keras-transfer adapt" not in same.text()
    )
    for i, file in enumerate(sorted((folder / "train").rglob("*.*"))):
        with Image.open(file) as image:
            image.convert("RGB").point(lambda value: value // 5).save(tmp_path / f"{i}.png")
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    command = ["advise", str(folder), "--backbones", source, "--image-size", str(SIZE)]
    result = CliRunner().invoke(app, [*command, "--target", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "Target domain: Adaptation is worth trying" in result.stdout
    assert "Run `keras-transfer adapt`" in result.stdout
    result = CliRunner().invoke(app, [*command, "--target", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, InputError) and "nowhere" in str(result.exception)


# -- time limit and data -----------------------------------------------------------------------------


def quick(data, **options):
    options = {"backbones": ["mobilenet_0.25"], "image_size": SIZE, "probes": False, **options}
    return advise(data, engine="keras", **options)


def test_the_advice_respects_the_time_limit(data, real_weights):
    whole = quick(data)
    epochs = whole.choice.overrides["epochs"]
    assert whole.choice.strategy == "lp_ft" and epochs == 194
    assert not whole.notes
    minutes = 0.7 * whole.choice.seconds / 60
    shorter = quick(data, minutes=minutes)
    assert (
        shorter.choice.strategy == "lp_ft"
        and 0.5 * epochs < shorter.choice.overrides["epochs"] < 0.8 * epochs
    )
    assert shorter.choice.seconds <= 60 * minutes < whole.choice.seconds
    assert shorter.contender is None
    (note,) = shorter.notes
    assert f"longer than the limit of {minutes:g} min" in note and note in shorter.text()
    assert shorter.choice.why == f"This is the closest to {whole.choice} that fits the time limit."


def test_little_time_changes_the_strategy_and_too_little_gives_the_cheapest(data, real_weights):
    costs = {cost.strategy: cost.seconds for cost in quick(data).costs}
    little = quick(data, minutes=1.5 * costs["feature_extraction"] / 60)
    assert little.choice.strategy == "feature_extraction" and not little.choice.overrides
    none = quick(data, minutes=1e-5)
    assert none.choice.strategy == "feature_extraction"
    assert none.choice.seconds == costs["feature_extraction"] == min(costs.values())
    assert "No strategy fits the time limit; this is the cheapest" in none.text()


def test_random_labels_are_detected(data, real_weights):
    found = quick(shuffled(data))
    assert found.choice.strategy == "feature_extraction" and found.contender is None
    assert "The features carry no signal for these labels" in found.text()
    plain = found.to_dict()
    assert plain["data"]["signal"] is False and plain["ranking"]["signal"] is False
    assert "no signal" in plain["choice"]["why"]


def test_backbones_that_cannot_be_built_are_skipped_with_a_note(data, real_weights):
    plain = keras.Sequential([keras.Input((SIZE, SIZE, 3)), keras.layers.Flatten()], name="flat")
    found = quick(data, backbones=[plain, "mobilenet_0.25"])
    assert found.choice.backbone == "mobilenet_0.25"
    (note,) = found.notes
    assert note.startswith("flat is skipped: ") and "no keras_transfer backbone" in note
    assert note in found.text()
    with pytest.raises(InputError, match="no keras_transfer backbone"):
        quick(data, backbones=[plain])


def test_backbones_with_local_weights_come_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert candidates() == list(SHORTLIST) and fallback_backbone() == SHORTLIST[0]
    (tmp_path / "models").mkdir()

    def put(*names):
        for name in names:
            (tmp_path / "models" / BACKBONES[name].weights_file).touch()

    put("mobilenet_v2_0.35", "xception", "mobilenet_0.25")
    by_size = ["mobilenet_0.25", "mobilenet_v2_0.35", "xception"]
    assert candidates() == by_size and fallback_backbone() == "xception"
    assert candidates(64) == by_size[:2]  # too small for the other
    put("resnet50", "vgg16", "densenet121", "nasnet_mobile")
    found = candidates()
    assert found[0] == "resnet50" and len(found) == 6 and "xception" not in found
    assert "skips xception" in capsys.readouterr().err
    assert fallback_backbone() == "resnet50"


# -- invalid input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"policy": "magic"}, "Unknown policy 'magic'"),
        ({"minutes": 0}, "minutes must be above 0, not 0"),
        ({"minutes": float("nan")}, "not nan"),
        ({"backbones": []}, "backbones is empty"),
        ({"backbones": ["./none.keras"]}, "does not exist"),
        ({"backbones": ["resnet5"]}, "did you mean resnet50"),
    ],
)
def test_invalid_options(options, words):
    with pytest.raises(InputError, match=words):
        advise(few(range(8)), **options)


def few(classes, split="train", labels=None, target=None):
    """One distinct image per entry of `classes`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(classes), 32, 32, 3)).astype("uint8")
    labels = np.array(classes, "int32") if labels is None else labels
    names = target.names if target else tuple("abcdefgh")
    return ImageData(names, {split: Examples(Arrays(images), labels)}, [], "data", target)


def test_repeated_backbones_are_refused(data):
    keras.utils.set_random_seed(0)
    models = [build_model(small_backbone(), Classification("ab"), image_size=32) for _ in "ab"]
    with pytest.raises(InputError, match="Two backbones are named 'small_resnet_single_label'"):
        advise(data, backbones=models)


def test_poor_data_ends_in_one_clear_error(monkeypatch, real_weights):
    """The error comes before any computation."""
    monkeypatch.setattr(advisor, "sized_backbone", None)
    duplicate = few([0, 1]).examples["train"].take(np.array([0, 0, 1, 1]))
    copies = ImageData(("a", "b"), {"train": duplicate}, [], "data")
    one_label = np.eye(4, dtype="float32")[:, :2]
    for poor, words in [
        (few(range(8)), "0 of 8 classes have two different training images"),
        (few([0, 0, 0, 1]), "1 of 8 classes have two different training images"),
        (few([0, 0, 0, 0]), "1 of 8 classes have two different training images"),
        (copies, "0 of 2 classes have two different training images"),
        (few([0, 0, 1, 1], "all"), "has no train images; it has all"),
        (
            few(range(4), labels=one_label, target=Target("multi_label", ("a", "b"))),
            "labeled for multi_label, but advice needs one class per image",
        ),
    ]:
        with pytest.raises(InputError, match=words):
            advise(poor, backbones=["mobilenet_0.25"])
