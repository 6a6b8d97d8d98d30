"""What is made of the numbers: calibration, abstention, views of an image, slices and files; no Keras."""

import json
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats
from scipy.special import expit, softmax
from test_evaluation_numbers import evaluation_of, logits_of, measured

from keras_transfer.data.arrays import Contents
from keras_transfer.errors import InputError
from keras_transfer.evaluation.calibration import (
    Calibration,
    calibrate_head,
    check_precision,
    fit_temperature,
    reliability,
)
from keras_transfer.evaluation.outputs import Sigmoid, Softmax, average_views, resolve_views
from keras_transfer.evaluation.plots import row_shares, save_plots, similarity_order
from keras_transfer.evaluation.ranking import (
    risk_coverage,
    threshold_for_precision,
    threshold_result,
)
from keras_transfer.evaluation.slices import column_values, measure_slices, slice_values
from keras_transfer.evaluation.tasks import measure_classes, measure_labels, measure_values
from keras_transfer.utils.statistics import share

# -- calibration ------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    confidence = np.array([0.55, 0.58, 0.95, 0.97, 0.99, 1.0])
    right = np.array([1, 0, 1, 1, 0, 1])
    found = reliability(confidence, right)
    # Bins of 1/15: (0.533, 0.6], (0.933, 1].
    (shown,) = found["bins"]  # fewer than 20 are not divided
    assert (shown["count"], shown["low"], shown["high"]) == (6, 0.55, 1.0)
    assert shown["confidence"] == pytest.approx(confidence.mean())
    expected = 2 / 6 * abs(0.565 - 0.5) + 4 / 6 * abs(confidence[2:].mean() - 0.75)
    assert found["ece"]["value"] == pytest.approx(expected)
    # As many each: with fewer images than bins every image is its own.
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
    # The order of the images, also of equally sure ones, does not matter.
    order = rng.permutation(1000)
    again = reliability(confidence[order], right[order])
    assert again["ece_adaptive"]["value"] == pytest.approx(found["ece_adaptive"]["value"])


def test_bins_of_the_plot_have_20_examples(rng):
    for confidence in (
        rng.beta(8, 1, 176),
        rng.beta(8, 1, 176).round(1),
        np.ones(50),
        rng.random(5000),
    ):
        right = rng.random(len(confidence)) < confidence
        bins = reliability(confidence, right)["bins"]
        assert sum(row["count"] for row in bins) == len(confidence)
        assert min(row["count"] for row in bins) >= 20 and len(bins) <= 15
        assert all(a["high"] < b["low"] for a, b in pairwise(bins))
        rows = [(confidence >= row["low"]) & (confidence <= row["high"]) for row in bins]
        assert [right[row].sum() for row in rows] == [
            round(row["right"]["value"] * row["count"]) for row in bins
        ]
    assert len(bins) == 15


def test_probabilities_at_the_ends_have_bins():
    found = reliability(np.array([0.0, 0.0, 1.0]), np.array([0, 1, 1]))
    assert [row["count"] for row in found["bins"]] == [3]
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
    found, _ = measured(labels, logits, calibration={"temperature": planted})
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


def test_a_loss_that_vanishes_leaves_the_temperature():
    """In floating point it is 0 below some temperature, which is no minimum."""
    logits = np.float32([[60, 0], [0, 70]])
    assert fit_temperature("single_label", logits, np.array([0, 1])) == 1.0
    assert fit_temperature("multi_label", logits - 30, np.array([[1, 0], [0, 1]])) == 1.0
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    for scale in (3, 30, 60, 100, 300):  # the loss is 0 at many temperatures
        assert fit_temperature("multi_label", scale * (2.0 * labels - 1), labels) == 1.0


def test_temperature_changes_no_answer_and_all_confidences(rng):
    labels, logits = logits_of(rng)
    cold, _ = measured(labels, logits, calibration={"temperature": 3.0})
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
    assert threshold_for_precision(confidence, right, 0.8) == 0.7
    assert threshold_for_precision(confidence, right, 0.66) == 0.6
    assert threshold_for_precision(confidence, right, 0.9) == 0.99
    assert threshold_for_precision(confidence, np.zeros(6, bool), 0.1) is None
    found = threshold_result(confidence, right, 0.7)
    assert found["coverage"]["value"] == pytest.approx(5 / 6)
    assert found["precision"] == share(4, 5)
    assert threshold_result(confidence, right, 1.1)["precision"]["value"] is None


def test_every_threshold_tried_one_by_one(rng):
    confidence, right = rng.random(200).round(2), rng.random(200) < 0.7
    for wanted in (0.6, 0.7, 0.75, 0.9, 1.0):
        good = [t for t in np.unique(confidence) if right[confidence >= t].mean() >= wanted]
        assert threshold_for_precision(confidence, right, wanted) == (min(good) if good else None)


