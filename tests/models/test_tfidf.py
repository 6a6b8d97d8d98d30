"""TF-IDF features in a backbone: equal to scikit-learn's, never trained, saved and exported inside the model."""

import keras
import numpy as np
import pytest
from conftest import raises, require_format, tiny_backbone, tiny_bert
from killed import killed_after

from keras_transfer.data import from_arrays, from_table
from keras_transfer.models import tfidf as tfidf_module
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import backbone_of, freeze
from keras_transfer.models.tfidf import TfIdf, fitted_tfidf
from keras_transfer.runs import Run
from keras_transfer.training.trainer import Trainer

pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")

FRAMING = tiny_bert().framing
TEXTS = [
    "a red room",
    "a red room !",
    "the walls a red of a room",
    "blue in the",
    "blue blue in",
    "red",
]


def texts_of(texts):
    labels = [str(i % 2) for i in range(len(texts))]
    return from_arrays((texts, labels), val=(texts, labels))


def ids_of(data, framing=FRAMING):
    from keras_transfer.modalities.views import View

    examples = data.examples["train"]
    preparation = examples.modality.preparation(examples.images, (View(),), framing)
    rows = np.arange(len(examples))
    return preparation.batch(rows, np.zeros(0), np.zeros((1, len(rows), 2), "int64"))[0]


def test_the_features_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    data = texts_of(TEXTS)
    layer = fitted_tfidf(data.examples["train"], FRAMING)
    reference = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\S+"
    )
    expected = reference.fit_transform(TEXTS).toarray()
    assert layer.terms == expected.shape[1] and layer.width == min(expected.shape) - 1
    words = FRAMING.required.vocabulary
    tokens = np.stack([keras.ops.convert_to_numpy(w)[1:] for w in (layer.firsts, layer.seconds)], 1)
    names = [" ".join(words[i] for i in pair if i >= 0) for pair in tokens]
    places = [list(reference.get_feature_names_out()).index(name) for name in names]
    whole = TfIdf(len(words), layer.terms, layer.terms, layer.ignored)
    whole.build((None, None))
    eye = np.pad(np.eye(layer.terms), ((1, 0), (0, 0)))
    whole.set_weights([*layer.get_weights()[:-1], eye])
    found = keras.ops.convert_to_numpy(whole(ids_of(data)))
    np.testing.assert_allclose(found, expected[:, places], atol=1e-6)
    projected = found @ layer.get_weights()[-1][1:]
    np.testing.assert_allclose(layer(ids_of(data)), projected, atol=1e-5)
    # Padding changes nothing, and a text without a term has no features.
    longer = np.pad(ids_of(data), ((0, 0), (0, 5)))
    np.testing.assert_allclose(layer(longer), projected, atol=1e-5)
    assert not np.any(layer(np.array([[2, 1, 8, 3]])))


def test_texts_without_a_common_word_have_no_features():
    data = texts_of(["red", "blue"])
    layer = fitted_tfidf(data.examples["train"], FRAMING)
    assert not np.any(layer(ids_of(data))) and layer.width == 1


