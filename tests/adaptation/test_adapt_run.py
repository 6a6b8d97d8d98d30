"""The choice of an epoch, its independence of target labels, and resuming."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.adaptation import Adapter, EpochChoice, adapt
from keras_transfer.adaptation.methods import DANN
from keras_transfer.data import Examples, from_arrays
from keras_transfer.data.arrays import Arrays
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase

NAMES = ("blue", "green", "red")
COLOURS = np.array([[60, 60, 200], [60, 200, 60], [200, 60, 60]])
SMALL = DANN(hidden=(8,), batch_norm=False)


def domain(count, seed, darker=0):
    """Return (images uint8 [N, 32, 32, 3], labels): one noisy color per class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    images = COLOURS[labels][:, None, None] - darker + rng.normal(0, 40, (count, 32, 32, 3))
    return np.clip(images, 0, 255).astype("uint8"), labels.astype("int32")


def source_data():
    return from_arrays(domain(48, 0), class_names=NAMES, val_split=0.25, progress=False)


def target_examples(falsified=False):
    images, labels = domain(24, 1, darker=60)
    return Examples(Arrays(images), 0 * labels if falsified else labels)


def tiny_model():
    keras.utils.set_random_seed(0)
    return build_model(tiny_backbone(), Classification(NAMES, bottleneck=8), image_size=32)


def phase(epochs=3, **options):
    return Phase("p", "none", epochs, 3e-3, batch_size=12, augment="none", warmup=0.0, **options)


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights()))


# -- choice of an epoch ---------------------------------------------------------------------------


def test_target_labels_affect_neither_weights_nor_choice(tmp_path):
    def run(falsified=False, reported=False, **options):
        model = tiny_model()
        target = target_examples(falsified)
        adapted = adapt(
            model,
            source_data(),
            target,
            ["mcc", SMALL],
            phase=phase(3),
            target_report=target if reported else None,
            verbose=0,
            **options,
        )
        return model, adapted

    model, adapted = run(keep="selected", state=tmp_path)
    other, same = run(falsified=True, reported=True, keep="selected")
    assert adapted.selector.oracle is None
    assert same_weights(model, other)
    assert same.epoch == adapted.epoch and same.history == adapted.history
    assert same.selector.scores == adapted.selector.scores
    # Only the report uses the falsified labels.
    images, labels = domain(24, 1, darker=60)
    answers = np.asarray(other(images)).argmax(axis=1)
    assert same.selector.target_accuracy(same.epoch) == (answers == 0).mean()
    assert (answers == 0).mean() != (answers == labels).mean()
    assert not any("target_accuracy" in name for name in adapted.history)

    # A second call has nothing left to train, and refuses another choice.
    finished, again = run(keep="selected", state=tmp_path)
    assert again.epoch == adapted.epoch and same_weights(model, finished)
    with pytest.raises(InputError, match=r"different settings: keep: 'selected' is now 'last'"):
        run(state=tmp_path)


class RecordWeights(keras.callbacks.Callback):
    """Record the weights after each epoch."""

    def __init__(self, network):
        super().__init__()
        self.network, self.weights = network, []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.network.get_weights())


def force_selected(monkeypatch, selected):
    """Make `Selector.selected` return an epoch, and all epochs candidates."""
    from keras_transfer.adaptation.selection import Selector

    monkeypatch.setattr(Selector, "selected", property(lambda self: selected))
    monkeypatch.setattr(Selector, "candidates", property(lambda s: [x.epoch for x in s.scores]))


# The tests of the command cover keep='last'.
@pytest.mark.parametrize("keep", [pytest.param("last", marks=pytest.mark.large), "selected"])
def test_the_model_ends_with_the_weights_of_the_chosen_epoch(monkeypatch, keep):
    force_selected(monkeypatch, 2)
    model = tiny_model()
    seen = RecordWeights(model)
    adapted = adapt(
        model, source_data(), target_examples(), "coral",
        phase=phase(), keep=keep, callbacks=[seen], verbose=0,
    )  # fmt: skip
    assert adapted.epoch == (2 if keep == "selected" else 3)
    for a, b in zip(model.get_weights(), seen.weights[adapted.epoch - 1]):
        np.testing.assert_array_equal(a, b)
    assert [s.epoch for s in adapted.selector.scores] == [1, 2, 3]
    # Scores and validation both use the model on unaugmented images.
    assert adapted.history["val_accuracy"] == [s.source_accuracy for s in adapted.selector.scores]


def test_if_every_epoch_is_vetoed_the_last_one_is_used(monkeypatch, capsys):
    force_selected(monkeypatch, None)
    model = tiny_model()
    seen = RecordWeights(model)
    adapted = adapt(
        model, source_data(), target_examples(), "coral",
        phase=phase(2), keep="selected", callbacks=[seen],
    )  # fmt: skip
    assert adapted.epoch == 2 and "every epoch is vetoed" in capsys.readouterr().err
    for a, b in zip(model.get_weights(), seen.weights[-1]):
        np.testing.assert_array_equal(a, b)


class Killed(Exception):
    """Simulates the death of the process."""


