"""The demo, shortened, and its table of curves."""

from dataclasses import replace

import pytest
from conftest import tiny_backbone

from keras_transfer.cli import demo
from keras_transfer.experiments import learning_curves as curves


def test_the_table_of_two_curves():
    low = curves.Curve.of([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])
    high = curves.Curve.of([0.9, 0.9, 0.9])
    text = curves.curve_table({"transfer": high, "from scratch": low}, chance=0.2)
    assert "epochs to 0.77" in text
    rows = [line.split() for line in text.splitlines()[1:]]
    assert rows[0][1:] == ["0.900", "1", "0.5700", "0.900", "3"]
    assert rows[1][2:] == ["0.200", "4", "0.1425", "0.800", "8"]
    assert "–" in curves.curve_table({"transfer": high, "from scratch": low}, chance=0.85)


def test_images_of_source_and_target_do_not_mix(tmp_path):
    demo.write_images(tmp_path, seed=0)
    names = {p.name for p in tmp_path.rglob("*.png")}
    assert len(names) == len(list(tmp_path.rglob("*.png"))) == 1797
    for digit in demo.TARGET_DIGITS:
        assert len(list((tmp_path / "target" / "train" / str(digit)).iterdir())) == 10
        assert not (tmp_path / "source" / str(digit)).exists()


def test_sounds_are_clips_without_flaws(tmp_path):
    pytest.importorskip("soundfile", reason="the extra audio is not installed")
    pytest.importorskip("soxr", reason="the extra audio is not installed")
    from keras_transfer.cli.demo_sounds import write_clips
    from keras_transfer.data import check_data

    write_clips(tmp_path, seed=0)
    for part, count in (("source", 360), ("target/train", 40), ("target/val", 200)):
        report = check_data(tmp_path / part)
        assert report.to_dict()["rates"] == {8000: count}
        assert not report.faulty and not report.statistics["clipped"]["clips"]


def test_texts_are_new_and_their_classes_consist_of_known_words(tmp_path):
    from keras_transfer.cli import demo_texts

    demo_texts.write_texts(tmp_path, seed=0)
    known = set(demo_texts.small_encoder().framing.required.vocabulary)
    texts = [path.read_text() for path in tmp_path.rglob("*.txt")]
    assert len(texts) == len(set(texts)) == 8 * 80 + 4 * (10 + 50)
    assert {word for text in texts for word in text.split()} <= known
    source, target = (demo_texts.classes_of(part) for part in ("source", "target"))
    assert not set(source) & set(target)
    assert {w for name in target for w in name.split()} == {
        w for name in source for w in name.split()
    }


@pytest.mark.large  # CI runs scripts/demo.sh
@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_the_demo_completes(tmp_path, monkeypatch, capsys, modality):
    """With a network that compiles quickly; `scripts/demo.sh` uses the real one."""
    if modality != "text":
        quick = replace(demo.DEMOS[modality], backbone=tiny_backbone)
        monkeypatch.setitem(demo.DEMOS, modality, quick)
        monkeypatch.setattr(demo, "SOURCE_EPOCHS", 1)
    monkeypatch.setattr(demo, "EPOCHS", 5)
    if modality == "text":
        pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")
    if modality == "audio":
        pytest.importorskip("soundfile", reason="the extra audio is not installed")
        pytest.importorskip("soxr", reason="the extra audio is not installed")
    demo.run_demo(tmp_path / "demo", seed=1, modality=modality)
    printed = capsys.readouterr().out
    for words in (
        "transfer",
        "from scratch",
        "start",
        "slope",
        "asymptote",
        "classifies",
        "done in",
    ):
        assert words in printed
    png = (tmp_path / "demo" / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert (tmp_path / "demo" / "lp_ft" / "export" / "1" / "saved_model.pb").is_file()
