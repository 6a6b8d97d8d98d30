"""The cache of a frozen part: what pays, and the same training with it as without."""

import json

import keras
import numpy as np
import pytest
import yaml
from conftest import tiny_bert
from killed import copied_after_each_epoch
from test_features import LIGHT, NAME, SIZE, model_of, tiny_model_of

from keras_transfer.data import View, from_directory
from keras_transfer.errors import InputError
from keras_transfer.features.caching import plan_caching
from keras_transfer.features.extraction import extract
from keras_transfer.features.prefix import prefix_of
from keras_transfer.features.store import Store
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification, MultiLabel
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

# -- what pays ------------------------------------------------------------------------------------


def planned_caching(model, data, phase, asked="auto", images=None, augment="light", **options):
    trainer = Trainer(model, Schedule("s", (phase,)), cache=asked)
    (planned,) = trainer.plan(data).phases
    images = images or {"train": 29, "val": 7}
    return plan_caching(asked, planned, model, images, augment, **options)


def test_what_pays_is_cached(data, tmp_path):
    model, store = model_of(data), Store(tmp_path, limit=1 << 40)
    head = Phase("head", "all", epochs=6)
    found, _ = planned_caching(model, data, head, store=store)
    assert (found.where, found.views, found.dtype) == ("disk", 3, "float32")
    assert found.bytes == (29 * 3 + 7) * 256 * 4
    plain, _ = planned_caching(model, data, head, augment="none", store=store)
    assert plain.views == 1 and plain.gain > found.gain > 1.2
    two, _ = planned_caching(model, data, Phase("h", "all", 6, views=2), store=store)
    assert two.views == 2
    memory, _ = planned_caching(model, data, head, asked="memory", store=store)
    assert memory.where == "memory"

    low, why = planned_caching(model, data, Phase("p", "stage:2", 2), store=store)
    assert low is None and "gain too little" in why
    none, why = planned_caching(model, data, Phase("p", "none", 2), store=store)
    assert none is None and why == "nothing is frozen"
    off, _ = planned_caching(model, data, head, asked="off", store=store)
    assert off is None


def test_what_does_not_fit_gets_shorter_numbers_fewer_views_or_is_left(data, tmp_path):
    model = model_of(data)
    head = Phase("head", "all", epochs=6)
    many = {"train": 1000, "val": 0}
    row = 256 * 4
    for room, expected in ((3000, (3, "float32")), (2000, (2, "float32")), (600, (1, "float16"))):
        found, _ = planned_caching(
            model, data, head, images=many, store=Store(tmp_path, room * row)
        )
        assert (found.views, found.dtype) == expected
    small = Store(tmp_path, 100 * row)
    none, why = planned_caching(model, data, head, images=many, store=small)
    assert none is None and "do not fit into 100 KiB free disk" in why
    with pytest.raises(InputError, match=r"Phase 'head': .* do not fit.*Make space"):
        planned_caching(model, data, head, asked="disk", images=many, store=small)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cache": "yes"}, "cache must be one of auto, off"),
        ({"engine": "onnx"}, "engine must be one of auto, keras, openvino, not 'onnx'"),
        ({"feature_dtype": "int8"}, "feature_dtype must be one of auto, float32"),
    ],
)
def test_names_that_mean_nothing(data, options, message):
    with pytest.raises(InputError, match=message):
        Trainer(tiny_model_of(data), **options)


# -- training -------------------------------------------------------------------------------------


def trained(data, out, schedule, model=None, **options):
    model = model or tiny_model_of(data)
    run = Trainer(model, schedule, batch_size=8, **options).fit(data, out)
    return model, run


