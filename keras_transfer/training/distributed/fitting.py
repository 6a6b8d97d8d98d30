"""What a phase of the trainer does otherwise where several devices train together."""

import contextlib

import keras

from keras_transfer.errors import InputError
from keras_transfer.models.stages import norms_of
from keras_transfer.schedules.phases import Schedule
from keras_transfer.training.distributed.workers import Workers


def check(workers: Workers, model: keras.Model, schedule: Schedule) -> None:
    """Raises InputError for what does not work on these workers, before anything is trained."""
    if workers.kind == "jax":
        _check_jax(workers, model)
        return
    if getattr(model, "_distribute_strategy", None) is not workers.strategy:
        raise InputError(
            "The model was not made for these workers: build it inside `with workers.scope():`."
        )
    if model.dtype_policy.name == "mixed_float16":
        raise InputError(
            f"distribute '{workers.kind}' does not work with mixed_float16, whose loss scaling Keras "
            "does in a branch that tf.distribute forbids: use mixed_bfloat16 or float32, or JAX."
        )
    for phase in schedule.phases:
        if phase.accumulate > 1:
            raise InputError(
                f"Phase '{phase.name}': accumulate does not work with distribute '{workers.kind}' "
                "(Keras updates in a branch, which tf.distribute forbids): with more devices the "
                "batch is larger anyway; or use JAX."
            )


def _check_jax(workers, model):
    mesh = {device.id for device in model.weights[0].value.sharding.device_set}
    if len(mesh) != workers.replicas:
        raise InputError(
            "The model was not made for these workers: call start_workers before it is built."
        )


def weighted(arguments: dict) -> dict:
    """`compile_arguments` whose metrics leave out what fills up a batch."""
    arguments = dict(arguments)
    arguments["weighted_metrics"] = arguments.pop("metrics")
    return arguments


@contextlib.contextmanager
def synchronised(workers: Workers, model: keras.Model):
    """Within it, lets BatchNorm that trains see the whole batch rather than a device's share.

    Without it the moving averages of the workers would drift apart. JAX sees the whole batch anyway.
    """
    if workers.kind == "jax":
        yield
        return
    norms = norms_of(model)
    before = [norm.synchronized for norm in norms]
    try:
        for norm in norms:
            norm.synchronized = True
        yield
    finally:  # it would be saved with the model, and not every backend opens that
        for norm, value in zip(norms, before):
            norm.synchronized = value


class Beats(keras.callbacks.Callback):
    """Tells the watch that steps are being finished."""

    def __init__(self, workers: Workers):
        super().__init__()
        self.beat = workers.watch.beat

    def on_train_batch_end(self, batch, logs=None):
        self.beat()

    def on_test_batch_end(self, batch, logs=None):
        self.beat()
