"""What a step costs on many workers, on paper: bytes, times, efficiency (no Keras, no TensorFlow).

Each step sums the gradients of what trains over all workers. A ring (arXiv:1802.05799) sends each
byte almost twice over each link, in 2 (n − 1) messages one after the other; a tree sends it twice in
2 log₂ n. Libraries take the quicker one, and so does this.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """Between two workers.

    Attributes:
        bandwidth: bytes a second, in each direction.
        latency: seconds for a message without content.
    """

    bandwidth: float
    latency: float


def ring_seconds(size: float, workers: int, link: Link) -> float:
    """Time to sum `size` bytes over workers in a ring."""
    if workers == 1:
        return 0.0
    share = (workers - 1) / workers
    return 2 * share * size / link.bandwidth + 2 * (workers - 1) * link.latency


def tree_seconds(size: float, workers: int, link: Link) -> float:
    """The same up and down a (pipelined) tree."""
    if workers == 1:
        return 0.0
    return 2 * size / link.bandwidth + 2 * math.ceil(math.log2(workers)) * link.latency


def all_reduce_seconds(size: float, workers: int, link: Link) -> float:
    """The quicker of the two."""
    return min(ring_seconds(size, workers, link), tree_seconds(size, workers, link))


@dataclass(frozen=True)
class Step:
    """A training step on one worker.

    Attributes:
        trained: parameters whose gradients are summed.
        forward: multiplications of an image's forward pass through what is frozen.
        trained_forward: through what trains; the way back costs twice as many.
        batch_size: images a worker.
    """

    trained: int
    forward: float
    trained_forward: float
    batch_size: int

    @property
    def bytes(self) -> int:
        """Of gradients, which are float32 under mixed precision too."""
        return 4 * self.trained

    def seconds(self, speed: float, cached: bool = False) -> float:
        """Of computing, at `speed` multiplications with addition a second.

        Args:
            cached: what is frozen was computed before the training.
        """
        frozen = 0.0 if cached else self.forward
        return self.batch_size * (frozen + 3 * self.trained_forward) / speed

    def efficiency(self, workers: int, link: Link, speed: float, overlap: float = 0.0) -> float:
        """Images a second of many workers over those of as many single ones, 0 to 1.

        Args:
            overlap: share of the way back (two thirds of what trains) in which gradients that are
                ready are sent meanwhile, 0 to 1.
        """
        computing = self.seconds(speed)
        hidden = overlap * self.batch_size * 2 * self.trained_forward / speed
        waiting = max(0.0, all_reduce_seconds(self.bytes, workers, link) - hidden)
        return computing / (computing + waiting)


def steps_of(sizes: list[int], costs: list[float], head: int, batch_size: int) -> list[Step]:
    """The step with 0, 1, … all stages frozen.

    Args:
        sizes: parameters that train of each stage, from the image upwards.
        costs: multiplications of each, see `features.prefix.stage_costs`.
        head: parameters of the head.
    """
    return [
        Step(sum(sizes[k:]) + head, sum(costs[:k]), sum(costs[k:]), batch_size)
        for k in range(len(sizes) + 1)
    ]
