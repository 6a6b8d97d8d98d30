"""What Keras's `fit` needs under MultiWorkerMirroredStrategy (keras issue 20585, open since 2024).

Two things of Keras 3.0 to 3.15 fail where several processes train together:

1. `TensorFlowTrainer._maybe_symbolic_build` learns the shapes from a mean over all workers' batches,
   of images and labels too, which are of whole numbers and of unequal length. Here it gets the
   stream's specification, and no batch is read.
2. `reduce_per_replica` takes the mean of each metric over its axis 0, which a scalar does not have.
   Here a step returns metrics of shape [1].

Keras from `MENDED` on is left alone; the first of the two is a matter of speed there.
"""

import keras
import tensorflow as tf
from keras import tree

MENDED = (3, 16)


def needed(version: str = keras.__version__) -> bool:
    """True for the versions of Keras that this module is for."""
    return tuple(int(part) for part in version.split(".")[:2]) < MENDED


def repair(model: keras.Model, specification, *, several: bool = True) -> None:
    """Mends a compiled model; call it in the strategy's scope, before `fit`.

    Args:
        specification: `element_spec` of the stream that it will train on.
        several: there are several processes; of the devices of one, Keras puts metrics together.
    """
    if not needed():
        return
    model._symbolic_build(data_batch=specification)
    model._maybe_symbolic_build = lambda *_, **__: None
    for name in ("train_step", "test_step") if several else ():
        setattr(model, name, _with_axis(getattr(model, name)))


def _with_axis(step):
    def stepped(data):
        return tree.map_structure(lambda value: tf.reshape(value, [1]), step(data))

    return stepped
