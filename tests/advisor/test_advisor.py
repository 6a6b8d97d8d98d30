"""Advice on a few real images: its content, its time limit and its errors."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_transfer.advisor.advice import Advice
from keras_transfer.advisor.api import advise
from keras_transfer.advisor.evidence import Evidence
from keras_transfer.advisor.rules import SHORTLIST, STRATEGIES, candidates, fallback_backbone
from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import BACKBONES

SIZE = 64


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Use a separate cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path_factory.mktemp("cache")))
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


def test_a_source_model_is_compared_with_those_of_imagenet(advice, source):
    names = {row.candidate.backbone for row in advice.evidence.rows}
    assert names == {"mobilenet_0.25", source}
    assert advice.choice.backbone == advice.evidence.best.backbone in names
    assert advice.choice.strategy in STRATEGIES and advice.evidence.signal
    assert advice.evidence.expected > 0.7
    assert advice.facts.likeness == "different" and advice.facts.size == "small"
    assert advice.textbook.strategy == "freeze_k"  # small and different


def test_the_text_is_short_and_explains_on_request(advice):
    text = str(advice)
    assert text.startswith(f"Advice: train {advice.choice}. It takes about ")
    assert str(advice.evidence) in text and advice.probes.verdict in text
    assert "Textbook" not in text
    whole = advice.text(explain=True)
    assert whole.startswith(text) and "Textbook: freeze_k k=0.333" in whole
    assert advice.evidence.table() in whole and "from_scratch" in whole


def test_json_is_plain_data(advice, source):
    plain = json.loads(json.dumps(advice.to_dict(), allow_nan=False))
    assert plain["choice"]["backbone"] == advice.choice.backbone
    rows = plain["evidence"]["candidates"]
    assert {row["backbone"] for row in rows} == {"mobilenet_0.25", source}
    assert rows[0]["behind"] == 0 and plain["evidence"]["examples"] == 72
    assert plain["textbook"]["likeness"] == "different"
    assert set(plain["costs"]) == set(STRATEGIES)
    assert plain["stages"]["stages_worth_keeping"] == advice.probes.stages_worth_keeping


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
    assert found["choice"]["backbone"] == advice.choice.backbone
    assert found["evidence"]["candidates"] == advice.to_dict()["evidence"]["candidates"]
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


def test_little_time_leaves_the_closed_form(data, real_weights, monkeypatch):
    monkeypatch.setattr(Evidence, "expected", 0.7)
    whole = quick(data)
    assert whole.choice.strategy == "lp_ft" and whole.choice.minutes > 0
    little = quick(data, minutes=1e-3)
    assert little.choice.strategy == "feature_extraction"
    assert "not expected to be worth its time" in little.choice.why
    assert quick(data, policy="classical").choice.strategy == "freeze_k"


def test_random_labels_are_detected(data, real_weights):
    found = quick(shuffled(data))
    assert found.choice.strategy == "feature_extraction"
    assert "The features carry no signal for these labels" in found.text()
    assert found.to_dict()["evidence"]["signal"] is False


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


def test_poor_data_gets_the_default_with_a_reason(real_weights):
    for classes in (range(8), [0, 0, 0, 1], [0, 0, 0, 0]):
        found = quick(few(classes), probes=True)
        assert not found.evidence.rows and "too few examples to compare" in found.text()
        assert "two different training images" in found.notes[0]
    with pytest.raises(InputError, match="has no train images; it has all"):
        quick(few([0, 0, 1, 1], "all"))