@pytest.mark.parametrize(
    "freezing", ["stage:1", pytest.param("stage:2", marks=pytest.mark.large), "all"]
)
def test_without_augmentation_the_trained_weights_agree(kind, tmp_path, freezing, monkeypatch):
    write, backbone, options = kind
    data = from_directory(write(tmp_path / "data"), progress=False)

    def new_model():
        keras.utils.set_random_seed(0)
        return build_model(backbone(), Classification(data.class_names), **options)

    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s", (Phase("p", freezing, 3, 1e-3, augment="none", dropout=0.0, optimizer="sgd"),)
    )
    start = [w.numpy() for w in new_model().weights]
    weights, histories = [], []
    for cache in ("off", "disk", "memory"):
        model, run = trained(data, tmp_path / cache, schedule, new_model(), cache=cache)
        weights.append([w.numpy() for w in model.weights])
        histories.append((run.path / "history.csv").read_text())
        # Within an encoder of texts, examples have as many activations as tokens.
        cached = cache != "off" and (freezing == "all" or backbone is not tiny_bert)
        assert (run.config["caching"][0] or {}).get("where") == (cache if cached else None)
    moved = max(np.abs(a - b).max() for a, b in zip(start, weights[0]))
    for with_cache in weights[1:]:
        for a, b in zip(weights[0], with_cache):
            np.testing.assert_allclose(a, b, atol=1e-3 * moved + 1e-6)
    assert moved > 1e-4


