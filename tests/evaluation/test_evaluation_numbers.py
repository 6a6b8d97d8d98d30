"""What an evaluation measures, against scikit-learn, SciPy, other formulas and by hand; no Keras."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats
from scipy.special import expit, log_softmax, softmax

from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import reliability
from keras_transfer.evaluation.outputs import Softmax, require_finite
from keras_transfer.evaluation.ranking import (
    FALSE_POSITIVE_RATES,
    RECALLS,
    best_f1_thresholds,
    rank_classes,
)
from keras_transfer.evaluation.result import Evaluation, thresholds_table
from keras_transfer.evaluation.tasks import (
    add_column,
    confused_pairs,
    measure_classes,
    measure_labels,
    measure_values,
)
from keras_transfer.utils.statistics import bootstrap, share


def logits_of(rng, count=400, classes=4, sure=2.0):
    """(labels, logits float32): the truth is likelier, ties included."""
    labels = rng.integers(classes, size=count)
    logits = rng.normal(size=(count, classes)).round(1)
    logits[np.arange(count), labels] += sure
    return labels, logits.astype("float32")


def measured(labels, logits, **options):
    names = [f"c{i}" for i in range(logits.shape[1])]
    paths = [f"{i}.png" for i in range(len(labels))]
    document, rows = measure_classes(names, labels, logits, paths, **options)
    json.dumps(document, allow_nan=False)
    return document, rows


def evaluation_of(documents, rows=None):
    head = next(iter(documents.values()))
    top = {"split": "test", "images": head["images"], "skipped": 0, "tta": None}
    rows = {"path": [str(i) for i in range(head["images"])], **(rows or {})}
    return Evaluation({**top, "calibrated_on": None, "heads": documents}, {}, rows)


# -- classes ----------------------------------------------------------------------------------------


def test_classes_agree_with_scikit_learn(rng):
    labels, logits = logits_of(rng, classes=7)
    probabilities = softmax(logits.astype("float64"), axis=1)
    predicted = logits.argmax(axis=1)
    found, rows = measured(labels, logits)
    assert found["accuracy"]["value"] == sk.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(labels, predicted)
    )
    assert found["f1_macro"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro")
    )
    assert found["f1_weighted"] == pytest.approx(sk.f1_score(labels, predicted, average="weighted"))
    # Ties are in by both, or in neither: a rank has no order among them.
    above = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
    assert found["top5"]["value"] == np.mean(above < 5)
    untied = logits + rng.normal(0, 1e-3, logits.shape).astype("float32")
    assert measured(labels, untied)[0]["top5"]["value"] == sk.top_k_accuracy_score(
        labels, untied, k=5
    )
    auc = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert found["auc"]["value"] == pytest.approx(auc)
    precision = [sk.average_precision_score(labels == c, probabilities[:, c]) for c in range(7)]
    assert found["average_precision"] == pytest.approx(np.mean(precision))
    for c, row in enumerate(found["per_class"].values()):
        assert row["average_precision"] == pytest.approx(precision[c])
        assert row["auc"] == pytest.approx(sk.roc_auc_score(labels == c, probabilities[:, c]))
        assert row["recall_low"] < row["recall"] < row["recall_high"]
    assert np.array_equal(found["confusion"], sk.confusion_matrix(labels, predicted))
    before = found["calibration"]["before"]
    assert before["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities))
    one_hot = np.eye(7)[labels]
    assert before["brier"] == pytest.approx(np.square(probabilities - one_hot).sum(1).mean())
    assert found["calibration"]["after"] is None
    assert rows["correct"] == [str(int(r)) for r in predicted == labels]
    assert [float(s) for s in rows["label_score"]] == pytest.approx(
        probabilities[np.arange(400), labels], abs=1e-6
    )


def test_brier_of_two_classes_is_twice_that_of_one(rng):
    labels, logits = logits_of(rng, classes=2)
    one = sk.brier_score_loss(labels, softmax(logits, axis=1)[:, 1])
    assert Softmax(logits).brier(labels) == pytest.approx(2 * one, rel=1e-5)


def test_blocks_give_what_the_whole_gives(rng, monkeypatch):
    labels, logits = logits_of(rng, count=50, classes=6)
    whole = Softmax(logits, 1.7)
    expected = whole.log_total.copy(), whole.brier(labels), whole.rank_of(labels)
    monkeypatch.setattr("keras_transfer.evaluation.outputs._BLOCK_SIZE", 6 * 7)
    parts = Softmax(logits, 1.7)
    np.testing.assert_array_equal(parts.log_total, expected[0])
    assert parts.brier(labels) == expected[1]
    np.testing.assert_array_equal(parts.rank_of(labels), expected[2])
    exact = log_softmax(logits.astype("float64") / 1.7, axis=1)
    np.testing.assert_allclose(parts.log_column(2), exact[:, 2])
    np.testing.assert_allclose(parts.confidence, np.exp(exact.max(1)))
    assert [c for c, _ in parts.top(3, 6)] == np.argsort(-logits[3], kind="stable").tolist()


def test_mistakes_and_unsure_images_in_order():
    logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55], [0.4, 0.6]])
    labels = np.array([0, 1, 0, 1, 0])
    found, _ = measured(labels, logits.astype("float32"), most=2)
    assert [m["path"] for m in found["mistakes"]] == ["1.png", "2.png"]
    worst = found["mistakes"][0]
    assert (worst["label"], worst["predicted"]) == ("c1", "c0")
    assert worst["score"] == pytest.approx(0.8) and worst["label_score"] == pytest.approx(0.2)
    assert [t["label"] for t in worst["top"]] == ["c0", "c1"]
    assert [m["path"] for m in found["unsure"]] == ["3.png", "4.png"]
    assert found["confused"] == [
        {"label": "c0", "predicted": "c1", "count": 2, "share": pytest.approx(2 / 3)},
        {"label": "c1", "predicted": "c0", "count": 1, "share": 0.5},
    ]


def test_the_rarer_class_comes_first_among_pairs_of_equal_count():
    matrix = np.array([[90, 3, 0], [0, 5, 3], [1, 0, 9]])
    pairs = [(p["label"], p["predicted"]) for p in confused_pairs("abc", matrix)]
    assert pairs == [("b", "c"), ("a", "b"), ("c", "a")]


def test_a_class_without_images_is_left_out_of_means(rng):
    labels, logits = logits_of(rng, classes=4)
    labels, logits = labels[labels != 2], logits[labels != 2]
    predicted = logits.argmax(axis=1)
    assert (predicted == 2).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = measured(labels, logits)
    assert found["absent"] == ["c2"]
    assert found["f1_macro"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, labels=[0, 1, 3], average="macro")
    )
    row = found["per_class"]["c2"]
    assert row["support"] == 0 and row["auc"] is None and row["recall_low"] is None
    assert found["curves"]["roc"]["per_class"][2] is None
    others = [found["per_class"][f"c{c}"]["auc"] for c in (0, 1, 3)]
    assert found["auc"]["value"] == pytest.approx(np.mean(others))
    assert np.isfinite(found["f1_macro"]["low"])


@pytest.mark.parametrize("count", [1, 6])
def test_one_class_or_one_image_only(count, tmp_path):
    logits = np.tile(np.float32([[2.0, 1.0, 0.0]]), (count, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, rows = measured(
            np.zeros(count, int), logits, precision=0.9, calibration={"temperature": 1.5}
        )
        files = evaluation_of({"output": found}, rows).save(tmp_path)
    assert found["accuracy"]["value"] == 1.0 and found["accuracy"]["low"] < 0.85
    assert found["auc"] == {"value": None, "low": None, "high": None}
    assert found["average_precision"] is None and found["curves"]["roc"]["macro"] is None
    assert found["mistakes"] == [] and found["confused"] == []
    assert found["abstention"]["aurc"] == 0
    ece = found["calibration"]["after"]["ece"]
    assert ece["value"] == pytest.approx(1 - softmax(np.array([2, 1, 0]) / 1.5)[0])
    assert (ece["low"] is None) == (count == 1)
    assert found["abstention"]["thresholds"][0]["coverage"]["value"] == 1.0
    assert len(files) == 6 and all(file.stat().st_size for file in files)


def test_outputs_that_are_not_finite_are_said():
    logits = np.zeros((3, 2), "float32")
    logits[1] = np.nan, 0
    logits[2] = 0, np.inf
    with pytest.raises(InputError, match=r"for 2 of 3 examples \(first b\.png\).*diverged"):
        require_finite(logits, ["a.png", "b.png", "c.png"])
    require_finite(logits[:1], ["a.png"])


# -- ranking ----------------------------------------------------------------------------------------


def test_curves_are_scikit_learns(rng):
    scores = rng.normal(size=300).round(1)
    positive = rng.random(300) < expit(2 * scores - 1)
    found = rank_classes(lambda _: scores, lambda _: positive, 1, 300)
    false_alarms, recall, _ = sk.roc_curve(positive, scores)
    np.testing.assert_allclose(found.roc[0], np.interp(FALSE_POSITIVE_RATES, false_alarms, recall))
    precision, recall, _ = sk.precision_recall_curve(positive, scores)
    for at, value in zip(RECALLS, found.precision[0]):
        # The strictest threshold that finds so many.
        reached = [p for p, r in zip(precision[:-1], recall[:-1]) if r >= at - 1e-9]
        assert value == pytest.approx(reached[-1])
    # The area is what Mann and Whitney's U counts.
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found.auc[0] == pytest.approx(u / (positive.sum() * (~positive).sum()))


def test_scores_without_order_are_chance():
    positive = np.array([True, False] * 5)
    found = rank_classes(lambda _: np.zeros(10), lambda _: positive, 1, 10)
    assert found.auc[0] == 0.5 and found.average_precision[0] == 0.5


def test_the_error_of_an_area_is_delongs(rng):
    """By the definition: variances of the placements, each pair of images compared."""
    scores, positive = rng.normal(size=60).round(1), rng.random(60) < 0.3
    scores[positive] += 1
    x, y = scores[positive], scores[~positive]
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    found = rank_classes(lambda _: scores, lambda _: positive, 1, 60)
    assert found.macro_auc["value"] == pytest.approx(wins.mean())
    reach = found.macro_auc["value"] - found.macro_auc["low"]
    assert reach == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance))


def test_the_interval_of_a_mean_area_is_the_bootstraps(rng):
    """Classes share their images: their errors hang together, which the interval must know."""
    labels, logits = logits_of(rng, count=300, classes=3, sure=1.0)
    scores = softmax(logits, axis=1)
    found = rank_classes(lambda c: scores[:, c], lambda c: labels == c, 3, 300)
    draws = [rng.integers(300, size=300) for _ in range(200)]
    areas = [sk.roc_auc_score(labels[d], scores[d], multi_class="ovr") for d in draws]
    reach = (found.macro_auc["high"] - found.macro_auc["low"]) / 2
    assert reach == pytest.approx(1.96 * np.std(areas), rel=0.2)


def test_one_image_of_a_class_gives_an_area_but_no_interval(rng):
    positive = np.arange(20) == 3
    found = rank_classes(lambda _: np.arange(20.0), lambda _: positive, 1, 20)
    assert found.macro_auc["value"] == pytest.approx(3 / 19) and found.macro_auc["low"] is None


# -- intervals --------------------------------------------------------------------------------------


def test_wilson_is_scipys():
    for correct, count in ((0, 7), (3, 7), (7, 7), (480, 500)):
        ends = stats.binomtest(correct, count).proportion_ci(method="wilson")
        assert share(correct, count) == {
            "value": correct / count,
            "low": pytest.approx(ends.low, abs=1e-5),
            "high": pytest.approx(ends.high, abs=1e-5),
        }
    assert share(0, 0) == {"value": None, "low": None, "high": None}


def test_bootstrap_is_scipys_basic_one(rng):
    values = rng.gamma(1.0, size=15)  # few and skew: percentiles would be elsewhere
    (mine,) = bootstrap(lambda n: n @ values / n.sum(), 15, highest=np.inf, resamples=4000)
    ends = {
        method: stats.bootstrap(
            (values,), np.mean, method=method, n_resamples=4000, random_state=0
        ).confidence_interval
        for method in ("basic", "percentile")
    }
    theirs = ends["basic"]
    assert (mine["low"], mine["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.05)
    assert abs(theirs.high - ends["percentile"].high) > 0.1
    again = bootstrap(lambda n: n @ values / n.sum(), 15, highest=np.inf, resamples=4000)
    assert again == [mine]  # seeded


def test_bootstrap_of_what_a_resample_may_not_have():
    """A class of one image of twenty, which every third resample misses."""
    of_class = np.arange(20) == 0

    def statistic(counts):
        n = counts @ of_class
        return [n / n if n else np.nan, np.nan]

    with np.errstate(all="ignore"):
        first, second = bootstrap(statistic, 20)
    assert first["value"] is None or first == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert second == {"value": None, "low": None, "high": None}


def test_the_f1_interval_covers_the_truth():
    """Of a known population: 60 draws of 150 images, intervals of 95 %."""
    random = np.random.default_rng(1)
    labels, logits = logits_of(random, count=20000, classes=3, sure=1.0)
    predicted = logits.argmax(axis=1)
    truth = sk.f1_score(labels, predicted, average="macro")
    hits = 0
    from keras_transfer.evaluation.tasks import _macro_f1

    for _ in range(60):
        drawn = random.integers(20000, size=150)
        statistic = _macro_f1(labels[drawn], predicted[drawn], 3)
        (found,) = bootstrap(statistic, 150, resamples=200)
        hits += found["low"] <= truth <= found["high"]
    assert hits >= 52  # 57 expected; fewer than 52 of 60 by chance once in 200


# -- labels and numbers -----------------------------------------------------------------------------


def test_labels_agree_with_scikit_learn(rng):
    logits = rng.normal(size=(300, 4)).astype("float32")
    labels = (rng.random((300, 4)) < expit(2 * logits - [0, 1, 2, 0])).astype("float32")
    labels[:, 3] = 1
    names, paths = list("abcd"), [str(i) for i in range(300)]
    found, rows = measure_labels(names, labels, logits, paths)
    json.dumps(found, allow_nan=False)
    scores, predicted = expit(logits.astype("float64")), (logits > 0).astype(int)
    assert found["one_class"] == ["d"] and found["per_label"]["d"]["auc"] is None
    assert found["map"] == pytest.approx(
        sk.average_precision_score(labels[:, :3], scores[:, :3], average="macro")
    )
    assert found["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels[:, :3], scores[:, :3]))
    assert found["f1_macro"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, average="macro")
    )
    assert found["f1_micro"]["value"] == pytest.approx(
        sk.f1_score(labels, predicted, average="micro")
    )
    assert found["exact"]["value"] == pytest.approx(sk.accuracy_score(labels, predicted))
    before = found["calibration"]["before"]
    assert before["log_loss"] == pytest.approx(sk.log_loss(labels.ravel(), scores.ravel()))
    assert before["brier"] == pytest.approx(sk.brier_score_loss(labels.ravel(), scores.ravel()))
    pooled = reliability(scores.ravel(), labels.ravel())
    assert before["ece"]["value"] == pytest.approx(pooled["ece"]["value"])
    # Images are drawn with all their labels: the ends are not those of 1200 free ones.
    assert before["ece"] != pooled["ece"]
    best = []
    for truth, column in zip(labels.T > 0, scores.T):
        found_at = column >= np.unique(column)[:, None]
        hits = (found_at & truth).sum(axis=1)
        best.append((2 * hits / (found_at.sum(axis=1) + truth.sum())).max())
    assert [row["f1_best"] for row in found["per_label"].values()] == pytest.approx(best)
    assert found["thresholds_chosen_here"]
    worst = found["mistakes"][0]
    off = np.where((logits > 0) != labels, np.abs(scores - labels), 0)
    assert abs(worst["score"] - worst["there"]) == pytest.approx(off.max())
    assert rows["predicted"][0] == "|".join(n for n, p in zip(names, predicted[0]) if p)
    given, _ = measure_labels(
        names, labels, logits, paths, calibration={"label_thresholds": [0.5] * 4}
    )
    assert not given["thresholds_chosen_here"]
    assert given["f1_macro_best"] == pytest.approx(found["f1_macro"]["value"])


def test_best_thresholds_of_labels_that_never_are_or_tie():
    labels = np.array([[0, 1], [0, 1], [0, 0]], bool)
    scores = np.array([[0.1, 0.7], [0.2, 0.7], [0.9, 0.3]])
    np.testing.assert_allclose(best_f1_thresholds(labels, scores), [0.5, 0.5])
    np.testing.assert_allclose(best_f1_thresholds(labels[:1], scores[:1]), [0.5, 0.35])


def test_numbers_agree_with_scikit_learn(rng):
    labels = np.stack([rng.normal(2000, 3, 200), rng.gamma(2, size=200), np.full(200, 7.0)], 1)
    values = labels + rng.normal(0.5, 1, labels.shape)
    names, paths = ["year", "length", "same"], [str(i) for i in range(200)]
    found, rows = measure_values(names, labels, values, paths, slices={"half": ["a", "b"] * 100})
    json.dumps(found, allow_nan=False)
    for i, name in enumerate(names):
        row = found["per_target"][name]
        assert row["mae"]["value"] == pytest.approx(
            sk.mean_absolute_error(labels[:, i], values[:, i])
        )
        assert row["rmse"]["value"] == pytest.approx(
            sk.root_mean_squared_error(labels[:, i], values[:, i])
        )
        assert row["bias"]["value"] == pytest.approx((values - labels)[:, i].mean())
        if name == "same":
            assert row["r2"] == {"value": None, "low": None, "high": None}
        else:
            assert row["r2"]["value"] == pytest.approx(sk.r2_score(labels[:, i], values[:, i]))
            assert row["r2"]["low"] < row["r2"]["value"] < row["r2"]["high"]
        assert row["mae"]["low"] < row["mae"]["value"] < row["mae"]["high"]
    half = found["slices"]["half"][0]
    assert half["images"] == 100
    assert half["mae_year"] == pytest.approx(np.abs(values - labels)[::2, 0].mean())
    assert found["mistakes"][0]["error"] == pytest.approx(
        float(rows[found["mistakes"][0]["name"] + "_predicted"][int(found["mistakes"][0]["path"])])
        - found["mistakes"][0]["label"],
        rel=1e-3,
    )
    alone, _ = measure_values(["year"], labels[:1, :1], values[:1, :1], ["0"])
    assert alone["per_target"]["year"]["r2"]["value"] is None
    assert alone["per_target"]["year"]["mae"]["low"] is None


def test_numbers_far_from_zero_keep_their_spread(rng):
    """Seconds since 1970, a few of them apart."""
    labels = 1.7e9 + rng.normal(0, 3, (50, 1))
    values = labels + rng.normal(0, 1, (50, 1))
    found, _ = measure_values(["time"], labels, values, [""] * 50)
    assert found["per_target"]["time"]["r2"]["value"] == pytest.approx(
        sk.r2_score(labels, values), rel=1e-5
    )


def test_labels_and_targets_with_names_of_other_columns(rng):
    """In predictions.csv, a label's scores do not take the place of another column."""
    labels, paths = rng.integers(0, 2, (6, 3)), [f"{i}.png" for i in range(6)]
    outputs = rng.normal(size=(6, 3)).astype("float32")
    _, rows = measure_labels(("labels", "predicted", "a"), labels, outputs, paths)
    assert list(rows) == ["labels", "predicted", "labels_", "predicted_", "a"]
    assert float(rows["labels_"][0]) == pytest.approx(expit(outputs[0, 0]), abs=1e-5)
    _, rows = measure_values(("x", "x_predicted"), labels[:, :2], outputs[:, :2], paths)
    assert list(rows) == ["x", "x_predicted", "x_predicted_", "x_predicted_predicted"]
    rows = {"path": paths}
    add_column(rows, "path", ["1"] * 6)
    assert rows == {"path": paths, "path_": ["1"] * 6}


def test_thresholds_are_of_examples_of_any_kind():
    row = {"wanted": 0.9, "threshold": 0.5, "coverage": 0.8, "precision": 0.95}
    table = thresholds_table([{**row, "chosen_here": here} for here in (True, False)]).markdown()
    assert "| these examples (optimistic) |" in table and "| validation examples |" in table
