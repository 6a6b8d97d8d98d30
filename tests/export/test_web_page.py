"""The web page of a model: in a real browser it gives the scores that `predict` gives."""

import keras
import numpy as np
import pytest
import soundfile
from conftest import npm_has, raises, tiny_backbone, tiny_bert, write_colours, write_words
from page_parity import opened, shown
from PIL import Image, ImageFilter
from report_opening import CHROMIUM

from keras_transfer.data import from_arrays, from_directory
from keras_transfer.evaluation.prediction import predict
from keras_transfer.export.exporter import export_run
from keras_transfer.export.page import check_page
from keras_transfer.modalities.registry import find_modality
from keras_transfer.modalities.text.check import pair_of
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.training.trainer import Trainer

pytest.importorskip("playwright", reason="playwright is not installed")
pytest.importorskip("tf2onnx", reason="the extra onnx is not installed")


@pytest.fixture(scope="module", autouse=True)
def needed():
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    if not npm_has("onnxruntime-web"):
        pytest.skip("npm, which downloads ONNX Runtime for the web, is not here or cannot")


def trained(folder, backbone, **more):
    data = from_directory(folder, progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(backbone, head_for(data), **more)
    return Trainer(model, "feature_extraction", cache="off").fit(data, folder.parent / "run"), data


def expected(run, examples) -> dict[str, float]:
    (found,), skipped = predict(run.model, examples)
    assert not skipped
    return dict(found.top)


@pytest.mark.parametrize("size", [32, "32x64"])
def test_images(tmp_path, size):
    backbone = build_backbone(tiny_backbone(), image_size=size)
    run, data = trained(write_colours(tmp_path / "d"), backbone)
    page_folder = export_run(run, "page", data=data).path
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 255, (9, 12, 3), "uint8")).resize((300, 200))
    file, turned, small = (tmp_path / name for name in ("a.png", "turned.jpg", "small.png"))
    blobs.filter(ImageFilter.GaussianBlur(2)).save(file)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by a quarter
    blobs.save(turned, quality=95, exif=exif)
    blobs.resize((20, 17)).save(small)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(turned.read_bytes()[:300])
    with opened(page_folder) as page:
        for one in (file, turned, small):
            page.evaluate("document.querySelector('#answer').replaceChildren()")
            page.set_input_files("input[type=file] >> nth=0", one)
            found = shown(page)
            for name, score in expected(run, [one]).items():
                assert found[name] == pytest.approx(score, abs=0.02), one.name
        page.set_input_files("input[type=file] >> nth=0", broken)
        page.wait_for_selector("#status.failed")
        assert "cannot read broken.jpg as an image" in page.text_content("#status")
        assert page.eval_on_selector("body", "e => e.scrollWidth <= window.innerWidth")


def test_texts(tmp_path):
    pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")
    run, data = trained(write_words(tmp_path / "d"), tiny_bert())
    page_folder = export_run(run, "page", data=data).path
    texts = [
        "The walls is RED!",
        "réd of\u00a0blue, (green)",
        "walls x\u4e2dy " * 20,
        "gre\u200ben",
    ]
    with opened(page_folder) as page:
        for text in texts:
            page.evaluate("document.querySelector('#answer').replaceChildren()")
            page.fill("textarea", text)
            page.click("button")
            found = shown(page)
            for name, score in expected(run, [text]).items():
                assert found[name] == pytest.approx(score, abs=1e-4), text
        page.fill("textarea", "  ")
        page.click("button")
        page.wait_for_selector("#status.failed")
        assert "empty" in page.text_content("#status")


def test_pairs_of_texts(tmp_path):
    pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")
    words = ("red", "green", "blue")
    pairs = [(f"the walls of {i}", f"a {words[i % 3]} room") for i in range(30)]
    data = from_arrays((pairs, [i % 3 for i in range(30)]))
    keras.utils.set_random_seed(0)
    model = build_model(tiny_bert(), head_for(data))
    run = Trainer(model, "feature_extraction", cache="off").fit(data, tmp_path / "run")
    page_folder = export_run(run, "page", data=data).path
    asked = [
        ("the walls", "is red"),
        ("is red", "the walls"),
        ("the blue walls " * 30, "of green rooms " * 40),
        ("of green rooms", "the blue walls " * 60),
        ("", "blue"),
    ]
    with opened(page_folder) as page:
        for pair in asked:
            page.evaluate("document.querySelector('#answer').replaceChildren()")
            for place, text in enumerate(pair):
                page.fill(f"textarea >> nth={place}", text)
            page.click("button")
            found = shown(page)
            for name, score in expected(run, [pair_of(*pair)]).items():
                assert found[name] == pytest.approx(score, abs=1e-4), pair


def test_clips(tmp_path):
    from test_audio import write_clips

    folder = write_clips(tmp_path / "d", {"low": 10, "high": 10})
    run, data = trained(folder, tiny_backbone(), image_size=32)
    page_folder = export_run(run, "page", data=data).path
    rate = data.examples["train"].modality.choose_framing(data, 32)[0].rate
    files = sorted((folder / "high").glob("*.wav"))[:2]
    twice = tmp_path / "stereo.wav"
    samples, own = soundfile.read(files[0])
    soundfile.write(twice, np.stack([samples, 0.5 * samples], 1), own)
    assert own == rate, "the browser's resampling is not what is tested"
    with opened(page_folder) as page:
        for file in (*files, twice):
            page.evaluate("document.querySelector('#answer').replaceChildren()")
            page.set_input_files("input[type=file]", file)
            found = shown(page)
            for name, score in expected(run, [file]).items():
                assert found[name] == pytest.approx(score, abs=0.02), file.name


def test_a_page_without_npm_and_for_what_it_cannot_take(tmp_path, monkeypatch):
    modality = find_modality("image")
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises("npm was not found"):
        check_page(modality)
    monkeypatch.setattr(type(modality), "page", None)
    with raises("cannot take images"):
        check_page(modality)
