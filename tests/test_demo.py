"""The demonstration, shortened, and the three numbers of a learning curve."""

import numpy as np
import pytest

from keras_transfer import comparison, demo


def test_start_slope_and_asymptote():
    curve = comparison.Curve.of([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])
    assert curve.start == 0.2 and curve.asymptote == pytest.approx(0.8)
    assert curve.slope == pytest.approx(0.2)
    at_once = comparison.Curve.of([0.9, 0.9, 0.9])
    assert np.isnan(at_once.slope)
    text = comparison.table({"transfer": at_once, "from scratch": curve})
    assert "at once" in text and "0.800" in text


def test_pictures_of_source_and_target_do_not_mix(tmp_path):
    demo.write_pictures(tmp_path, seed=0)
    names = {p.name for p in tmp_path.rglob("*.png")}
    assert len(names) == len(list(tmp_path.rglob("*.png"))) == 1797
    for digit in demo.TARGET_DIGITS:
        assert len(list((tmp_path / "target" / "train" / str(digit)).iterdir())) == 10
        assert not (tmp_path / "source" / str(digit)).exists()


def test_the_demo_runs_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "EPOCHS", 5)
    monkeypatch.setattr(demo, "SOURCE_EPOCHS", 1)
    demo.run_demo(tmp_path / "demo", seed=1)
    printed = capsys.readouterr().out
    for words in ("transfer", "from scratch", "start", "slope", "asymptote", "says of", "done in"):
        assert words in printed
    png = (tmp_path / "demo" / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert (tmp_path / "demo" / "lp_ft" / "export" / "1" / "saved_model.pb").is_file()
