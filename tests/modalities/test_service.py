"""The tf.data service: workers in another process make the batches."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import tiny_backbone, write_image

from keras_transfer.data import Examples, Mix, from_directory
from keras_transfer.data import batches as pipeline
from keras_transfer.errors import InputError

WORKERS = """
import sys, tensorflow as tf
service = tf.data.experimental.service
config = service.WorkerConfig(dispatcher_address=sys.argv[1], heartbeat_interval_ms=500)
workers = [service.WorkerServer(config) for _ in range(2)]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def service():
    """A dispatcher here and two workers in another process; gives its address.

    (Of a worker in this process the end may take a minute.)
    """
    import tensorflow as tf

    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target
    with subprocess.Popen(
        [sys.executable, "-c", WORKERS, address.split("://")[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as workers:
        assert workers.stdout.readline() == "ready\n"
        yield address
        workers.kill()


@pytest.fixture
def numbered(tmp_path):
    """Thirty-seven images whose label is their index."""
    for i in range(37):
        write_image(tmp_path / f"{i:02}.png", (6 * i, 100, 100), size=(50, 40), seed=i)
    return Examples(sorted(map(str, tmp_path.iterdir())), np.arange(37, dtype=np.int32))


OPTIONS = dict(image_size=16, batch_size=4)


def assert_like(one, other):
    """Pixels are equal up to the rounding of two ways to resample them, and all else is equal."""
    if one.dtype != "uint8":
        np.testing.assert_array_equal(one, other)
        return
    difference = np.abs(one.numpy().astype(int) - other.numpy())
    assert difference.mean() < 0.7 and difference.max() <= 6


def test_two_workers_give_every_image_once_an_epoch(service, numbered):
    """In the order, and with the augmentation, of one process."""
    epochs, steps = 3, 10
    options = dict(training=True, augmentation="medium", seed=5, **OPTIONS)
    got = list(pipeline.batches(numbered, service=service, **options).take(epochs * steps))
    orders = np.concatenate([np.asarray(labels) for _, labels in got]).reshape(epochs, 37)
    assert (np.sort(orders, axis=1) == np.arange(37)).all()
    assert len({tuple(order) for order in orders}) == epochs
    expected = list(pipeline.batches(numbered, **options).take(epochs * steps))
    for (images, labels), (others, other_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        assert_like(images, others)
    late = pipeline.batches(numbered, service=service, start_epoch=2, **options)
    np.testing.assert_array_equal(next(iter(late))[0], got[2 * steps][0])


@pytest.mark.parametrize("options", [{"mix": Mix("mixup", 1.0)}, {"equal_classes": True}])
def test_mixing_and_balance_are_those_of_one_process(service, numbered, options):
    labels = np.array([0] * 30 + [1] * 7, np.int32)
    examples = Examples(numbered.images, labels)
    weights = np.array([1.0, 3.0], np.float32)
    options = dict(training=True, classes=2, class_weights=weights, **options, **OPTIONS)
    for one, other in zip(
        pipeline.batches(examples, service=service, **options).take(12),
        pipeline.batches(examples, **options).take(12),
        strict=True,
    ):
        for a, b in zip(one, other, strict=True):
            assert_like(a, b)


def test_evaluation_is_in_order_and_ends(service, numbered):
    got = pipeline.batches(numbered, service=service, **OPTIONS)
    assert got.cardinality() == 10
    for one, other in zip(got, pipeline.batches(numbered, **OPTIONS), strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert_like(one[0], other[0])


def test_a_trainer_feeds_from_it(service, colours, tmp_path, monkeypatch):
    """The same run as without it."""
    import keras

    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.training.trainer import Trainer

    data = from_directory(colours, progress=False)
    runs = []
    for address in (None, service):
        keras.utils.set_random_seed(0)
        model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
        trainer = Trainer(
            model, "fine_tune", epochs=2, cache="off", data_service=address, batch_size=8
        )
        runs.append(trainer.fit(data, tmp_path / f"run{address is None}"))
    histories = [[row["loss"] for row in _history(run)] for run in runs]
    assert histories[0] == pytest.approx(histories[1], rel=0.02)


def _history(run):
    import csv

    with (run.path / "history.csv").open() as file:
        return [
            {k: float(v) for k, v in row.items() if k == "loss"} for row in csv.DictReader(file)
        ]


def test_what_it_cannot_do_is_said(numbered):
    from keras_transfer.data.arrays import Arrays

    arrays = Examples(Arrays(np.zeros((4, 8, 8, 3), "uint8")), np.arange(4, dtype="int32"))
    with pytest.raises(InputError, match="reads files"):
        pipeline.batches(arrays, service="grpc://localhost:1", **OPTIONS)
    import albumentations

    compose = albumentations.Compose([albumentations.HorizontalFlip()])
    with pytest.raises(InputError, match="without albumentations"):
        pipeline.batches(
            numbered, service="grpc://localhost:1", training=True, augmentation=compose, **OPTIONS
        )
