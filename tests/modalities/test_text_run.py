"""A run on texts, as its user sees it: predictions, evidence, report, exports, on the command line."""

import re

import keras
import numpy as np
import pytest
from conftest import MODALITIES

from keras_transfer.data import from_directory
from keras_transfer.evaluation.occlusion import occlude
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")

NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, data) of a tiny encoder that has learned which word names the class."""
    write, backbone, options = MODALITIES["text"]
    folder = tmp_path_factory.mktemp("texts")
    data = from_directory(write(folder / "data"), progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(backbone(), Classification(NAMES), **options)
    schedule = Schedule("s", (Phase("all", "none", 15, 1e-2),))
    run = Trainer(model, schedule, batch_size=8).fit(data, folder / "run")
    return run, data


def test_the_planted_word_is_the_evidence(trained):
    run, data = trained
    assert run.metrics["val"]["accuracy"] > 0.8
    seen = right = 0
    for part in data.examples.values():
        for row, one in enumerate(occlude(run.model, part)):
            text, name = part.images.decoded(row), NAMES[part.labels[row]]
            assert "".join(one.parts) == text
            weights = one.weights(int(part.labels[row]))
            assert np.abs(weights).max() <= 1
            if name in text.split()[:14]:  # of the 16 tokens that the model reads
                seen += 1
                right += one.parts[int(weights.argmax())].strip() == name
    assert seen > 20 and right > 0.6 * seen  # by chance: a tenth


def test_the_report_shows_marked_texts(trained):
    from keras_transfer.reporting import write_report

    run, data = trained
    page = write_report(run, data).read_text(encoding="utf-8")
    assert "accuracy of TF-IDF + logistic regression" in page
    words = re.findall(r'<span style="--prediction:([\d.]+)[^"]*">([^<]+)</span>', page)
    strongest = [word.strip() for weight, word in words if float(weight) == 1]
    assert set(strongest) & set(NAMES)
    assert "Evidence for the prediction:" in page and "the more the score falls without it" in page
    assert " px" not in page
