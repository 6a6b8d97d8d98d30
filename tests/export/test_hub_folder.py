"""Folders for the Hugging Face Hub: written from a run, and loaded from there."""

import json

import keras
import numpy as np
import pytest
import yaml
from conftest import raises, tiny_backbone
from PIL import Image

import keras_transfer as kt
from keras_transfer.evaluation.calibration import Calibration
from keras_transfer.export import export_run
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.training.trainer import Trainer


@pytest.fixture
def run(data, tmp_path):
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    return Trainer(model, "feature_extraction", seed=1, cache="off").fit(data, tmp_path / "run")


@pytest.fixture
def folder(run):
    calibrated = {"temperature": 2.0, "log_loss_before": 1.0, "log_loss_after": 0.9}
    run.write_calibration(Calibration("val", 9, None, {"output": calibrated}).to_dict())
    return export_run(run, "hub").path


def test_a_folder_for_the_hub(run, folder):
    assert folder == run.path / "export" / "hub" / "1"
    assert {file.name for file in folder.iterdir()} == {
        "model.keras",
        "README.md",
        "config.json",
        "preview.png",
    }
    with Image.open(folder / "preview.png") as image:
        assert image.width > 400 and len(set(image.convert("L").getdata())) > 20
    card = (folder / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["library_name"] == "keras" and "keras_transfer" in metadata["tags"]
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    accuracy = next(m["value"] for m in metrics if m["type"] == "accuracy")
    assert accuracy == pytest.approx(run.metrics["val"]["accuracy"], abs=1e-4)
    assert "Scores are not calibrated" in text  # the model in the folder knows no temperature
    assert 'kt.load_model("hf://USER/NAME")' in text and "preview.png" in text
    config = json.loads((folder / "config.json").read_text())
    assert config["heads"]["output"]["names"] == ["blue", "green", "red"]
    assert config["input_size"] == 32 and config["modality"] == "image"


def test_a_model_is_loaded_from_the_hub_and_from_the_folder(
    run, folder, data, tmp_path, monkeypatch
):
    import huggingface_hub

    # As `huggingface-cli download` leaves it.
    cache = tmp_path / "cache" / "models--someone--flowers"
    snapshot = cache / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    download = huggingface_hub.hf_hub_download

    def offline(name, file):
        return download(name, file, cache_dir=tmp_path / "cache", local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    inputs = next(iter(data.batches("val", image_size=32, batch_size=8)))[0]
    expected = run.model.predict_on_batch(inputs)
    for place in ("hf://someone/flowers", snapshot):
        np.testing.assert_allclose(
            kt.load_model(place).predict_on_batch(inputs), expected, atol=1e-6
        )
    with raises("hf://someone/else is not on this machine"):
        kt.load_model("hf://someone/else")


def test_what_is_refused(run):
    with raises("A folder for the hub has no int8 form"):
        export_run(run, "hub", int8=True)
