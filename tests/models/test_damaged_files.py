"""Files that are damaged, incomplete or missing are named, in one line."""

import numpy as np
import pytest
from conftest import raises, tiny_backbone

import keras_transfer as kt
from keras_transfer.models.sources.applications import check_source_model
from keras_transfer.runs import Run


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model = kt.build_model(tiny_backbone(), kt.Classification("ab"), image_size=32)
    model.save(path)
    return path.read_bytes()


def flipped(content):
    """The same file with other bytes in the middle, where the weights are."""
    half = len(content) // 2
    return content[:half] + bytes(255 - b for b in content[half : half + 40]) + content[half + 40 :]


DAMAGES = {
    "truncated": (lambda content: content[: len(content) * 3 // 4], "is damaged or incomplete"),
    "a few bytes": (lambda content: content[:20], "is damaged or incomplete"),
    "empty": (lambda content: b"", "is empty: copy it again"),
    "changed": (flipped, "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_called_damaged(tmp_path, content, damage):
    change, words = DAMAGES[damage]
    path = tmp_path / "model.keras"
    path.write_bytes(change(content))
    with raises(words):
        kt.load_model(path)
    if damage != "changed":  # only loading reads the weights
        with raises(words):
            check_source_model(path)


def test_a_missing_model_is_called_missing(tmp_path):
    with raises("the file does not exist"):
        kt.load_model(tmp_path / "none.keras")


@pytest.mark.parametrize("text", ["", '{"val": {"acc', "\0\0\0"])
def test_damaged_documents_of_a_run_are_named(tmp_path, text):
    run = Run.create(tmp_path / "run", {"a": 1}, [], {})
    run.release()
    (run.path / "metrics.json").write_text(text)
    with raises("metrics.json is damaged or incomplete"):
        run.metrics  # noqa: B018
    (run.path / "config.yaml").write_text(text)
    with raises("config.yaml is damaged or incomplete"):
        run.config  # noqa: B018


def test_an_image_that_vanished_is_named(data):
    from pathlib import Path

    path = Path(data.examples["train"].names[0])
    path.unlink()
    with raises(f"{path} can no longer be read: No such file or directory"):
        data.examples["train"].images.decoded(0)
    assert np.asarray(data.examples["train"].images.decoded(1)).dtype == np.uint8
