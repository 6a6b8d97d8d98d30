"""How long trainings will take on this machine, before they start."""

import time

from keras_transfer.models.acceleration import training_step
from keras_transfer.utils.console import counted, say


def say_estimate(
    backbone: str, image_size: int | str | None, batch_size: int, trainings: int, images: int
) -> float:
    """Print and return the estimated minutes of several trainings, from one timed step.

    Each is counted as if it trained every layer on images; frozen layers and caches make it shorter.

    Args:
        backbone, image_size: see `build_model`.
        batch_size: images per step.
        trainings: their number; each compiles its steps.
        images: that all of them train on, over all epochs.
    """
    start, step = timed_step(backbone, image_size, batch_size)
    seconds = trainings * start + images / batch_size * step
    say(
        f"{counted(trainings, 'training')} on {counted(images, 'image')} in all: at most about {seconds / 60:.1f} min"
    )
    return seconds / 60


def timed_step(backbone: str, image_size: int | str | None, batch_size: int) -> tuple[float, float]:
    """Return (seconds until the first step is over, seconds of a further one), all layers trained."""
    started = time.perf_counter()
    step = training_step(backbone, image_size, batch_size)
    ready = time.perf_counter()
    step()
    return ready - started, time.perf_counter() - ready
