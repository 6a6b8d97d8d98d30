"""A model of clips in every format: each export is compared with the Keras model on the clips, and refused if it differs."""

import pytest
from conftest import require_format, tiny_backbone

pytest.importorskip("soundfile", reason="the extra audio is not installed")
pytest.importorskip("soxr", reason="the extra audio is not installed")

from test_audio import write_clips

from keras_transfer.data import from_directory
from keras_transfer.export import FORMATS
from keras_transfer.export.exporter import export_run
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    data = from_directory(write_clips(folder / "d", {"low": 10, "high": 10}), progress=False)
    model = build_model(tiny_backbone(), head_for(data), image_size=32)
    return Trainer(model, "feature_extraction", cache="memory").fit(data, folder / "run"), data


@pytest.mark.parametrize("kind", sorted(set(FORMATS) - {"page"}))  # tests/export/test_web_page.py
def test_an_export_answers_like_the_model(trained, tmp_path, kind):
    require_format(kind)
    run, data = trained
    parity = export_run(run, kind, out=tmp_path / "1", data=data).parity
    assert (
        parity.of == "seen val" and min(parity.agreement.values()) == 1 and parity.difference < 5e-3
    )
