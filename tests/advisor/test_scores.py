"""Rankings of backbones: ties, the permutation test, real features and source models."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from test_transferability import blobs

from keras_transfer.advisor.scores import Score, rank_scores
from keras_transfer.advisor.transferability import score_backbone, score_features
from keras_transfer.data import Examples, ImageData, from_directory
from keras_transfer.data.arrays import Arrays
from keras_transfer.data.examples import Target
from keras_transfer.data.splits import stratified_sample
from keras_transfer.errors import InputError
from keras_transfer.features.prefix import prefix_of
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.applications import BACKBONES
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.runs import Run

# -- ranking ----------------------------------------------------------------------------------------


def ranked(*noises, labels=None, **options):
    rng = np.random.default_rng(1)
    features, own = blobs(150, 20, distance=0.8)
    return rank_scores(
        [
            score_features(
                features + noise * rng.normal(size=features.shape),
                own if labels is None else labels,
                name=f"noise {noise}",
                prior={"parameters": 1000},
            )
            for noise in noises
        ],
        **options,
    )


def test_the_ranking_marks_ties():
    ranking = ranked(3.0, 0.05, 0.0)
    assert {row.name for row in ranking.rows[:2]} == {"noise 0.0", "noise 0.05"}
    assert set(ranking.best) == {"noise 0.0", "noise 0.05"}
    worst = ranking.rows[2]
    assert worst.name == "noise 3.0"
    for key in ("probe", "knn", "logme"):
        assert not ranking.is_tie(2, key)
        assert sum(ranking.behind[i][key][0] == 0 for i in range(3)) >= 1
    # Paired: the two nearly equal ones differ by less than their own errors say.
    first, second = ranking.rows[:2]
    assert first["logme"].minus(second["logme"])[1] < 0.5 * first["logme"].error
    table = ranking.table()
    assert table.splitlines()[3].startswith("noise 3.0") and "=" not in table.splitlines()[3]
    assert "Signal: " in table and "1,000" in table
    plain = json.loads(json.dumps(ranking.to_dict(), allow_nan=False))
    assert plain["best"] == list(ranking.best) and plain["signal"] is True
    assert [row["backbone"] for row in plain["backbones"]] == [r.name for r in ranking.rows]


def test_random_labels_give_no_ranking():
    labels = np.random.default_rng(5).integers(0, 3, 150)
    ranking = ranked(1.0, 0.0, 0.5, labels=labels)
    assert not ranking.signal and ranking.best == ()
    assert [row.name for row in ranking.rows] == ["noise 1.0", "noise 0.0", "noise 0.5"]
    assert "No signal" in ranking.table() and "=" not in ranking.table().split("No signal")[0]


def test_the_test_corrects_for_the_number_of_backbones(rng):
    """Without a signal, one of ten backbones often seems to have one, but the joint test does not."""
    features, labels = blobs(30, 3)
    scores = score_features(features, labels)
    alone = together = 0
    for _ in range(300):
        chance = [replace(scores, statistics=rng.normal(size=100)) for _ in range(10)]
        alone += any(one.signal for one in chance)
        together += rank_scores(chance).signal
    assert alone > 15 and together <= 9


def test_invalid_rankings_are_reported():
    features, labels = blobs(60, 10)
    scores = score_features(features, labels)
    without_probe = replace(scores, scores={**scores.scores, "probe": Score(None)})
    for given, options, message in [
        ([], {}, "Nothing to rank"),
        ([scores], {"by": "size"}, "Unknown score"),
        ([without_probe], {}, "No probe score for features. Rank by another"),
        ([scores, score_features(features, labels, seed=1)], {}, "different images"),
        ([scores, score_features(features[::-1], labels[::-1])], {}, "different images"),
    ]:
        with pytest.raises(InputError, match=message):
            rank_scores(given, **options)


# -- backbones --------------------------------------------------------------------------------------


def test_a_sample_contains_all_classes_in_proportion():
    labels = np.repeat(np.arange(4), [3000, 1000, 6, 1])
    chosen = stratified_sample(labels, 400)
    assert len(chosen) == 400 and (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen])
    assert counts[3] == 1 and counts[2] >= 5 and counts[0] / counts[1] == pytest.approx(3, rel=0.05)
    assert set(stratified_sample(labels, 400, seed=1)) != set(chosen)
    np.testing.assert_array_equal(stratified_sample(labels, 5000), np.arange(len(labels)))
    assert len(stratified_sample(np.arange(50), 20)) == 20


def test_other_tasks_are_refused_for_scoring(cache):
    images = Arrays(np.zeros((4, 32, 32, 3), "uint8"))
    for labels, target in [
        (np.eye(4, dtype="float32")[:, :2], Target("multi_label", ("a", "b"))),
        (np.ones((4, 1), "float32"), Target("regression", ("age",))),
    ]:
        data = ImageData(target.names, {"train": Examples(images, labels)}, [], "data", target)
        with pytest.raises(InputError, match=f"labeled for {target.task}, but scoring backbones"):
            score_backbone("mobilenet_0.25", data)
    labels = np.arange(4, dtype="int32") % 2
    data = ImageData(("a", "b"), {"val": Examples(images, labels)}, [], "data")
    with pytest.raises(InputError, match="no train images"):
        score_backbone("mobilenet_0.25", data)


@pytest.fixture(scope="module")
def signs(real_data, tmp_path_factory):
    """300 sign digits for training."""
    data = from_directory(real_data / "sign_digits", progress=False)
    train = data.examples["train"]
    chosen = train.take(stratified_sample(train.labels, 300))
    return ImageData(data.class_names, {"train": chosen}, [], data.root)


@pytest.fixture(scope="module")
def real_scores(signs, real_weights, tmp_path_factory):
    """Scores of both real backbones and of one with random weights, at 96 px."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path_factory.mktemp("cache")))
    keras.utils.set_random_seed(0)
    random = build_backbone("mobilenet_v2_0.35", image_size=96, weights=None)
    options = dict(image_size=96, engine="keras")
    yield {
        "v2": score_backbone("mobilenet_v2_0.35", signs, **options),
        "v1": score_backbone("mobilenet_0.25", signs, **options),
        "random": score_backbone(random, signs, name="random", engine="keras"),
    }
    patch.undo()