def test_the_training_texts_must_be_known():
    with raises("needs the training texts of tiny_bert"):
        build_backbone(tiny_bert(), taps="all+tfidf")
    with raises("TF-IDF features are for texts"):
        build_backbone(tiny_backbone(), taps="all+tfidf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts of 3 to 10 words, of which one names the class."""
    rng, rows = np.random.default_rng(0), ["text,label"]
    for name in ("red", "green", "blue"):
        for _ in range(40):
            words = list(rng.choice(["one", "of", "the", "walls", "is", "in"], rng.integers(2, 10)))
            words.insert(int(rng.integers(0, len(words) + 1)), name)
            rows.append(f"{' '.join(words)},{name}")
    table = tmp_path_factory.mktemp("words") / "t.csv"
    table.write_text("\n".join(rows))
    return from_table(table, val_split=0.25, progress=False)


def tapped(data, dropout=0.0):
    keras.utils.set_random_seed(0)
    backbone = build_backbone(tiny_bert(dropout=dropout), taps="all+tfidf", data=data)
    return build_model(backbone, head_for(data))


@pytest.fixture
def model(data):
    return tapped(data)


def test_it_is_a_tap_that_is_never_trained(data, model, tmp_path):
    backbone = backbone_of(model)
    cuts = backbone.cuts
    assert [stage.name for stage in backbone.stages][:1] == ["tfidf"]
    assert len(backbone.stages) == len(tiny_bert().stages) + 1
    counted, last = cuts.tfidf_columns(), cuts.last_columns()
    assert len(counted) == backbone.get_layer("tfidf").width and not set(counted) & set(last)
    assert len(last) == 16 and backbone.output_shape[1] == len(counted) + 3 * 16
    freeze(model, "none")
    assert not backbone.get_layer("tfidf").trainable_weights
    before = backbone.get_layer("tfidf").get_weights()
    Trainer(model, "lp_ft", epochs=1).fit(data, tmp_path / "run")
    for old, new in zip(before, backbone.get_layer("tfidf").get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.large
def test_a_killed_fine_tuning_ends_bit_for_bit_as_the_undisturbed_one(data, tmp_path):
    def trainer():
        return Trainer(tapped(data, dropout=0.2), "lp_ft", epochs=3)

    whole = trainer().fit(data, tmp_path / "whole")
    with killed_after(epoch=2):
        trainer().fit(data, tmp_path / "cut")
    resumed = trainer().fit(data, tmp_path / "cut", resume=True)
    for one, other in zip(whole.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_closed_form_reads_it_and_the_model_is_whole(data, model, tmp_path):
    """The words name the class; an untrained encoder hardly shows them."""
    run = Trainer(model, "feature_extraction").fit(data, tmp_path / "run")
    assert run.metrics["val"]["accuracy"] == 1
    again = Run.open(run.path).model
    assert isinstance(backbone_of(again).get_layer("tfidf"), TfIdf)
    ids = ids_of(data)
    np.testing.assert_allclose(again(ids), model(ids), atol=1e-5)
    plain = keras.saving.load_model(run.path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(plain(ids), model(ids), atol=1e-5)
    tuned = build_backbone(str(run.path))  # it has its features already
    assert len(tuned.cuts.tfidf_columns())


@pytest.mark.parametrize(
    "format",
    [
        "saved_model",
        "onnx",
        *(pytest.param(x, marks=pytest.mark.large) for x in ("openvino", "litert", "tfjs")),
    ],
)
def test_every_format_contains_it(data, model, tmp_path, format):
    from keras_transfer.export import export_run

    require_format(format)
    run = Trainer(model, "feature_extraction").fit(data, tmp_path / "run")
    exported = export_run(run, format, out=tmp_path / "1", data=data)
    assert exported.parity.agreement["output"] == 1 and exported.parity.difference < 1e-4


def test_the_evidence_compares_it(data):
    """The class is named by a word: an untrained encoder alone shows it less."""
    from keras_transfer.advisor.closed_forms import compare_closed_forms

    keras.utils.set_random_seed(0)
    model = build_model(build_backbone(tiny_bert(), taps="all+tfidf", data=data), head_for(data))
    evidence = compare_closed_forms(data, [model])
    rows = {row.candidate.taps: row for row in evidence.rows}
    assert rows.keys() == {"last", "all", "all+tfidf"}
    assert evidence.default.taps == evidence.best.taps == "all+tfidf"
    assert rows["all+tfidf"].judged.loss < rows["all"].judged.loss


def test_openvino_finds_the_terms_of_a_real_vocabulary():
    """Its `%` is wrong from 2^24, which the ids of a small vocabulary do not reach."""
    openvino = pytest.importorskip("openvino")
    from keras_transfer.features.prefix import openvino_model

    rng = np.random.default_rng(0)
    layer = TfIdf(30_522, terms=200, width=8)
    ids = keras.Input([None], dtype="int32", name="token_ids")
    model = keras.Model(ids, layer(ids))
    terms = np.stack([rng.permutation(30_522)[:200], np.full(200, -1)], 1)
    places = np.zeros(layer.rows.shape, "int32")
    places[tfidf_module._bucket(terms[:, 0], terms[:, 1], layer.factor)] = np.arange(1, 201)
    firsts, seconds = np.concatenate([[[-2, -2]], terms]).T
    layer.set_weights([places, firsts, seconds, np.ones(201), rng.normal(size=(201, 8))])
    rows = rng.choice(terms[:, 0], (16, 32)).astype("int32")
    compiled = openvino.Core().compile_model(openvino_model(model, "int32"), "CPU")
    expected = model(rows).numpy()
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(compiled(rows)[0], expected, atol=0.05)  # in bfloat16 where it can


def test_a_large_vocabulary_reaches_all_buckets():
    """An even factor would leave most of them empty, so that terms are dropped."""
    before = TfIdf(250_002, 5, 8).factor  # of models that do not record theirs
    assert before % 2 == 0
    tokens = np.arange(250_002)
    reached = [
        len(np.unique(tfidf_module._bucket(tokens, -1, factor)))
        for factor in (before, tfidf_module.odd_factor(250_002))
    ]
    assert reached[0] < 70_000 and reached[1] > 240_000
    layer = fitted_tfidf(texts_of(TEXTS).examples["train"], FRAMING)
    assert layer.factor % 2 == 1 and TfIdf.from_config(layer.get_config()).factor == layer.factor