def test_augmented_views_stay_alive_and_only_train(data, tmp_path, monkeypatch):
    """Each epoch draws anew; validation sees the plain view."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule("s", (Phase("p", "all", 4, 1e-3, views=3, dropout=0.0),))
    model, run = trained(data, tmp_path / "run", schedule, cache="disk", keep="last")
    kinds = sorted(info.about["view"] for info in Store().list())
    assert kinds == ["augmented 1", "augmented 2", "augmented 3", "plain"]
    from keras_transfer.evaluation import evaluate

    measured = evaluate(run.model, data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3)

    from keras_transfer.features.extraction import training_batches

    prefix = prefix_of(model, 3)
    examples = data.examples["train"]
    views = tuple(View("augmented", n, LIGHT) for n in range(3))
    found = extract(prefix, examples, views)
    stream = training_batches(found, examples.labels, batch_size=8, seed=0)
    epochs = [
        np.concatenate([np.asarray(x) for x, _ in stream.skip(4 * e).take(4)]) for e in (0, 1)
    ]
    rows = {found.gather(np.array([r]), v).tobytes(): (r, v) for r in range(29) for v in range(3)}
    drawn = [dict(rows[x.tobytes()] for x in epoch) for epoch in epochs]
    assert all(len(epoch) == 29 for epoch in drawn)  # each image once
    assert drawn[0] != drawn[1] and {v for epoch in drawn for v in epoch.values()} == {0, 1, 2}
    (late,) = training_batches(found, examples.labels, batch_size=8, seed=0, start_epoch=1).take(1)
    np.testing.assert_array_equal(np.asarray(late[0]), epochs[1][:8])


def test_an_interrupted_run_keeps_its_decisions(data, tmp_path, monkeypatch):
    """Also where the disk has room no more; and ends with the same weights."""
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s", (Phase("head", "all", 2, 1e-2), Phase("top", "stage:1", 2, 1e-3, ema=0.9))
    )

    def fit(out, **options):
        trainer = Trainer(tiny_model_of(data), schedule, batch_size=8, cache="disk")
        return trainer.fit(data, out, **options)

    whole = fit(tmp_path / "whole")

    class Stop(Exception):
        pass

    from keras_transfer.training.checkpoint import Progress
    from keras_transfer.utils.checkpoint import Checkpoint

    save = Checkpoint.save

    def stop(self, state, *args):
        save(self, state, *args)
        if state["epoch"] == 3:
            raise Stop

    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(Checkpoint, "save", stop)
        # After each epoch, however short.
        patched.setattr(Progress, "save_seconds", property(lambda _: 0.0, lambda *_: None), False)
        fit(tmp_path / "cut")
    Store().trim(limit=0)  # and what was computed is gone
    monkeypatch.setenv("KERAS_TRANSFER_CACHE_GB", "0")
    resumed = fit(tmp_path / "cut", resume=True)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_feature_extraction_is_closed_and_a_plain_model(data, tmp_path, monkeypatch, real_weights):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    _, run = trained(data, tmp_path / "run", "feature_extraction", model_of(data, "imagenet"))
    assert run.metrics["val"]["accuracy"] == 1.0
    assert [p["epochs"] for p in run.metrics["phases"]] == [1]
    assert {info.about["view"] for info in Store().list()} == {"plain", "mirror"}
    from keras_transfer.evaluation import evaluate

    measured = evaluate(keras.saving.load_model(run.validated_path, compile=False), data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3, abs=1e-6)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["schedule"]["phases"][0]["solver"] == "logistic"
    assert json.loads((run.path / "metrics.json").read_text())["best_epoch"] == 1


def test_the_best_of_epochs_too_short_to_be_written_one_by_one(data, tmp_path):
    schedule = Schedule("s", (Phase("p", "all", 12, 3.0, shape="constant", augment="none"),))
    _, run = trained(data, tmp_path / "run", schedule, cache="memory")
    from keras_transfer.evaluation import evaluate

    assert 1 < run.metrics["best_epoch"] < 12
    measured = evaluate(run.model, data)
    assert measured["loss"] == pytest.approx(run.metrics["val"]["loss"], rel=1e-3)


def test_closed_then_everything(data, tmp_path):
    overrides = {"head.solver": "logistic", "all.epochs": 1}
    _, run = trained(data, tmp_path / "run", "lp_ft", overrides=overrides, cache="memory")
    assert [p["epochs"] for p in run.metrics["phases"]] == [1, 1]


def test_heads_without_a_closed_form(data):
    closed = Schedule("s", (Phase("head", "all", 1, solver="logistic"),))
    for head, pooling, reason in (
        (Classification(data.class_names, hidden=(8,)), "avg", "hidden layers"),
        (MultiLabel(data.class_names), None, "pooled features"),
    ):
        model = build_model(NAME, head, image_size=SIZE, weights=None, pooling=pooling)
        with pytest.raises(InputError, match=f"'head': solver 'logistic' .*{reason}"):
            Trainer(model, closed)
        (phase,) = Trainer(model, "feature_extraction").plan(data).schedule.phases
        assert phase.solver == "gradient"


def test_what_trains_is_no_part_of_a_fingerprint(data):
    from keras_transfer.models.stages import freeze

    model = model_of(data)
    before = prefix_of(model, 8).fingerprint
    freeze(model, "stage:4")
    assert prefix_of(model, 8).fingerprint == before
    assert prefix_of(model, 7).fingerprint != before


def test_a_deeper_cut_follows_from_a_later_phase_s(data, tmp_path, monkeypatch):
    """Each image is decoded once for all cuts, and the numbers are those of the whole prefix."""
    from keras_transfer.data import files as images

    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "cache"))
    schedule = Schedule(
        "s",
        (
            Phase("head", "all", 1, 1e-2, augment="none"),
            Phase("top", "stage:2", 1, 1e-4, augment="none"),
            Phase("more", "stage:1", 1, 1e-4, augment="none"),
        ),
    )
    read, contents = [], images.Files.contents
    monkeypatch.setattr(
        images.Files, "contents", lambda self, i: read.append(i) or contents(self, i)
    )
    _, run = trained(data, tmp_path / "run", schedule, cache="disk")
    # The first image of each split is read once more, to see whether the model can read it.
    assert len(read) == 29 + 7 + 2
    assert [row["frozen_stages"] for row in run.metrics["phases"]] == [3, 2, 1]
    assert len(Store().list()) == 3  # views of training and validation images are one table

    read.clear()
    # Seeded alike, and nothing below the cuts was trained in the first phase.
    fresh = tiny_model_of(data)
    rows = np.arange(29)
    for stages in (3, 2, 1):
        prefix = prefix_of(fresh, stages)
        found = extract(prefix, data.examples["train"])
        assert not read, stages
        again = extract(prefix, data.examples["train"], store=Store(tmp_path / "other"))
        assert read
        np.testing.assert_allclose(found.gather(rows), again.gather(rows), rtol=1e-4, atol=1e-5)
        read.clear()


def test_a_part_that_was_trained_since_is_computed_again(data, tmp_path):
    """A later phase may freeze more than an earlier one; a resumed run knows the new weights only."""
    phases = (
        Phase("head", "all", 1, 1e-2),
        Phase("all", "none", 1, 1e-2),
        Phase("top", "stage:2", 2, 1e-2),
    )

    def trainer():
        model = tiny_model_of(data)
        return Trainer(model, Schedule("s", phases), cache="disk", batch_size=8, augment="none")

    with copied_after_each_epoch(tmp_path):
        whole = trainer().fit(data, tmp_path / "whole")
    resumed = trainer().fit(data, tmp_path / "after-2", resume=True)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
