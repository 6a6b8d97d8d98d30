"""The streams of several processes, made one after the other in this one."""

import types

import numpy as np
import pytest

from keras_transfer.data.arrays import Arrays
from keras_transfer.data.batches import batches
from keras_transfer.data.examples import Examples
from keras_transfer.data.order import Share
from keras_transfer.features.extraction import evaluation_batches as feature_batches
from keras_transfer.features.extraction import training_batches
from keras_transfer.modalities.image.augment import Mix

COUNT, BATCH, STEPS = 17, 6, 3
OPTIONS = dict(image_size=8, batch_size=BATCH, training=True, seed=3)


@pytest.fixture(scope="module")
def examples():
    """Each labelled with its own number."""
    pixels = np.random.default_rng(0).integers(0, 255, (COUNT, 8, 8, 3)).astype("uint8")
    return Examples(Arrays(pixels), np.arange(COUNT, dtype="int32"))


def epoch(stream, steps=STEPS):
    """[images, labels(, weights)] of each batch of one epoch."""
    return [[part.numpy() for part in batch] for batch in stream.take(steps)]


def weighing(batches):
    return np.concatenate([labels[weights > 0] for _, labels, weights in batches])


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_all_workers_see_each_image_once_in_the_variant_of_one_process(examples, processes):
    alone = epoch(batches(examples, **OPTIONS))
    expected = {i: x for images, ids in alone for i, x in zip(ids, images)}
    seen = []
    for index in range(processes):
        share = Share(processes, index, 1)
        mine = epoch(batches(examples, **OPTIONS, share=share))
        seen.extend(weighing(mine))
        for step, (images, ids, _) in enumerate(mine):
            assert set(ids) <= set(alone[step][1])  # of the same global batch
            for i, image in zip(ids, images):
                np.testing.assert_array_equal(image, expected[i])
    assert sorted(seen) == list(range(COUNT))


def test_a_later_epoch_begins_where_one_process_would(examples):
    share = Share(2, 1, 1)
    both = list(batches(examples, **OPTIONS, share=share).take(2 * STEPS))
    late = list(batches(examples, **OPTIONS, share=share, start_epoch=1).take(STEPS))
    for one, other in zip(both[STEPS:], late, strict=True):
        for first, second in zip(one, other):
            np.testing.assert_array_equal(first, second)


def test_evaluation_is_endless_and_complete(examples):
    for local, joined in ((1, False), (2, False), (2, True)):
        seen = []
        for index in range(2):
            share = Share(2 * local, index * local, local, joined)
            stream = batches(examples, image_size=8, batch_size=BATCH, share=share)
            steps = STEPS if joined else STEPS * local
            first, second = epoch(stream, steps), epoch(stream.skip(steps), steps)
            seen.extend(weighing(first))
            for one, other in zip(first, second):
                np.testing.assert_array_equal(one[1], other[1])
        assert sorted(seen) == list(range(COUNT))


def test_equal_classes_and_weights_of_classes(examples):
    weights = np.linspace(1, 2, COUNT).astype("float32")
    (batch,) = epoch(batches(examples, **OPTIONS, share=Share(2, 0, 1), class_weights=weights), 1)
    np.testing.assert_allclose(batch[2], weights[batch[1]])
    drawn = [
        weighing(epoch(batches(examples, **OPTIONS, share=Share(2, i, 1), equal_classes=True)))
        for i in range(2)
    ]
    assert sorted(np.concatenate(drawn)) == list(range(COUNT))  # a class each


def test_mixing_keeps_the_weights(examples):
    share = Share(4, 3, 1)
    made = epoch(batches(examples, **OPTIONS, share=share, mix=Mix("mixup"), classes=COUNT))
    for images, shares, weights in made:
        assert len(images) == len(shares) == len(weights)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    assert made[0][2].tolist() == [0, 0]  # 6 on 4 devices: 2, 2, 2, and none


class Rows:
    """Activations [1] of each example: its number, and a half more in the second view."""

    views = 2
    tables = (types.SimpleNamespace(shards=[np.zeros((COUNT, 1), "float32")]),)

    def gather(self, rows, views):
        return (np.asarray(rows) + 0.5 * np.asarray(views)).astype("float32")[:, None]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_features_come_as_to_one_process(processes):
    labels = np.arange(COUNT, dtype="int32")
    options = dict(batch_size=BATCH, seed=3)
    alone = epoch(training_batches(Rows(), labels, **options))
    expected = {i: x for values, ids in alone for i, x in zip(ids, values)}
    trained, evaluated = [], []
    for index in range(processes):
        share = Share(processes, index, 1)
        mine = epoch(training_batches(Rows(), labels, **options, share=share))
        trained.extend(weighing(mine))
        for values, ids, _ in mine:
            for i, value in zip(ids, values):
                assert value == expected[i]
        stream = feature_batches(Rows(), labels, batch_size=BATCH, share=share)
        evaluated.extend(weighing(epoch(stream)))
    assert sorted(trained) == sorted(evaluated) == list(range(COUNT))
