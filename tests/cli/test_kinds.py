"""Settings of other kinds of examples, and what the commands say before they train."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny_backbone, write_colours, write_words
from killed import killed_after
from typer.testing import CliRunner

from keras_transfer.cli.kinds import require_suitable, say_ineffective, unflipped
from keras_transfer.cli.main import app
from keras_transfer.data.evaluation_data import check_to_predict
from keras_transfer.errors import InputError
from keras_transfer.modalities import find_modality, modalities
from keras_transfer.runs import Run
from keras_transfer.training.config import TrainConfig


def call(words):
    app([str(word) for word in words.split()], standalone_mode=False)


@pytest.mark.parametrize(
    "kind, settings, said",
    [
        ("text", {"crop": 0.5}, "--crop is for images, but these are texts: leave it out"),
        ("text", {"image_size": 64}, "--image-size is for images and clips, but these are texts"),
        ("audio", {"channels": 5}, "--channels is for images, but these are clips"),
        ("audio", {"tokens": 7}, "--tokens is for texts, but these are clips"),
        ("image", {"tokens": 7}, "--tokens is for texts, but these are images"),
    ],
)
def test_a_setting_of_other_examples_is_refused(kind, settings, said):
    with pytest.raises(InputError) as raised:
        require_suitable(find_modality(kind), TrainConfig(**settings))
    assert said in str(raised.value)


def test_each_kind_takes_its_own_settings():
    own = {"image_size": 64, "crop": 0.5, "channels": 5, "depth": "full", "tokens": 16}
    for modality in modalities():
        settings = {name: own[name] for name in modality.framed_by}
        assert settings
        require_suitable(modality, TrainConfig(**settings))


def test_what_is_never_mirrored_needs_no_option(capsys):
    settings = SimpleNamespace(no_flip=True, augment="auto")
    config = TrainConfig(augment={"flip": False})
    assert unflipped(find_modality("image"), config, settings) is config
    found = unflipped(find_modality("audio"), config, settings)
    assert found == replace(config, augment="auto")
    assert "--no-flip has no effect: clips have no mirror images" in capsys.readouterr().err


def test_settings_without_effect_are_named(capsys):
    say_ineffective(TrainConfig(mix="cutmix"), False, False)
    assert capsys.readouterr().err == ""
    config = TrainConfig(mix="mixup", worth=3, policy="classical")
    say_ineffective(config, True, True)
    say_ineffective(TrainConfig(mix_alpha=0.5), False, False)
    said = capsys.readouterr().err
    for option in ("--mix ", "--worth ", "--policy ", "--explain ", "--mix-alpha "):
        assert f"{option}has no effect" in said


def test_texts_need_an_encoder_by_name(tmp_path):
    folder = write_words(tmp_path / "words")
    for command in (f"train {folder} --out {tmp_path}/run", f"advise {folder}"):
        with pytest.raises(
            InputError, match="Features of texts need an encoder: name one with --back"
        ):
            call(command)


def test_a_path_that_does_not_exist_is_not_a_text():
    text = find_modality("text")
    check_to_predict(["a nice day", "see readme.txt"], text)
    for path in ("nothing.txt", "folder/", "table.csv"):
        with pytest.raises(InputError, match=f"no such file or folder: {path}"):
            check_to_predict(["a nice day", path], text)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_colours(folder / "colours")
    tiny_backbone().save(folder / "tiny.keras")
    call(
        f"train {folder}/colours --out {folder}/run --backbone {folder}/tiny.keras --image-size 32 "
        "--strategy freeze_k --epochs 1 --cache off"
    )
    return folder


def test_examples_that_were_trained_on_are_counted(trained, capsys):
    call(f"evaluate {trained}/run {trained}/colours")
    assert "29 of 36 examples of all were trained on" in capsys.readouterr().err
    call(f"evaluate {trained}/run {trained}/colours --split val --json")
    said = capsys.readouterr()
    assert "were trained on" not in said.err and json.loads(said.out)["images"] == 7


@pytest.mark.parametrize("part", ["state", "refit"])
def test_resuming_needs_only_the_run(trained, tmp_path, as_shipped, part):
    words = (
        f"train {trained}/colours --out {tmp_path}/run --backbone {trained}/tiny.keras "
        "--image-size 32 --strategy lp_ft --epochs 2 --cache off --seed 3"
    )
    with killed_after(2, part):
        call(words)
    assert (tmp_path / "run" / "validated.keras").is_file() == (part == "refit")
    shutil.copytree(tmp_path / "run", tmp_path / "once")
    call(f"train {trained}/colours --out {tmp_path}/run --resume")
    call(words.replace("/run", "/whole"))
    run, whole, once = (Run(tmp_path / name) for name in ("run", "whole", "once"))
    assert run.metrics["refit"]["epochs"] == whole.metrics["refit"]["epochs"]
    for split in ("all", "val"):
        a, b = (each.model_for(split).get_weights() for each in (run, whole))
        for mine, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(mine, other)
    call(f"train {trained}/colours --out {once.path} --resume --refit never")
    assert once.finished and not once.validated_path.exists() and "refit" not in once.metrics
    for mine, other in zip(once.model.get_weights(), whole.model_for("val").get_weights()):
        np.testing.assert_array_equal(mine, other)


def test_ctrl_c_before_a_training_says_so(trained, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_transfer.cli.train.built_on_evidence", stop)
    words = (
        f"train {trained}/colours --out {tmp_path}/run --strategy lp_ft --backbone mobilenet_0.25"
    )
    found = CliRunner().invoke(app, f"{words} --weights none".split())
    assert found.exit_code == 130 and "interrupted; nothing was trained" in found.stderr
