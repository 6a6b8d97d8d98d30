"""The learning-rate range test (Smith, arXiv:1506.01186) on the training data."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.models.builders import compile_arguments, fit_heads, heads_of
from keras_transfer.models.framing import framing_of
from keras_transfer.models.low_rank import merge
from keras_transfer.models.stages import backbone_of
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.plans import make_optimizer, set_trainable
from keras_transfer.training.weights import reseed
from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import write_file
from keras_transfer.utils.global_state import seeded
from keras_transfer.utils.plotting import GREEN, RED

_SMOOTHING = 0.9
_GIVE_UP = 4.0  # times the lowest loss


@dataclass(frozen=True)
class RateTest:
    """Result of the range test.

    Attributes:
        rates: learning rate of each step, increasing [N].
        losses: loss of the batch at that step [N].
        smooth: exponential average of the losses, from which the suggestion is read [N].
        suggestion: a tenth of the rate at which the smoothed loss is lowest: there it still falls
            fast, well before it rises.
    """

    rates: np.ndarray
    losses: np.ndarray
    smooth: np.ndarray
    suggestion: float

    def draw(self, path) -> None:
        """Plot loss against learning rate into a PNG file."""
        from matplotlib.figure import Figure  # pyplot would look for a display

        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, ".", color="#9aa5b1", markersize=4, label="each batch")
        axes.plot(self.rates, self.smooth, color=GREEN, label="smoothed")
        axes.axvline(self.suggestion, color=RED, ls="--", label=f"suggestion {self.suggestion:.2g}")
        low, high = self.smooth.min(), max(self.smooth[0], np.median(self.losses)) * 1.6
        axes.set(
            xscale="log", xlabel="learning rate", ylabel="loss", ylim=(max(0, low * 0.5), high)
        )
        axes.grid(alpha=0.3)
        axes.legend()
        write_file(Path(path), lambda temporary: figure.savefig(temporary, dpi=120))


def find_rate(
    model: keras.Model,
    data,
    *,
    phase: Phase | None = None,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    batch_size: int = 32,
    augment="light",
    seed: int = 0,
    progress: bool = True,
) -> RateTest:
    """Increase the learning rate from step to step until the loss explodes, and suggest one.

    The model is restored: weights, trainable flags, optimizer and all random states.

    Args:
        model: from `build_model`, compiled or not.
        data: a `keras_transfer.data.ImageData`; its training split is used, augmented.
        phase: freezing, optimizer and multipliers; by default everything trains.
        lowest, highest: first and last learning rate, 0 < lowest < highest.
        steps: number of batches, ≥ 10.
        progress: show a progress bar.

    Raises:
        InputError: if the range is invalid, or the loss is not finite even at the lowest rate.
    """
    if not 0 < lowest < highest or steps < 10:
        raise InputError(
            f"find_rate: invalid range {lowest} to {highest} in {steps} steps: it needs 0 < lowest < "
            "highest and 10 steps or more."
        )
    phase = phase or Phase("range test", "none", steps=steps)
    with _untouched(model, seed):
        # Another model on the same layers, because the given one has an optimizer.
        probe = keras.Model(model.inputs, model.output, name=model.name)
        set_trainable(probe, phase, (seed, 0))
        optimizer = make_optimizer(probe, phase, steps)
        plain = getattr(optimizer, "inner_optimizer", optimizer)
        plain.learning_rate = keras.optimizers.schedules.ExponentialDecay(
            lowest, decay_steps=steps - 1, decay_rate=highest / lowest
        )
        fit_heads(model, data.examples["train"].labels)
        arguments = {**compile_arguments(heads_of(model)), "metrics": None}
        probe.compile(optimizer=optimizer, **arguments, jit_compile=jit_compile())
        reseed(model, seed, 0)
        stream = data.batches(
            "train",
            image_size=framing_of(model, data=data),
            batch_size=batch_size,
            training=True,
            augment=augment,
            seed=seed,
        )
        losses = _losses(probe, stream, steps, progress)
    if len(losses) < 2:
        raise InputError(
            f"find_rate: the loss is not finite even at a learning rate of {lowest:g}: lower `lowest`, "
            "or check the data."
        )
    rates = lowest * (highest / lowest) ** (np.arange(len(losses)) / (steps - 1))
    smooth = _smoothed(losses)
    # The average of the first steps is too noisy.
    settled = min(len(smooth) - 1, steps // 20)
    least = settled + int(np.argmin(smooth[settled:]))
    return RateTest(rates, np.array(losses), smooth, float(rates[least] / 10))


def _losses(probe, stream, steps, progress):
    losses = []
    bar = progress_bar(label="range test", total=steps, unit="batches", visible=progress)
    for images, labels in stream:
        probe.reset_metrics()  # otherwise Keras reports the mean over all batches
        loss = float(probe.train_on_batch(images, labels, return_dict=True)["loss"])
        if not np.isfinite(loss):
            break
        losses.append(loss)
        bar.update()
        smooth = _smoothed(losses)
        if len(losses) == steps or (len(losses) > 10 and smooth[-1] > _GIVE_UP * smooth.min()):
            break
    bar.close()
    return losses


def _smoothed(losses):
    average, smooth = 0.0, []
    for i, loss in enumerate(losses):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth.append(average / (1 - _SMOOTHING ** (i + 1)))
    return np.array(smooth)


@contextmanager
def _untouched(model, seed):
    """Seed everything; restore all values, flags and random states at the end."""
    merge(model)
    backbone = backbone_of(model)
    # Containers first, because setting their flag sets that of their layers.
    layers = [model, backbone, *model.layers, *backbone.layers]
    flags = [layer.trainable for layer in layers]
    variables = model.variables
    moving = [variable.trainable for variable in variables]
    values = [keras.ops.convert_to_numpy(v).copy() for v in variables]
    heads = heads_of(model)
    try:
        with seeded(seed):
            yield
    finally:
        merge(model)
        for layer, flag in zip(layers, flags):
            layer.trainable = flag
        for variable, value, moves in zip(variables, values, moving):
            variable.assign(value)
            variable.trainable = moves
        for name, head in heads.items():
            model.get_layer(name).head = head
