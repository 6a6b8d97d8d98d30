"""`TrainConfig`: every setting has a range, a help text and a place in `config.yaml`."""

from dataclasses import fields, replace

import pytest
from conftest import raises

from keras_transfer.cli.options import read_settings
from keras_transfer.training.config import TYPES, TrainConfig

SPECS = {spec.name: spec for spec in fields(TrainConfig)}
NUMBERS = [name for name, kind in TYPES.items() if kind in (int, float, int | None, float | None)]


def test_every_setting_has_a_help_text_and_a_group():
    for spec in SPECS.values():
        help = spec.metadata["help"]
        assert help[0].isupper() or help.split()[0].rstrip(",:") in ("none", "imagenet", "auto")
        assert spec.metadata["group"]


def test_every_number_has_a_range():
    for name in NUMBERS:
        rule = SPECS[name].metadata
        assert rule["least"] is not None or rule["above"] is not None, name


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_are_refused(name):
    for value in (-1, float("nan"), "many", True):
        with raises(f"{name} must be a"):
            TrainConfig(**{name: value})


def test_choices_are_refused_by_name():
    for name, spec in SPECS.items():
        if spec.metadata["choices"]:
            with raises(f"{name} must be one of {', '.join(spec.metadata['choices'])}, not 'x'."):
                TrainConfig(**{name: "x"})


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert TrainConfig(learning_rate="1e-4").learning_rate == 1e-4
    with raises("batch_size must be a whole number of 1 or more, not '8'"):
        TrainConfig(batch_size="8")


def test_what_is_saved_makes_the_same_config():
    chosen = {"weights": "none", "augment": "medium", "seed": 3, "val_split": 0.3}
    config = TrainConfig(**chosen, folds=4, fold=2, split=None)
    assert config.weights is None and config.to_dict()["weights"] == "none"
    assert TrainConfig.from_dict({**config.to_dict(), "head": {}, "schedule": {}}) == config
    assert TrainConfig().to_dict()["val_split"] == 0.2
    unsaved = replace(config, epochs=3, learning_rate=0.1, minutes=5.0, overrides={"k": 1})
    assert unsaved.to_dict() == config.to_dict()


def test_options_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("seed: 4\nbatch_size: 8\nschedule: {name: s, phases: [{name: p, epochs: 1}]}\n")
    settings = read_settings(config=file, batch_size=16)
    assert (settings.config.seed, settings.config.batch_size) == (4, 16)
    assert settings.schedule.name == "s"
    assert read_settings(config=file, epochs=3).schedule is None
    file.write_text("batch_size: 0")
    with raises("batch_size must be a whole number of 1 or more, not 0"):
        read_settings(config=file)
