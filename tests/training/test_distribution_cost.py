"""The cost model, by hand."""

import pytest

from keras_transfer.training.distributed.cost import (
    Link,
    Step,
    all_reduce_seconds,
    ring_seconds,
    steps_of,
    tree_seconds,
)

LINK = Link(bandwidth=1e9, latency=1e-3)


def test_a_ring_by_hand():
    # 100 MB over 4: each sends 3/4 of it twice, in 6 messages.
    assert ring_seconds(100e6, 4, LINK) == pytest.approx(0.150 + 0.006)
    assert ring_seconds(100e6, 1, LINK) == 0


def test_a_tree_by_hand():
    assert tree_seconds(100e6, 8, LINK) == pytest.approx(0.200 + 0.006)
    assert tree_seconds(100e6, 5, LINK) == pytest.approx(0.200 + 0.006)


def test_the_quicker_one_is_taken():
    assert all_reduce_seconds(100e6, 4, LINK) == ring_seconds(100e6, 4, LINK)
    assert all_reduce_seconds(1e3, 1024, LINK) == tree_seconds(1e3, 1024, LINK)


def test_a_step_by_hand():
    # 1e6 multiplications frozen, 2e6 trained: (1 + 3·2) e6 · 10 images at 1e9 a second.
    step = Step(trained=250_000, forward=1e6, trained_forward=2e6, batch_size=10)
    assert step.bytes == 1_000_000
    assert step.seconds(1e9) == pytest.approx(0.07)
    assert step.seconds(1e9, cached=True) == pytest.approx(0.06)
    waiting = 0.001 + 0.002  # 1 MB over two: half of it twice, two messages
    assert step.efficiency(2, LINK, 1e9) == pytest.approx(0.07 / (0.07 + waiting))
    assert step.efficiency(1, LINK, 1e9) == 1
    # The way back, 0.04 s, hides all of it.
    assert step.efficiency(2, LINK, 1e9, overlap=1.0) == 1


def test_freezing_shrinks_what_is_sent():
    steps = steps_of([10, 20, 30], [1.0, 2.0, 3.0], head=5, batch_size=1)
    assert [step.trained for step in steps] == [65, 55, 35, 5]
    assert [step.forward for step in steps] == [0, 1, 3, 6]
    assert [step.trained_forward for step in steps] == [6, 5, 3, 0]


def test_more_workers_are_never_more_efficient():
    step = Step(trained=25_000_000, forward=0, trained_forward=4e9, batch_size=32)
    link = Link(1.25e9, 20e-6)
    found = [step.efficiency(n, link, 30e12) for n in (1, 2, 4, 16, 64, 1024)]
    assert found == sorted(found, reverse=True)
