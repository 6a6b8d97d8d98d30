"""The phases of one training, each run on its own: a head in closed form, or one compile and `fit`."""

import time
from functools import partial

import numpy as np

from keras_transfer.data.balance import class_weights
from keras_transfer.evaluation.measures import predict_batches
from keras_transfer.models.acceleration import jit_compile, training_model
from keras_transfer.models.builders import by_head, compile_arguments
from keras_transfer.models.stages import freeze, quick_statistics
from keras_transfer.schedules.plans import anchor_at, make_optimizer
from keras_transfer.training.checkpoint import assign
from keras_transfer.training.phase_inputs import (
    batches_of,
    set_dropout,
    smoothed_heads,
    steps_per_execution,
    validated_epochs,
    watchers,
)
from keras_transfer.training.progress import Progress, SwapAverages
from keras_transfer.utils.console import say

_MEASURED = 1024  # activations in one batch


class PhaseFitting:
    """Runs the phases of a training.

    Args:
        trainer: the `training.Trainer` whose model and settings they are.
        data: its images.
        progress: what is kept of the run.
        anchors: id of a weight → its value before the first phase, for L2-SP.
        memory: gives the `data.memory.ImageMemory` for images that come again.
        callbacks: of the user's.

    Attributes:
        validated: (the last phase, a function that gives the labels and outputs of what it was
            validated with); None before any.
    """

    def __init__(self, trainer, data, progress: Progress, *, anchors, memory, callbacks):
        self.trainer, self.data, self.progress = trainer, data, progress
        self.model, self.workers = trainer.model, trainer.workers
        self.anchors, self.memory, self.callbacks = anchors, memory, callbacks
        self.validated: tuple | None = None

    def solve(self, planned, features) -> None:
        """The heads in closed form, as an epoch of their own."""
        started = time.perf_counter()
        frozen = freeze(self.model, "all")
        self.progress.start_phase(planned, frozen, [])
        self._solve_heads(planned.phase, features["train"])
        own = self.workers.own_model(self.model)
        logs: dict[str, float] = {}
        with self.workers.alone():
            model = training_model(
                own, planned.frozen, image_size=planned.image_size, from_cut=True
            )
            # Eagerly: it is one pass, and a graph takes longer to make.
            model.compile(**compile_arguments(self.trainer.heads), run_eagerly=True)
            for split, prefix in (("train", ""), ("val", "val_")):
                if split in features:
                    labels = self.data.examples[split].labels
                    stream = _measured_on(features[split], labels, model)
                    found = model.evaluate(stream, return_dict=True, verbose=0)
                    logs |= {prefix + name: value for name, value in found.items()}
                    self.validated = planned, partial(predict_batches, model, stream)
        self.progress.record(logs, {"learning_rate": ""}, time.perf_counter() - started)

    def _solve_heads(self, phase, train):
        from keras_transfer.features.closed_form import solve  # imports scikit-learn

        heads = self.trainer.heads
        rows = np.arange(len(self.data.examples["train"]))
        activations = np.concatenate(
            [train.gather(rows, view) for view in range(train.views)]
        ).astype("float32")
        labels = by_head(heads, self.data.examples["train"].labels)
        weights = phase.class_weights or ("balanced" if self.trainer.balance != "none" else None)
        for name, head in heads.items():

            def solved(name=name, head=head):
                found = solve(
                    head.task,
                    activations,
                    np.concatenate([head.from_units(labels[name])] * train.views),
                    np.tile(rows, train.views),
                    class_weights=weights and class_weights(weights, head.names, labels[name]),
                    seed=self.trainer.seed,
                )
                say(f"head: {found}" if self.trainer.head else f"head {name}: {found}")
                return {"kernel": found.kernel, "bias": found.bias}

            layer, solved = self.model.get_layer(name), self.workers.arrays_from_chief(solved)
            layer.kernel.assign(solved["kernel"])
            layer.bias.assign(solved["bias"])

    def fit(self, planned, features, arrays) -> None:
        """One compile and `fit`.

        Args:
            features: split → its activations; empty where the phase begins at images.
            arrays: the state to go on from, where there is one.
        """
        with self.workers.scope():
            model, watched, averages = self._compiled(planned, features, arrays)
        # Outside: what a stream's own layers draw with is this process's, not the devices'.
        streams = self._streams(model, planned, features)
        with self.workers.scope():
            self._fit(model, planned, streams, watched, averages, each=bool(watched or features))

    def _compiled(self, planned, features, arrays):
        """(the model that `fit` runs, callbacks that may end the phase, those that average)."""
        phase, progress = planned.phase, self.progress
        frozen = freeze(self.model, phase.freeze, batch_norm=phase.batch_norm)
        model = training_model(
            self.model,
            planned.frozen,
            image_size=planned.image_size,
            from_cut=bool(features),
            fold=phase.batch_norm == "frozen",
        )
        set_dropout(self.trainer, phase)
        optimizer = make_optimizer(self.model, phase, planned.steps, model.trainable_variables)
        measures = compile_arguments(smoothed_heads(self.trainer, phase))
        model.compile(
            optimizer=optimizer,
            **self.workers.loss_arguments(measures),
            jit_compile=jit_compile(),
            steps_per_execution=steps_per_execution(self.trainer, planned, bool(features)),
        )
        optimizer.build(model.trainable_variables)
        anchor_at(optimizer, self.anchors)
        resumed = arrays is not None and progress.phase_epoch > 0
        if resumed:  # otherwise the optimizer in there was another phase's
            assign(optimizer.variables, arrays, "optimizer")
        watched = watchers(phase, "val" in self.data.examples)
        averages = [SwapAverages()] if phase.ema else []
        if resumed and averages:
            averages[0].resume()
        progress.start_phase(planned, frozen, watched)
        # An epoch on activations may be shorter than the writing of its state.
        progress.save_seconds = 1.0 if features else 0.0
        return model, watched, averages

    def _streams(self, model, planned, features):
        """(training stream, validation stream or None)."""
        data, progress = self.data, self.progress
        stream_of = partial(batches_of, self.trainer, data, memory=self.memory)
        dtype = model.inputs[0].dtype
        stream = stream_of("train", planned, features, dtype, start_epoch=progress.epoch)
        if "val" not in data.examples:
            return stream, None
        validation = stream_of("val", planned, features, dtype)
        self.validated = planned, partial(predict_batches, model, validation)
        return stream, validation

    def _fit(self, model, planned, streams, watched, averages, *, each):
        data, progress = self.data, self.progress
        stream, validation = streams
        first = progress.epoch - progress.phase_epoch
        steps = None if validation is None else data.steps("val", planned.batch_size)
        with quick_statistics(self.model):
            self.workers.fit(
                model,
                self.model,
                stream,
                validation,
                steps,
                steps_per_epoch=planned.steps_per_epoch,
                initial_epoch=progress.epoch,
                epochs=first + planned.epochs,
                validation_freq=validated_epochs(self.trainer, planned, data, first + 1, each=each),
                callbacks=[*watched, *averages, progress, *self.callbacks],
                shuffle=False,  # the stream is shuffled already
                verbose=0,
            )


def _measured_on(activations, labels, model):
    from keras_transfer.features.extraction import evaluation_batches

    dtype = model.inputs[0].dtype
    return evaluation_batches(activations, labels, batch_size=_MEASURED, dtype=dtype)