def test_thresholds_of_other_images_are_tried_as_they_are(rng):
    labels, logits = logits_of(rng, sure=1.5)
    known = [{"precision": 0.9, "threshold": 0.77}, {"precision": 0.95, "threshold": None}]
    found, _ = measured(labels, logits, calibration={"thresholds": known}, precision=0.8)
    rows = {row["wanted"]: row for row in found["abstention"]["thresholds"]}
    assert list(rows) == [0.8, 0.9, 0.95]
    assert rows[0.8]["chosen_here"] and rows[0.8]["precision"]["value"] >= 0.8
    assert rows[0.9]["threshold"] == 0.77 and not rows[0.9]["chosen_here"]
    sure = softmax(logits.astype("float64"), axis=1).max(axis=1)
    assert rows[0.9]["coverage"]["value"] == np.mean(sure >= 0.77)
    assert rows[0.95]["coverage"]["value"] == 0 and rows[0.95]["precision"]["value"] is None


def test_what_is_fitted_goes_through_json(rng):
    labels, logits = logits_of(rng, sure=1.5)
    found = calibrate_head("single_label", labels, logits, (0.9, 0.5))
    assert [row["precision"] for row in found["thresholds"]] == [0.5, 0.9]
    sure = Softmax(logits, found["temperature"]).confidence
    right = logits.argmax(axis=1) == labels
    assert found["thresholds"][1]["threshold"] == threshold_for_precision(sure, right, 0.9)
    assert found["log_loss_after"] <= found["log_loss_before"]
    kept = Calibration("val", 400, None, {"output": found})
    assert Calibration.from_dict(json.loads(json.dumps(kept.to_dict()))) == kept
    for broken in ({}, [], {"split": "val", "images": 1, "tta": None, "heads": 3}):
        with pytest.raises(InputError, match="Invalid calibration"):
            Calibration.from_dict(broken)
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(InputError, match="must be above 0"):
            check_precision(wrong)
    with pytest.raises(InputError, match="one class per example"):
        check_precision(0.9, ["regression"])


# -- views ------------------------------------------------------------------------------------------


def test_views_are_averaged_as_probabilities(rng):
    outputs = rng.normal(0, 20, size=(3, 5, 4)).astype("float32")
    classes = average_views("single_label", outputs)
    np.testing.assert_allclose(
        softmax(classes, axis=1), softmax(outputs, axis=2).mean(0), rtol=1e-4, atol=1e-12
    )
    labels = average_views("multi_label", outputs)
    np.testing.assert_allclose(expit(labels), expit(outputs).mean(0), rtol=1e-4)
    np.testing.assert_allclose(average_views("regression", outputs), outputs.mean(0), rtol=1e-5)
    sure = average_views("single_label", np.float32([[[500, -500]], [[500, -500]]]))
    np.testing.assert_allclose(sure, [[0, -1000]])  # no logarithm of 0
    assert average_views("single_label", outputs[:1]).dtype == np.float32


def test_which_views():
    assert [v.kind for v in resolve_views("mirror")] == ["plain", "mirror"]
    assert [v.kind for v in resolve_views("4")] == ["plain", *["augmented"] * 3]
    assert len(resolve_views(None)) == 1
    for wrong in ("1", "-3", "twice", 0):
        with pytest.raises(InputError, match="choose mirror or a number"):
            resolve_views(wrong)
    with pytest.raises(InputError, match="all views are the same"):
        resolve_views(3, "none")


# -- slices and files -------------------------------------------------------------------------------


def test_slices_stand_in_order_and_have_intervals(rng):
    labels, logits = logits_of(rng)
    sizes = np.array(["64–127 px", "1024–2047 px", "0–63 px", "128–255 px"])[np.arange(400) % 4]
    found, rows = measured(labels, logits, slices={"size": sizes})
    values = [row["value"] for row in found["slices"]["size"]]
    assert values == ["0–63 px", "64–127 px", "128–255 px", "1024–2047 px"]
    right = logits.argmax(axis=1) == labels
    assert found["slices"]["size"][1]["accuracy"] == share(int(right[::4].sum()), 100)
    values = [f"{i}" for i in range(300) for _ in range(1 + i % 2)]
    many = measure_slices({"by": values}, lambda at: {"n": len(at)})["by"]
    assert len(many) == 100 and all(row["n"] == 2 for row in many)
    assert rows["predicted"] == [f"c{c}" for c in logits.argmax(axis=1)]


def test_slices_by_folder_size_and_column(tmp_path):
    from conftest import write_image

    from keras_transfer.data import Examples, ImageData

    files = [tmp_path / "red" / "a.png", tmp_path / "red" / "b" / "b.png", tmp_path / "c.png"]
    for file, size in zip(files, ((40, 900), (130, 200), (64, 64))):
        write_image(file, (1, 2, 3), size=size)
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
    with pytest.raises(InputError, match="is not a table"):
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
        labels,
        logits,
        calibration={"temperature": 0.8},
        precision=0.9,
        slices={"a|b": ["$x_$", "b"] * 300},
    )
    few, _ = measure_classes(
        ["$a_$", "b\udcff", "c\nd"],
        labels % 3,
        logits[:, :3],
        [""] * 600,
        calibration={"temperature": 2.0},
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
    again = save_plots({"heads": {"few": few, "size": numbers}}, tmp_path / "again")
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
