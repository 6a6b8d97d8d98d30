"""Recipes on a tiny BERT and texts of many lengths."""

import keras
import numpy as np
import pytest
from conftest import raises, tiny_bert, write_words

import keras_transfer as kt
from keras_transfer.advisor.closed_forms import compare_closed_forms
from keras_transfer.data import from_directory
from keras_transfer.data.batches import batches
from keras_transfer.evaluation.outputs import collect
from keras_transfer.modalities import open_framing
from keras_transfer.models.framing import framing_of
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer

pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return from_directory(write_words(tmp_path_factory.mktemp("texts") / "words"), progress=False)


@pytest.mark.parametrize("policy, recipe", [("mixed_bfloat16", "lp_ft"), ("float32", "lora")])
def test_a_tiny_bert_learns(words, tmp_path, policy, recipe):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = kt.build_model(tiny_bert(), kt.Classification(words.class_names))
    run = Trainer(model, recipe, batch_size=8, epochs=12, learning_rate=1e-2).fit(
        words, tmp_path / "run"
    )
    assert run.config["augment"] == "none" and run.config["tokenizer"]["digest"]
    head, everything = run.metrics["phases"]
    assert everything["val"]["loss"] < head["val"]["loss"]
    loaded = kt.load_model(run.model_path)
    assert framing_of(loaded) == framing_of(model)
    ids = np.array([[2, 14, 5, 3, 0], [2, 15, 3, 0, 0]], "int32")
    np.testing.assert_allclose(loaded(ids), model(ids), atol=1e-5)


def test_the_number_of_tokens_is_limited(words, data, tmp_path):
    keras.utils.set_random_seed(0)
    head = kt.Classification(words.class_names)
    model = kt.build_model(tiny_bert(), head, tokens=4)
    run = Trainer(model, "feature_extraction").fit(words, tmp_path / "run")
    assert run.config["tokens"] == 4 and framing_of(kt.load_model(run.model_path)).size == 4
    assert TrainConfig.from_dict(run.config).tokens == 4
    stream = batches(words.examples["train"], image_size=framing_of(model), batch_size=8)
    assert {ids.shape[1] for ids, _ in stream} == {4}
    whole = kt.build_model(tiny_bert(), head)
    given = open_framing(tokens=4)
    evidence = compare_closed_forms(words, [whole], image_size=given, questions=())
    assert {row.candidate.framing.size for row in evidence.rows} == {4}
    assert framing_of(whole).size > 4
    with raises("reads at most"):
        kt.build_model(tiny_bert(), head, tokens=100_000)
    with raises("tokens is for texts, but 'mobilenet_0.25"):
        kt.build_model("mobilenet_0.25", head, image_size=32, weights=None, tokens=8)


def test_predictions_come_in_the_order_of_the_examples(words):
    keras.utils.set_random_seed(0)
    model = kt.build_model(tiny_bert(), kt.Classification(words.class_names))
    labels, outputs = collect(model, words, "train", batch_size=5)
    examples = words.examples["train"]
    np.testing.assert_array_equal(labels, examples.labels)
    framing = framing_of(model)
    for row in (0, 7, len(examples) - 1):
        ((ids, _),) = batches(examples.take(np.array([row])), image_size=framing, batch_size=1)
        np.testing.assert_allclose(model(ids)[0], outputs[row], atol=1e-5)


def test_texts_and_images_do_not_mix(words, data, tmp_path):
    texts = kt.build_model(tiny_bert(), kt.Classification(words.class_names))
    with raises("The model reads texts, but these are images"):
        Trainer(texts, "lp_ft").fit(data, tmp_path / "run")
    images = kt.build_model(
        "mobilenet_0.25", kt.Classification(words.class_names), image_size=32, weights=None
    )
    with raises("The model reads images, but these are texts"):
        Trainer(images, "lp_ft").fit(words, tmp_path / "run")
    with raises("mixup is for images"):
        Trainer(texts, "lp_ft", mix="mixup", cache="off").fit(words, tmp_path / "run")