# By default `test_a_killed_run_is_resumed_from_its_directory` covers a death after the scores.
@pytest.mark.large
@pytest.mark.parametrize("after", ["the scores", "the state"])
def test_a_killed_run_selects_the_same_epoch(tmp_path, monkeypatch, after):
    """The process dies after the second epoch is scored, before or after it is saved."""
    from keras_transfer.adaptation.callbacks import SaveState

    def run(state, **options):
        model = tiny_model()
        adapted = adapt(
            model, source_data(), target_examples(), SMALL,
            phase=phase(3), keep="selected", state=state, verbose=0, **options,
        )  # fmt: skip
        return model, adapted

    model, adapted = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        save = SaveState.on_epoch_end

        def die(self, epoch, logs=None):
            if after == "the state" or epoch != 1:
                save(self, epoch, logs)
            if epoch == 1:
                raise Killed

        patch.setattr(SaveState, "on_epoch_end", die)
        with pytest.raises(Killed):
            run(tmp_path / "cut")
    resumed, same = run(tmp_path / "cut")
    assert same.epoch == adapted.epoch and same.history == adapted.history
    assert same.selector.to_dict() == adapted.selector.to_dict()
    assert same_weights(model, resumed)
    finished, again = run(tmp_path / "cut")  # nothing is left to train
    assert again.epoch == adapted.epoch and same_weights(model, finished)
    folder = tmp_path / "cut" / "choice"
    weights = {int(file.stem.split("-")[1]) for file in folder.glob("epoch-*.npz")}
    assert set(adapted.selector.candidates) <= weights <= {1, 2, 3}
    with pytest.raises(InputError, match=r"different settings: keep: 'selected' is now 'last'"):
        adapt(
            tiny_model(), source_data(), target_examples(), SMALL,
            phase=phase(4), state=tmp_path / "cut", verbose=0,
        )  # fmt: skip


class EndAtOnce(keras.callbacks.Callback):
    """Ends a training after its first batch, as a limit of time does."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


def test_a_training_may_end_before_it_has_seen_every_class():
    images, labels = domain(90, 0)
    few = (labels < 2) | (np.arange(90) < 6)  # two images of the third class
    source = from_arrays((images[few], labels[few]), class_names=NAMES, progress=False)
    adapted = adapt(
        tiny_model(), source, target_examples(), ["coral", "adabn"],
        phase=phase(6), callbacks=[EndAtOnce()], verbose=0,
    )  # fmt: skip
    assert len(adapted.history["loss"]) == 1 and adapted.epoch == 2  # AdaBN is the second


def test_adabn_after_the_training_is_scored_like_an_epoch():
    model = tiny_model()
    adapted = adapt(
        model, source_data(), target_examples(), ["coral", "adabn"], phase=phase(2), verbose=0
    )
    *trained, normalised = adapted.selector.scores
    assert [s.epoch for s in trained] == [1, 2] and adapted.epoch == normalised.epoch == 3
    assert all(s.source_accuracy is not None for s in trained)
    assert normalised.source_accuracy is None  # AdaBN abandons the source: no veto
    assert len(adapted.history["loss"]) == 2
    plain = tiny_model()
    adapt(plain, source_data(), target_examples(), "coral", phase=phase(2), verbose=0)
    for a, b in zip(model.trainable_weights, plain.trainable_weights):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert not same_weights(model, plain)


def test_shot_is_not_vetoed_by_the_source_accuracy_which_is_logged():
    adapted = adapt(
        tiny_model(), source_data(), target_examples(), "shot", phase=phase(2), verbose=0
    )
    assert [s.source_accuracy for s in adapted.selector.scores] == [None, None]
    assert len(adapted.history["val_accuracy"]) == 2
    assert {"class_loss", "val_accuracy"} <= set(adapted.source_history)
    assert not {"class_loss"} & set(adapted.history)


def test_the_callback_alone_measures_the_source_with_its_own_statistics():
    (x, y), (z, labels) = domain(24, 0), domain(24, 1, darker=60)
    model = tiny_model()
    adapter = Adapter(model, SMALL, batch_norm="per_domain")
    adapter.compile(keras.optimizers.SGD(1e-2))
    choice = EpochChoice(
        model, [z], np.bincount(y), source=[(x, y)], target_report=[(z, labels)], verbose=False
    )
    history = adapter.fit(
        [(x[:12], y[:12]), (x[12:], y[12:])], target=[z], epochs=2, callbacks=[choice], verbose=0
    ).history
    of_source = adapter.classifier(adapter.source_encoder(x, training=False), training=False)
    expected = (np.asarray(of_source).argmax(axis=1) == y).mean()
    assert history["val_accuracy"][-1] == choice.selector.scores[-1].source_accuracy == expected
    answers = model.predict(z, verbose=0)
    assert choice.selector.target_accuracy(2) == (answers.argmax(axis=1) == labels).mean()
    p = keras.ops.convert_to_numpy(keras.ops.softmax(answers))
    mean, each = (-(q * np.log(q)).sum(-1) for q in (p.mean(0), p))
    assert choice.selector.scores[-1].information == pytest.approx(mean - each.mean(), abs=1e-5)


def test_invalid_choices():
    model, images = tiny_model(), domain(6, 0)[0]
    with pytest.raises(InputError, match="keep must be one of"):
        EpochChoice(model, [images], [1, 1, 1], keep="best")
    with pytest.raises(InputError, match="must contain images only"):
        EpochChoice(model, [(images, np.arange(6))], [1, 1, 1])
    with pytest.raises(InputError, match=r"\(ema\)"):
        adapt(
            model, source_data(), target_examples(), "coral",
            phase=phase(1, ema=0.9), keep="selected", verbose=0,
        )  # fmt: skip
