"""What training itself brings: the message, what is kept, and the way on."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours, write_image

from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import from_directory
from keras_transfer.errors import Diverged, InputError, Interrupted
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer
from keras_transfer.utils.checkpoint import Checkpoint

NAMES = ("blue", "green", "red")
HEAD = Phase("head", "all", 2, 1e-2)


def new_model(backbone=tiny_backbone):
    keras.utils.set_random_seed(0)
    return build_model(backbone(), Classification(NAMES), image_size=32)


TWO = Schedule("s", (HEAD, Phase("all", "none", 2, 1e-3)))


def two_phases(data, out, **options):
    """Of a network whose optimizer is larger than all else in a checkpoint."""
    return Trainer(new_model(small_backbone), TWO, batch_size=8).fit(data, out, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(data, weights at the end of `two_phases`)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    data = from_directory(write_colours(folder / "colours"), progress=False)
    return data, two_phases(data, folder / "run").model.get_weights()


@pytest.mark.parametrize("shape", ["cosine", "plateau"])
def test_a_rate_that_is_too_high_ends_with_the_last_good_model(colours, tmp_path, shape):
    wild = Phase("wild", "none", 3, 1e18, optimizer="sgd", shape=shape, warmup=0.0)
    trainer = Trainer(new_model(), Schedule("s", (HEAD, wild)), batch_size=8)
    with pytest.raises(
        Diverged, match=r"phase 'wild', epoch 3, step \d.*rate of \d.*e\+1.*Try a tenth"
    ) as error:
        trainer.fit(from_directory(colours), tmp_path / "run")
    assert "the model of epoch 2 is saved" in str(error.value) or "epoch 1" in str(error.value)
    run = Run.open(tmp_path / "run")
    assert run.metrics["best_epoch"] in (1, 2)
    assert run.metrics["stopped"] == str(error.value)
    assert all(np.isfinite(w.numpy()).all() for w in run.model.weights)


def test_divergence_in_the_first_epoch_keeps_nothing_and_says_so(colours, tmp_path):
    wild = Phase("wild", "none", 3, 1e18, optimizer="sgd", warmup=0.0)
    with pytest.raises(Diverged, match="no model is saved"):
        Trainer(new_model(), Schedule("s", (wild,)), batch_size=8).fit(
            from_directory(colours), tmp_path / "run"
        )
    assert not (tmp_path / "run" / "model.keras").exists()


@keras.saving.register_keras_serializable("test_failures")
class Hungry(keras.layers.Layer):
    """Wants 4 TiB for each image of a batch of more than four."""

    def call(self, x):
        import tensorflow as tf

        huge = tf.cond(
            tf.shape(x)[0] > 4,
            lambda: tf.reduce_sum(tf.random.uniform([tf.shape(x, out_type=tf.int64)[0], 2**40])),
            lambda: 0.0,
        )
        return x + huge


def test_out_of_memory_says_which_batch_size_to_try(colours, tmp_path):
    backbone = tiny_backbone()
    head = Classification(NAMES)
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, head.connect(Hungry()(backbone(inputs))))
    with pytest.raises(
        InputError,
        match=r"Out of memory in phase 'head' with batches of 8 at 32 px: try a batch size of 4",
    ) as error:
        Trainer(model, Schedule("s", (HEAD,)), batch_size=8).fit(
            from_directory(colours), tmp_path / "run"
        )
    assert "accumulate=2" in str(error.value)
    keras.utils.set_random_seed(0)
    Trainer(model, Schedule("s", (HEAD,)), batch_size=4).fit(
        from_directory(colours), tmp_path / "half"
    )


def test_a_full_disk_loses_nothing(undisturbed, tmp_path):
    """A limit on the size of files stands in for the full disk: the write fails half way."""
    data, weights = undisturbed

    class FillDisk(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:  # the optimizer of all layers no longer fits
                resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fit = keras.Model.fit
    keras.Model.fit = lambda self, *a, callbacks, **k: fit(
        self, *a, callbacks=[*callbacks, FillDisk()], **k
    )
    try:
        with pytest.raises(
            InputError, match=r"Could not write.*free some disk space and continue with --resume"
        ):
            two_phases(data, tmp_path / "run")
    finally:
        keras.Model.fit = fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "run" / "state").glob(".*"))
    resumed = two_phases(data, tmp_path / "run", resume=True)
    for a, b in zip(weights, resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# SIGTERM ends the two trainings below too.
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.large)]
)
def test_a_signal_within_a_checkpoint_waits_for_its_end(undisturbed, tmp_path, monkeypatch, number):
    data, weights = undisturbed
    save = Checkpoint.save

    def interrupted(self, state, *args):
        if state["epoch"] == 3:
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        save(self, state, *args)

    before = signal.getsignal(number)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match="3 finished epochs saved"),
    ):
        patch.setattr(Checkpoint, "save", interrupted)
        two_phases(data, tmp_path / "run")
    assert signal.getsignal(number) is before
    resumed = two_phases(data, tmp_path / "run", resume=True)
    for a, b in zip(weights, resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_fails_because_of_a_signal_is_an_interruption(colours, tmp_path):
    """On JAX Keras fails with a TypeError where it clears up after a step that was cut short."""

    class CutShort(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except KeyboardInterrupt:
                raise TypeError("'NoneType' object is not callable") from None

    trainer = Trainer(new_model(), Schedule("s", (HEAD,)), batch_size=8)
    with pytest.raises(Interrupted, match="interrupted in epoch 1"):
        trainer.fit(
            from_directory(colours, progress=False), tmp_path / "run", callbacks=[CutShort()]
        )


def test_the_command_ends_with_130_and_goes_on(tmp_path):
    for name, colour in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        for i in range(10):
            write_image(tmp_path / "data" / name / f"{i}.png", colour, seed=i)
    new_model().save(tmp_path / "source.keras")
    command = [sys.executable, "-m", "keras_transfer.cli", "train", tmp_path / "data"]
    command += ["--out", tmp_path / "run", "--backbone", tmp_path / "source.keras"]
    command += ["--strategy", "fine_tune", "--epochs", "4000", "--batch-size", "4"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "run" / "history.csv").exists():
                said = (tmp_path / "log").read_text()
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 130
        finally:
            process.kill()
    said = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert re.search(r"\d finished epochs? saved in ", said) and "--resume" in said
    assert Checkpoint(tmp_path / "run" / "state").load()[0]["epoch"] >= 1
