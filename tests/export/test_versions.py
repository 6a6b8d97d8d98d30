"""Where a SavedModel may be written, and the range of values that a model expects."""

import numpy as np
import pytest
from conftest import raises
from PIL import Image

from keras_transfer.data import from_arrays
from keras_transfer.errors import InputError
from keras_transfer.export import check_version
from keras_transfer.modalities.image.decode import scaled_files


@pytest.mark.parametrize("name", ["v0.1", "latest", "1.0", "-1", "²", "1a"])
def test_a_version_of_tf_serving_is_a_whole_number(tmp_path, name):
    out = tmp_path / "my models" / name
    with raises(f"Pass '{out}/1'"):
        check_version("saved_model", out)
    check_version("onnx", out)
    check_version("litert", out)


@pytest.mark.parametrize("name", ["1", "007", "20261129"])
def test_whole_numbers_are_versions(tmp_path, name, monkeypatch):
    check_version("saved_model", tmp_path / name)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    check_version("saved_model", ".")


def test_files_of_scaled_images_are_recognized(tmp_path):
    rng = np.random.default_rng(0)
    for name, most in (("scaled", 2), ("usual", 256)):
        pixels = rng.integers(0, most, (8, 8, 3), dtype="uint8")
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"?")
    scaled, usual, broken = (tmp_path / f"{name}.png" for name in ("scaled", "usual", "broken"))
    assert scaled_files([scaled, broken])
    assert not scaled_files([scaled, usual])
    assert not scaled_files([broken])
    assert not scaled_files([])


def test_arrays_of_scaled_images_are_refused_or_warned_of(capsys):
    rng = np.random.default_rng(0)
    labels = np.arange(8) % 2
    with pytest.raises(InputError, match="multiply by 255"):
        from_arrays((rng.random((8, 8, 8, 3)), labels), progress=False)
    from_arrays((rng.integers(0, 2, (8, 8, 8, 3)).astype("uint8"), labels), progress=False)
    assert "train has no value above 1" in capsys.readouterr().err
    from_arrays((rng.integers(0, 255, (8, 8, 8, 3)).astype("uint8"), labels), progress=False)
    assert "above 1" not in capsys.readouterr().err
