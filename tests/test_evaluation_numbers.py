"""What an evaluation measures, against scikit-learn, SciPy, other formulas and by hand; no Keras."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats
from scipy.special import expit, log_softmax, softmax

from keras_transfer.data.pictures import Contents
from keras_transfer.errors import InputError
from keras_transfer.evaluation import views
from keras_transfer.evaluation.abstention import at_threshold, risk_coverage, threshold_for
from keras_transfer.evaluation.calibrating import Calibration, check_precision, fitted
from keras_transfer.evaluation.calibration import fit_temperature, reliability
from keras_transfer.evaluation.classes import confused, measure_classes
from keras_transfer.evaluation.labels import best_thresholds, measure_labels
from keras_transfer.evaluation.pictures import draw, row_shares, similarity_order
from keras_transfer.evaluation.probabilities import Sigmoid, Softmax, require_finite
from keras_transfer.evaluation.ranking import FALSE_ALARMS, RECALLS, ranking
from keras_transfer.evaluation.result import Evaluation
from keras_transfer.evaluation.slices import column_values, slice_values, sliced
from keras_transfer.evaluation.values import measure_values
from keras_transfer.intervals import bootstrap, share


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
    top = {"split": "test", "pictures": head["pictures"], "skipped": 0, "tta": None}
    rows = {"path": [str(i) for i in range(head["pictures"])], **(rows or {})}
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
    monkeypatch.setattr("keras_transfer.evaluation.probabilities._AT_ONCE", 6 * 7)
    parts = Softmax(logits, 1.7)
    np.testing.assert_array_equal(parts.log_total, expected[0])
    assert parts.brier(labels) == expected[1]
    np.testing.assert_array_equal(parts.rank_of(labels), expected[2])
    exact = log_softmax(logits.astype("float64") / 1.7, axis=1)
    np.testing.assert_allclose(parts.log_column(2), exact[:, 2])
    np.testing.assert_allclose(parts.confidence, np.exp(exact.max(1)))
    assert [c for c, _ in parts.top(3, 6)] == np.argsort(-logits[3], kind="stable").tolist()


def test_mistakes_and_unsure_pictures_in_order():
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
    pairs = [(p["label"], p["predicted"]) for p in confused("abc", matrix)]
    assert pairs == [("b", "c"), ("a", "b"), ("c", "a")]


def test_a_class_without_pictures_is_left_out_of_means(rng):
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
def test_one_class_or_one_picture_only(count, tmp_path):
    logits = np.tile(np.float32([[2.0, 1.0, 0.0]]), (count, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, rows = measured(np.zeros(count, int), logits, precision=0.9, temperature=1.5)
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
    with pytest.raises(InputError, match=r"for 2 of 3 pictures \(first b\.png\).*diverged"):
        require_finite(logits, ["a.png", "b.png", "c.png"])
    require_finite(logits[:1], ["a.png"])


# -- ranking ----------------------------------------------------------------------------------------


def test_curves_are_scikit_learns(rng):
    scores = rng.normal(size=300).round(1)
    positive = rng.random(300) < expit(2 * scores - 1)
    found = ranking(lambda _: scores, lambda _: positive, 1, 300)
    false_alarms, recall, _ = sk.roc_curve(positive, scores)
    np.testing.assert_allclose(found.roc[0], np.interp(FALSE_ALARMS, false_alarms, recall))
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
    found = ranking(lambda _: np.zeros(10), lambda _: positive, 1, 10)
    assert found.auc[0] == 0.5 and found.average_precision[0] == 0.5


def test_the_error_of_an_area_is_delongs(rng):
    """By the definition: variances of the placements, each pair of pictures compared."""
    scores, positive = rng.normal(size=60).round(1), rng.random(60) < 0.3
    scores[positive] += 1
    x, y = scores[positive], scores[~positive]
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    variance = wins.mean(1).var(ddof=1) / len(x) + wins.mean(0).var(ddof=1) / len(y)
    found = ranking(lambda _: scores, lambda _: positive, 1, 60)
    assert found.macro_auc["value"] == pytest.approx(wins.mean())
    reach = found.macro_auc["value"] - found.macro_auc["low"]
    assert reach == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance))


def test_the_interval_of_a_mean_area_is_the_bootstraps(rng):
    """Classes share their pictures: their errors hang together, which the interval must know."""
    labels, logits = logits_of(rng, count=300, classes=3, sure=1.0)
    scores = softmax(logits, axis=1)
    found = ranking(lambda c: scores[:, c], lambda c: labels == c, 3, 300)
    draws = [rng.integers(300, size=300) for _ in range(200)]
    areas = [sk.roc_auc_score(labels[d], scores[d], multi_class="ovr") for d in draws]
    reach = (found.macro_auc["high"] - found.macro_auc["low"]) / 2
    assert reach == pytest.approx(1.96 * np.std(areas), rel=0.2)


def test_one_picture_of_a_class_gives_an_area_but_no_interval(rng):
    positive = np.arange(20) == 3
    found = ranking(lambda _: np.arange(20.0), lambda _: positive, 1, 20)
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
    """A class of one picture of twenty, which every third resample misses."""
    of_class = np.arange(20) == 0

    def statistic(counts):
        n = counts @ of_class
        return [n / n if n else np.nan, np.nan]

    with np.errstate(all="ignore"):
        first, second = bootstrap(statistic, 20)
    assert first["value"] is None or first == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert second == {"value": None, "low": None, "high": None}


def test_the_f1_interval_covers_the_truth():
    """Of a known population: 60 draws of 150 pictures, intervals of 95 %."""
    random = np.random.default_rng(1)
    labels, logits = logits_of(random, count=20000, classes=3, sure=1.0)
    predicted = logits.argmax(axis=1)
    truth = sk.f1_score(labels, predicted, average="macro")
    hits = 0
    from keras_transfer.evaluation.classes import _macro_f1

    for _ in range(60):
        drawn = random.integers(20000, size=150)
        statistic = _macro_f1(labels[drawn], predicted[drawn], 3)
        (found,) = bootstrap(statistic, 150, resamples=200)
        hits += found["low"] <= truth <= found["high"]
    assert hits >= 52  # 57 expected; fewer than 52 of 60 by chance once in 200


# -- calibration ------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    confidence = np.array([0.55, 0.58, 0.95, 0.97, 0.99, 1.0])
    right = np.array([1, 0, 1, 1, 0, 1])
    found = reliability(confidence, right)
    # Bins of 1/15: (0.533, 0.6], (0.933, 1].
    low, high = found["bins"]
    assert low["count"] == 2 and low["right"]["value"] == 0.5
    assert low["confidence"] == pytest.approx(0.565)
    assert (high["low"], high["high"]) == (pytest.approx(14 / 15), 1.0)
    expected = 2 / 6 * abs(0.565 - 0.5) + 4 / 6 * abs(confidence[2:].mean() - 0.75)
    assert found["ece"]["value"] == pytest.approx(expected)
    # As many each: with fewer pictures than bins every picture is its own.
    assert found["ece_adaptive"]["value"] == pytest.approx(np.abs(confidence - right).mean())


def test_calibration_error_against_a_plain_formula(rng):
    confidence = rng.beta(5, 2, size=1000).round(2)
    right = rng.random(1000) < confidence**2
    found = reliability(confidence, right)
    total = 0.0
    for i in range(15):
        of_bin = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if of_bin.any():
            total += of_bin.mean() * abs(right[of_bin].mean() - confidence[of_bin].mean())
    assert found["ece"]["value"] == pytest.approx(total)
    assert found["ece"]["low"] < total < found["ece"]["high"]
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, 16)))
    adaptive = stats.binned_statistic
    sure = adaptive(-confidence, confidence, "sum", -edges[::-1]).statistic
    hits = adaptive(-confidence, right, "sum", -edges[::-1]).statistic
    assert found["ece_adaptive"]["value"] == pytest.approx(np.abs(sure - hits).sum() / 1000)
    # The order of the pictures, also of equally sure ones, does not matter.
    order = rng.permutation(1000)
    again = reliability(confidence[order], right[order])
    assert again["ece_adaptive"]["value"] == pytest.approx(found["ece_adaptive"]["value"])


def test_probabilities_at_the_ends_have_bins():
    found = reliability(np.array([0.0, 0.0, 1.0]), np.array([0, 1, 1]))
    assert [row["count"] for row in found["bins"]] == [2, 1]
    assert found["ece"]["value"] == pytest.approx(1 / 3)


def test_a_calibrated_model_is_not_told_from_one(rng):
    """The error of a sample is above 0 always; percentiles of resamples would never reach 0."""
    below = hits = 0
    for _ in range(30):
        confidence = rng.uniform(0.5, 1, size=300)
        found = reliability(confidence, rng.random(300) < confidence)["ece"]
        assert found["value"] > 0.01
        below += found["value"] <= found["by_chance"]
        hits += found["low"] == 0
    assert below >= 25 and hits >= 25  # 28.5 expected
    confidence = np.full(400, 0.9)
    drawn = np.abs((rng.random((2000, 400)) < 0.9).mean(axis=1) - 0.9)
    found = reliability(confidence, np.ones(400))["ece"]
    assert found["by_chance"] == pytest.approx(np.quantile(drawn, 0.95), rel=0.08)
    assert found["low"] > found["by_chance"]


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5])
def test_a_planted_temperature_is_found(planted, rng):
    """Labels are drawn from softmax(z); the model says z · planted."""
    z = rng.normal(0, 1.5, size=(6000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(z, axis=1)])
    logits = (z * planted).astype("float32")
    assert fit_temperature("single_label", logits, labels) == pytest.approx(planted, rel=0.05)
    found, _ = measured(labels, logits, temperature=planted)
    before, after = (found["calibration"][when] for when in ("before", "after"))
    assert after["ece"]["value"] <= after["ece"]["by_chance"] and after["ece"]["low"] == 0
    if planted != 1:
        assert before["ece"]["low"] > 0.05 and after["log_loss"] < before["log_loss"]
    labels = (rng.random(z.shape) < expit(z)).astype("float32")
    assert fit_temperature("multi_label", logits, labels) == pytest.approx(planted, rel=0.05)


def test_the_temperature_has_the_least_loss(rng):
    labels, logits = logits_of(rng, sure=1.0)
    found = fit_temperature("single_label", logits, labels)
    losses = [sk.log_loss(labels, softmax(logits / (found * f), axis=1)) for f in (0.98, 1, 1.02)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_without_minimum_leaves_the_temperature(sign):
    """All right: ever surer would be better; all wrong: ever less sure."""
    logits = sign * np.float32([[3, 0], [0, 2], [1, 0]])
    assert fit_temperature("single_label", logits, np.array([0, 1, 0])) == 1.0


def test_temperature_changes_no_answer_and_all_confidences(rng):
    labels, logits = logits_of(rng)
    cold, _ = measured(labels, logits, temperature=3.0)
    plain, _ = measured(labels, logits)
    for same in ("accuracy", "confusion", "f1_macro"):
        assert cold[same] == plain[same]
    assert cold["calibration"]["before"] == plain["calibration"]["before"]
    exact = softmax(logits.astype("float64") / 3, axis=1)
    after = cold["calibration"]["after"]
    assert after["log_loss"] == pytest.approx(sk.log_loss(labels, exact))
    assert cold["unsure"][0]["score"] == pytest.approx(exact.max(axis=1).min())


# -- abstention -------------------------------------------------------------------------------------


def test_risk_and_coverage_by_hand():
    confidence = np.array([0.6, 0.9, 0.8, 0.7])
    right = np.array([True, True, False, True])
    found = risk_coverage(confidence, right)
    risks = [0, 1 / 2, 1 / 3, 1 / 4]  # 0.9 right, 0.8 wrong, 0.7 right, 0.6 right
    assert found["coverage"] == [0.25, 0.5, 0.75, 1.0]
    assert found["risk"] == pytest.approx(risks, abs=1e-6)
    assert found["aurc"] == pytest.approx(np.mean(risks))
    best = [0, 0, 0, 1 / 4]
    assert found["excess_aurc"] == pytest.approx(np.mean(risks) - np.mean(best))


def test_ties_are_taken_in_all_orders(rng):
    confidence = rng.integers(0, 4, size=40) / 4
    right = rng.random(40) < 0.6
    areas = []
    for _ in range(3000):
        order = rng.permutation(40)
        order = order[np.argsort(-confidence[order], kind="stable")]
        areas.append(np.mean(np.cumsum(~right[order]) / np.arange(1, 41)))
    found = risk_coverage(confidence, right)["aurc"]
    assert found == pytest.approx(np.mean(areas), abs=4 * np.std(areas) / np.sqrt(3000))
    same = risk_coverage(np.ones(40), right)
    assert same["risk"] == pytest.approx([np.mean(~right)] * 40, abs=1e-6)


def test_a_threshold_answers_as_many_as_it_can():
    confidence = np.array([0.99, 0.9, 0.8, 0.7, 0.7, 0.6])
    right = np.array([True, False, True, True, True, False])
    # Precision at each: 1, 1/2, 2/3, 4/5 (both of 0.7), 4/6.
    assert threshold_for(confidence, right, 0.8) == 0.7
    assert threshold_for(confidence, right, 0.66) == 0.6
    assert threshold_for(confidence, right, 0.9) == 0.99
    assert threshold_for(confidence, np.zeros(6, bool), 0.1) is None
    found = at_threshold(confidence, right, 0.7)
    assert found["coverage"]["value"] == pytest.approx(5 / 6)
    assert found["precision"] == share(4, 5)
    assert at_threshold(confidence, right, 1.1)["precision"]["value"] is None


def test_every_threshold_tried_one_by_one(rng):
    confidence, right = rng.random(200).round(2), rng.random(200) < 0.7
    for wanted in (0.6, 0.7, 0.75, 0.9, 1.0):
        good = [t for t in np.unique(confidence) if right[confidence >= t].mean() >= wanted]
        assert threshold_for(confidence, right, wanted) == (min(good) if good else None)


def test_thresholds_of_other_pictures_are_tried_as_they_are(rng):
    labels, logits = logits_of(rng, sure=1.5)
    known = {0.9: 0.77, 0.95: None}
    found, _ = measured(labels, logits, thresholds=known, precision=0.8)
    rows = {row["wanted"]: row for row in found["abstention"]["thresholds"]}
    assert list(rows) == [0.8, 0.9, 0.95]
    assert rows[0.8]["chosen_here"] and rows[0.8]["precision"]["value"] >= 0.8
    assert rows[0.9]["threshold"] == 0.77 and not rows[0.9]["chosen_here"]
    sure = softmax(logits.astype("float64"), axis=1).max(axis=1)
    assert rows[0.9]["coverage"]["value"] == np.mean(sure >= 0.77)
    assert rows[0.95]["coverage"]["value"] == 0 and rows[0.95]["precision"]["value"] is None


def test_what_is_fitted_goes_through_json(rng):
    labels, logits = logits_of(rng, sure=1.5)
    found = fitted("single_label", labels, logits, (0.9, 0.5))
    assert [row["precision"] for row in found["thresholds"]] == [0.5, 0.9]
    sure = Softmax(logits, found["temperature"]).confidence
    right = logits.argmax(axis=1) == labels
    assert found["thresholds"][1]["threshold"] == threshold_for(sure, right, 0.9)
    assert found["log_loss_after"] <= found["log_loss_before"]
    kept = Calibration("val", 400, None, {"output": found})
    assert Calibration.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    for broken in ({}, [], {"split": "val", "pictures": 1, "tta": None, "heads": 3}):
        with pytest.raises(InputError, match="no calibration"):
            Calibration.from_dict(broken)
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match="give a share above 0"):
            check_precision(wrong)
    with pytest.raises(InputError, match="one class a picture"):
        check_precision(0.9, ["regression"])


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
    # Pictures are drawn with all their labels: the ends are not those of 1200 free ones.
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
    given, _ = measure_labels(names, labels, logits, paths, label_thresholds=[0.5] * 4)
    assert not given["thresholds_chosen_here"]
    assert given["f1_macro_best"] == pytest.approx(found["f1_macro"]["value"])


def test_best_thresholds_of_labels_that_never_are_or_tie():
    labels = np.array([[0, 1], [0, 1], [0, 0]], bool)
    scores = np.array([[0.1, 0.7], [0.2, 0.7], [0.9, 0.3]])
    np.testing.assert_allclose(best_thresholds(labels, scores), [0.5, 0.5])
    np.testing.assert_allclose(best_thresholds(labels[:1], scores[:1]), [0.5, 0.35])


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
    assert half["pictures"] == 100
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


# -- views ------------------------------------------------------------------------------------------


def test_views_are_averaged_as_probabilities(rng):
    outputs = rng.normal(0, 20, size=(3, 5, 4)).astype("float32")
    classes = views.averaged("single_label", outputs)
    np.testing.assert_allclose(
        softmax(classes, axis=1), softmax(outputs, axis=2).mean(0), rtol=1e-4, atol=1e-12
    )
    labels = views.averaged("multi_label", outputs)
    np.testing.assert_allclose(expit(labels), expit(outputs).mean(0), rtol=1e-4)
    np.testing.assert_allclose(views.averaged("regression", outputs), outputs.mean(0), rtol=1e-5)
    sure = views.averaged("single_label", np.float32([[[500, -500]], [[500, -500]]]))
    np.testing.assert_allclose(sure, [[0, -1000]])  # no logarithm of 0
    assert views.averaged("single_label", outputs[:1]).dtype == np.float32


def test_which_views():
    assert [v.kind for v in views.views_for("mirror")] == ["plain", "mirror"]
    assert [v.kind for v in views.views_for("4")] == ["plain", *["augmented"] * 3]
    assert len(views.views_for(None)) == 1
    for wrong in ("1", "-3", "twice", 0):
        with pytest.raises(InputError, match="give mirror, or a number"):
            views.views_for(wrong)
    with pytest.raises(InputError, match="all views are the same"):
        views.views_for(3, "none")


# -- slices and files -------------------------------------------------------------------------------


def test_slices_stand_in_order_and_have_intervals(rng):
    labels, logits = logits_of(rng)
    sizes = np.array(["64–127 px", "1024–2047 px", "0–63 px", "128–255 px"])[np.arange(400) % 4]
    found, rows = measured(labels, logits, slices={"size": sizes})
    values = [row["value"] for row in found["slices"]["size"]]
    assert values == ["0–63 px", "64–127 px", "128–255 px", "1024–2047 px"]
    right = logits.argmax(axis=1) == labels
    assert found["slices"]["size"][1]["accuracy"] == share(int(right[::4].sum()), 100)
    many = sliced([f"{i}" for i in range(300) for _ in range(1 + i % 2)], lambda at: {"n": len(at)})
    assert len(many) == 100 and all(row["n"] == 2 for row in many)
    assert rows["predicted"] == [f"c{c}" for c in logits.argmax(axis=1)]


def test_slices_by_folder_size_and_column(tmp_path):
    from conftest import write_picture

    from keras_transfer.data import Examples, ImageData

    files = [tmp_path / "red" / "a.png", tmp_path / "red" / "b" / "b.png", tmp_path / "c.png"]
    for file, size in zip(files, ((40, 900), (130, 200), (64, 64))):
        write_picture(file, (1, 2, 3), size=size)
    examples = Examples([str(file) for file in files], np.zeros(3, "int32"))
    data = ImageData(("x", "y"), {"test": examples}, [], str(tmp_path))
    assert slice_values(data, "test", "folder") == ["red", "red/b", "."]
    sizes = ["0–63 px", "128–255 px", "64–127 px"]
    assert slice_values(data, "test", "size") == sizes
    data.examples["memory"] = Examples(
        Contents([file.read_bytes() for file in files]), np.zeros(3, "int32")
    )
    assert slice_values(data, "memory", "size") == sizes
    table = tmp_path / "table.csv"
    table.write_text("path,camera\nc.png,new\nred/a.png,old\nred/b/b.png,2\n")
    assert slice_values(data, "test", "camera", table=table) == ["old", "2", "new"]
    for wrong, words in (("lens", "no column 'lens'; it has path, camera"),):
        with pytest.raises(InputError, match=words):
            slice_values(data, "test", wrong, table=table)
    with pytest.raises(InputError, match="is no table"):
        slice_values(data, "test", "camera", table=tmp_path)
    with pytest.raises(InputError, match="no row for other"):
        column_values(table, "camera", ["other"])


def test_similar_classes_stand_side_by_side(rng):
    """Four groups of five that are confused within: shuffled, the order brings them together."""
    matrix = np.eye(20) * 50
    for group in np.arange(20).reshape(4, 5):
        matrix[np.ix_(group, group)] += 8
    shuffle = rng.permutation(20)
    order = similarity_order(matrix[np.ix_(shuffle, shuffle)].astype(int))
    groups = shuffle[order] // 5
    assert (np.diff(groups) != 0).sum() == 3
    np.testing.assert_array_equal(similarity_order(np.eye(2)), [0, 1])
    assert (row_shares(np.zeros((3, 3))) == 0).all()


def test_all_is_written_and_drawn_again_from_its_file(rng, tmp_path):
    """Of several heads, one with a hundred classes, names of any kind among them."""
    labels, logits = logits_of(rng, count=600, classes=100, sure=3.0)
    classes, rows = measured(
        labels, logits, temperature=0.8, precision=0.9, slices={"a|b": ["$x_$", "b"] * 300}
    )
    few, _ = measure_classes(
        ["$a_$", "b\udcff", "c\nd"], labels % 3, logits[:, :3], [""] * 600, temperature=2.0
    )
    names, flat = list("abc"), rng.normal(size=(600, 3)).astype("float32")
    several, _ = measure_labels(names, (flat > 0.3).astype("float32"), flat, [""] * 600)
    numbers, _ = measure_values(names, flat, flat + 1, [""] * 600)
    heads = {"kind": classes, "few": few, "tags": several, "size": numbers}
    found = evaluation_of(heads, rows)
    files = found.save(tmp_path / "out")
    assert {file.name for file in files} == {
        "evaluation.json",
        "predictions.csv",
        *(f"{h}_{p}.png" for h in ("kind", "few", "tags") for p in ("reliability", "curves")),
        *(f"{h}_{p}.png" for h in ("kind", "few") for p in ("confusion", "risk_coverage")),
    }
    assert {file.name for file in (tmp_path / "out").iterdir()} == {file.name for file in files}
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert document == found.to_dict()
    (tmp_path / "again").mkdir()
    again = draw({"heads": {"few": few, "size": numbers}}, tmp_path / "again")
    assert len(again) == 4
    assert all(f.read_bytes() == (tmp_path / "out" / f.name).read_bytes() for f in again)
    lines = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 601 and lines[0].startswith("path,label,predicted,score")
    text = found.table()
    assert "class (weakest 30 of 100)" in text and "## tags" in text and "a\\|b" in text
    # Every table is one: all lines of a block have as many cells.
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = [line.replace("\\|", "") for line in block.splitlines()]
            assert len({line.count("|") for line in lines}) == 1


def test_sigmoid_is_stable():
    extreme = Sigmoid(np.float32([[200.0, -200.0]]))
    assert extreme.log_loss(np.array([[0, 1]])) == pytest.approx(200.0)
    assert extreme.log_loss(np.array([[1, 0]])) < 1e-80
