"""Who computes which examples: pure arithmetic, of which all that is said of exactly-once follows.

All processes know the order of an epoch (a function of seed and epoch) and cut it into the same global
batches. Each device takes an equal piece of each of them. A batch that does not divide, as the last one
of an epoch, is filled up with examples of its own that weigh nothing; the others weigh as much more, so
that the mean over the pieces' means is the mean over the batch.

Filled up rather than uneven, because XLA wants equal shapes on all devices, and because a device
without any example would have no BatchNorm statistics; with examples rather than zeros for the same
reason.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """What one process computes of a sequence of examples.

    Attributes:
        places: int64 [K]: positions in the sequence, in the order of computing.
        weights: float32 [K]: 0 for what fills up a batch, see `Share.part`.
        sizes: int64 [G]: lengths of the batches that `places` falls into.
    """

    places: np.ndarray
    weights: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Share:
    """The devices of one process among all of them.

    Attributes:
        replicas: number of all devices.
        first: number of this process's first one.
        local: how many it has.
        joined: a global batch comes to the process as one batch (JAX divides it), not as one for
            each device (`tf.distribute`).
    """

    replicas: int
    first: int
    local: int
    joined: bool = False

    def part(self, count: int, batch_size: int, *, evaluating: bool = False) -> Part:
        """What this process computes of `count` examples in global batches of `batch_size`.

        Args:
            evaluating: all real examples weigh the same, so that the mean over an epoch is exact;
                otherwise those of one batch do, so that the mean over each batch is.
        """
        full, rest = divmod(count, batch_size)
        batches = [(batch_size, np.arange(full) * batch_size)]
        if rest:
            batches.append((rest, np.array([full * batch_size])))
        batches = [(size, starts) for size, starts in batches if len(starts)]
        filled = self.replicas * sum(-(-size // self.replicas) * len(s) for size, s in batches)
        places, weights, sizes = [], [], []
        for size, starts in batches:
            each = -(-size // self.replicas)
            rows = np.arange(self.first * each, (self.first + self.local) * each)
            weight = filled / count if evaluating else each * self.replicas / size
            places.append((starts[:, None] + rows % size).ravel())
            weights.append(np.tile(np.where(rows < size, weight, 0.0), len(starts)))
            pieces = [each * self.local] if self.joined else [each] * self.local
            sizes.append(np.tile(pieces, len(starts)))
        return Part(
            np.concatenate(places).astype("int64"),
            np.concatenate(weights).astype("float32"),
            np.concatenate(sizes).astype("int64"),
        )


def whole(count: int, batch_size: int) -> Part:
    """What a single process computes: everything."""
    return Share(1, 0, 1).part(count, batch_size)


def own(count: int, processes: int, index: int) -> np.ndarray:
    """Positions int64 [≤ ⌈count / processes⌉] of what a process computes where nothing is batched."""
    return np.arange(index, count, processes)