def test_real_features_suit_sign_digits_better_than_random_ones(real_scores):
    real, random = real_scores["v2"], real_scores["random"]
    assert real.signal and real.p_value == 0.01
    assert real["probe"].value > 0.75 and real["probe"].chance < 0.12
    for key in ("probe", "knn", "logme"):
        difference, error = real[key].minus(random[key])
        assert difference > 3 * error, key
    assert real.prior["parameters"] == BACKBONES["mobilenet_v2_0.35"].parameters
    assert real.images == 300 and real.width == 1280


def test_real_backbones_are_ranked_with_errors(real_scores):
    ranking = rank_scores(list(real_scores.values()))
    assert ranking.signal and ranking.rows[-1].name == "random"
    assert "random" not in ranking.best and ranking.best[0] == ranking.rows[0].name
    for key in ("probe", "knn", "logme"):
        best = max(real_scores.values(), key=lambda s: s[key].value)
        assert best.name in ("mobilenet_v2_0.35", "mobilenet_0.25")
        assert 0 < best[key].error < 0.1


def test_random_labels_on_real_features(signs, real_scores, real_weights, monkeypatch):
    """The features are read from the cache of the fixture."""
    monkeypatch.setattr("keras_transfer.features.extraction._compute", None)
    train = signs.examples["train"]
    labels = np.random.default_rng(0).permutation(train.labels)
    shuffled = ImageData(
        signs.class_names, {"train": Examples(train.images, labels)}, [], signs.root
    )
    scores = [
        score_backbone(name, shuffled, image_size=96, engine="keras")
        for name in ("mobilenet_v2_0.35", "mobilenet_0.25")
    ]
    for found in scores:
        assert not found.signal
        for key, score in found.scores.items():
            assert abs(score.value - score.chance) < 4 * score.error, key
    assert rank_scores(scores).best == ()


def test_features_after_some_stages(real_weights, signs, cache):
    """The feature maps of a prefix are averaged, and identical files count once."""
    train = signs.examples["train"]
    few = train.take(np.r_[:10, 200:210, :10])
    data = ImageData(signs.class_names, {"train": few}, [], signs.root)
    backbone = build_backbone("mobilenet_0.25", image_size=96)
    scores = score_backbone(prefix_of(backbone, 5), data, engine="keras")
    assert scores.width == backbone.stages[4].output.shape[-1] and scores.images == 20
    assert scores.prior["parameters"] < 218_544 and "5 of 14" in scores.name


def test_source_models_are_ranked_beside_imagenet(signs, real_scores, real_weights, tmp_path):
    """A run and a .keras file of plain Keras are scored by path and have the correct prior."""
    keras.utils.set_random_seed(1)
    run = Run(tmp_path / "runs" / "birds")
    run.path.mkdir(parents=True)
    head = Classification(["finch", "tit"])
    build_model("mobilenet_v2_0.35", head, image_size=96, weights=None).save(run.model_path)
    plain = keras.Sequential(
        [
            keras.Input((96, 96, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, strides=4),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )
    plain.save(tmp_path / "plain.keras")
    options = dict(engine="keras")
    found = [
        score_backbone(run.path, signs, **options),
        score_backbone(str(tmp_path / "plain.keras"), signs, **options),
    ]
    assert [row.name for row in found] == [str(run.path), str(tmp_path / "plain.keras")]
    assert found[0].prior == real_scores["random"].prior  # the same graph, and no head
    assert found[0].prior["parameters"] == BACKBONES["mobilenet_v2_0.35"].parameters
    assert found[1].prior["parameters"] == 8 * 27 + 8 + 4 * 8 and found[1].width == 8
    assert found[1].prior["multiplications"] > 8 * 27 * 23 * 23
    ranking = rank_scores([*found, real_scores["v1"]])
    assert ranking.rows[0].name == "mobilenet_0.25" and ranking.best == ("mobilenet_0.25",)
    assert str(run.path) in ranking.table() and f"{8 * 27 + 40:,}" in ranking.table()
    # A source that knows the task is best, whatever its backbone is called.
    better = build_model("mobilenet_0.25", head, image_size=96)
    better.save(tmp_path / "better.keras")
    ranking = rank_scores([*found, score_backbone(tmp_path / "better.keras", signs, **options)])
    assert ranking.best == (str(tmp_path / "better.keras"),)


def test_a_backbone_that_is_built_again_has_the_same_features():
    """Keras numbers layer names across builds, which must not change the fingerprint."""
    first, second = (build_backbone("mobilenet_v2_0.35", image_size=32, weights=None) for _ in "ab")
    other = prefix_of(second, 18).fingerprint
    second.set_weights(first.get_weights())
    assert prefix_of(first, 18).fingerprint == prefix_of(second, 18).fingerprint != other
