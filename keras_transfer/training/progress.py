"""What is kept of a run in hand: epoch by epoch, so that a killed run loses at most one.

All that training depends on is either a pure function of (phase, seed, epoch) — what trains, the
rate, order, augmentation, dropout — or in the state that is written after each epoch: weights,
the optimizer's variables, and the memory of early stopping and of the plateau.
"""

import time

import keras
import numpy as np
from keras.src.random.seed_generator import global_seed_generator  # no public name

from keras_transfer.models.builders import heads_of
from keras_transfer.models.stages import Frozen
from keras_transfer.runs import Run
from keras_transfer.schedules.plans import PlannedPhase
from keras_transfer.training.checkpoint import Checkpoint, assign, collect
from keras_transfer.training.failures import Diverged, Signals
from keras_transfer.utils.console import progress_bar, say


class SwapAverages(keras.callbacks.SwapEMAWeights):
    """Validates and keeps the averaged weights; trains on with the plain ones.

    Of Keras's callback two things are mended (3.15): on TensorFlow it swaps by additions, which
    round; and where `stop_training` ends `fit` early, it leaves the plain weights in the model.
    """

    def __init__(self):
        super().__init__(swap_on_epoch=True)

    def _tf_swap_variables(self, optimizer):
        self._backend_swap_variables(optimizer)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.model.stop_training:
            self._finalize_ema_values()

    def resume(self):
        """Says that the model was restored as it was after `on_epoch_end`."""
        self._ema_weights_in_model = True


class Progress(keras.callbacks.Callback):
    """After each epoch: history, best weights, state for resuming, and a line for the reader.

    Args:
        run: where history and model are written.
        checkpoint: where the state is written.
        model: whose variables are kept (`fit` may run a duplicate of it on the same weights).
        seed: of dropout and stochastic depth.
        keep: `"best"` or `"last"` epoch.
        signals: deferred while a state is written.
    """

    def __init__(
        self,
        run: Run,
        checkpoint: Checkpoint,
        model: keras.Model,
        seed: int,
        keep: str,
        signals: Signals,
    ):
        super().__init__()
        self.checkpoint = checkpoint
        self.run, self.kept, self.seed, self.keep = run, model, seed, keep
        self.signals = signals
        heads = list(heads_of(model).values())
        self.ranked_by = heads[0].ranked_by if len(heads) == 1 else None
        self.mark = time.perf_counter()  # up to here the phases' wall_seconds are counted
        self.phase = 0  # index of the phase in hand
        self.phase_epoch = 0  # its epochs that are done
        self.epoch = 0  # all epochs that are done
        self.rows: list[dict] = []
        self.phases: list[dict] = []
        self.best: dict = {}
        self.memory: dict[str, dict] = {}
        self.engines: dict = {}  # phase → what computed its activations
        self.watched: list[keras.callbacks.Callback] = []  # callbacks with a memory
        self.save_seconds = 0.0  # the state is written when so much time has gone since
        self.validates = False  # an epoch without a validation is not judged
        self.told = None  # a function of an epoch's row
        self.lane = 0  # which of several processes that draw masks of their own this is
        self._saved = 0.0
        self._unsaved_best: dict[str, np.ndarray] | None = None

    # -- state ------------------------------------------------------------------------------------

    _PLAIN = ("phase", "phase_epoch", "epoch", "rows", "phases", "best", "memory", "engines")
    _MEMORY = ("best", "wait", "cooldown_counter", "best_epoch")

    def load(self) -> dict[str, np.ndarray] | None:
        """Takes up the last state; returns its arrays, None where no epoch was finished."""
        loaded = self.checkpoint.load()
        if loaded is None:
            return None
        state, arrays = loaded
        for name in self._PLAIN:
            setattr(self, name, state[name])
        assign(self.kept.variables, arrays, "model")
        return arrays

    def _save(self, best: bool):
        weights = collect(self.kept.variables, "model")
        if best:
            self._unsaved_best = weights
        # Within a phase, of epochs that take a moment, not each is written.
        if self.phase_epoch and time.perf_counter() - self._saved < self.save_seconds:
            return
        state = {name: getattr(self, name) for name in self._PLAIN}
        optimizer = {}
        if self.planned.phase.solver == "gradient":
            optimizer = collect(self.model.optimizer.variables, "optimizer")
        with self.signals.protected():
            self.run.write_history(self.rows)
            self.checkpoint.save(state, {**weights, **optimizer}, self._unsaved_best)
        self._saved, self._unsaved_best = time.perf_counter(), None

    def load_best(self):
        """Puts the weights of the kept epoch into the model."""
        best = self.checkpoint.load_arrays(f"best-{self.best['epoch']}")
        assign(self.kept.variables, best, "model")

    # -- a phase ----------------------------------------------------------------------------------

    def start_phase(self, planned: PlannedPhase, frozen: Frozen, watched):
        """`watched`: callbacks of this phase whose memory is kept."""
        self.planned, self.watched = planned, watched
        phase = planned.phase
        if len(self.phases) == self.phase:
            self.phases.append(
                {
                    "name": phase.name,
                    "epochs": 0,
                    "frozen_stages": frozen.stages,
                    "trainable_parameters": frozen.trainable_parameters,
                    "wall_seconds": 0.0,
                    "val": {},
                }
            )
        how = f"{planned.epochs} epochs, rate {phase.learning_rate:g}"
        if phase.solver == "logistic":
            how = "in closed form"
        say(f"phase {phase.name}: {how}; {frozen}")

    def on_train_begin(self, logs=None):
        if self.phase_epoch:  # resumed within a phase
            for callback in self.watched:
                for name, value in self.memory.get(type(callback).__name__, {}).items():
                    setattr(callback, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        reseed(self.kept, self.seed, epoch, self.lane)
        self.started = time.perf_counter()
        done = self.phase_epoch * self.planned.steps_per_epoch
        # The last epoch of a phase that is given in steps may be a part of one.
        self.steps = min(self.planned.steps_per_epoch, self.planned.steps - done)
        self.bar = progress_bar(
            label=f"epoch {epoch + 1}/{self.params['epochs']}", total=self.steps, unit="batches"
        )

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            self.bar.close()
            self._diverged(batch, loss)
        self.bar.details(logs or {})
        self.bar.update(batch + 1 - self.bar.done)
        if batch + 1 >= self.steps < self.planned.steps_per_epoch:
            self.model.stop_training = True

    def _diverged(self, batch, loss):
        phase = self.planned.phase
        kept = "no epoch was finished, so there is no model to keep"
        if self.best:
            kept = f"the model of epoch {self.best['epoch']} is kept in {self.run.path}"
        raise Diverged(
            f"The loss became {loss} in phase '{phase.name}', epoch {self.epoch + 1}, step "
            f"{batch + 1}, at a learning rate of {self._rate():.3g}; "
            f"{kept}. Try a tenth of the rate ({phase.learning_rate / 10:.3g}), a longer warmup, clip_norm=1, "
            "or float32 if this was mixed_float16."
        )

    def _rate(self):
        """The rate of the last step."""
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        steps = int(keras.ops.convert_to_numpy(optimizer._iterations))
        if self.planned.phase.shape == "plateau":
            return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        return float(self.planned.learning_rate([max(0, steps - 1)])[0])

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        row = {"learning_rate": self._rate()}
        scale = getattr(self.model.optimizer, "dynamic_scale", None)
        if scale is not None:
            row["loss_scale"] = float(keras.ops.convert_to_numpy(scale))
        self.record(logs or {}, row, time.perf_counter() - self.started, self.model.stop_training)

    def record(self, logs: dict, more: dict, seconds: float, ended: bool = False) -> None:
        """Counts and keeps an epoch that is done.

        Args:
            logs: its metrics, those of validation as `val_…`.
            more: what else stands in its row of the history.
            ended: True where the phase ends here, whatever was planned.
        """
        now = time.perf_counter()
        entry = self.phases[-1]
        entry["wall_seconds"] += now - self.mark  # with compiling and saving
        self.mark = now
        # ReduceLROnPlateau adds the rate; its place is below.
        logs = {k: float(v) for k, v in logs.items() if k != "learning_rate"}
        self.epoch += 1
        self.phase_epoch += 1
        epochs = self.epoch - self.phase_epoch + self.planned.epochs
        row = {"epoch": self.epoch, "phase": entry["name"], **more, **logs}
        self.rows.append({**row, "seconds": round(seconds, 3)})
        validation = {k.removeprefix("val_"): v for k, v in logs.items() if k.startswith("val_")}
        entry["val"] = validation or entry["val"]
        entry["epochs"] = self.phase_epoch
        rank = self._rank(validation)
        judged = bool(validation) or not self.validates
        improved = judged and (not self.best or rank > self.best["rank"])
        if improved:
            self.best = {"epoch": self.epoch, "rank": rank, "val": validation}
        if self.phase_epoch == self.planned.epochs or ended:
            self.phase, self.phase_epoch = self.phase + 1, 0
        self.memory = {
            type(callback).__name__: {
                name: None if (value := getattr(callback, name)) is None else float(value)
                for name in self._MEMORY
                if hasattr(callback, name)
            }
            for callback in self.watched
        }
        self._save(improved)
        if self.told is not None:
            self.told(self.rows[-1])
        shown = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        say(f"epoch {self.epoch}/{epochs}  {seconds:.1f} s  {shown}")

    def _rank(self, validation):
        # Only epochs at the size that the model is used at are compared.
        own_size = float(self.planned.image_size == self.kept.input_shape[1])
        if not validation or self.keep == "last":
            return [own_size, self.epoch]
        # The highest metric that the head is ranked by, of equal ones the least loss.
        return [own_size, validation.get(self.ranked_by, 0.0), -validation["loss"]]

    def metrics(self, data, **more) -> dict:
        """The content of metrics.json."""
        return {
            "val": self.best["val"],
            "best_epoch": self.best["epoch"],
            "wall_seconds": round(sum(phase["wall_seconds"] for phase in self.phases), 3),
            "images": {split: len(examples) for split, examples in data.examples.items()},
            "skipped": len(data.skipped),
            "phases": self.phases,
            **more,
        }


def reseed(model: keras.Model, seed: int, epoch: int, lane: int = 0) -> None:
    """Sets every random state of the layers to a function of (seed, epoch, lane).

    Keras keeps them outside of the weights, where no file holds them. Layers without one of their
    own (the StochasticDepth of ConvNeXt) draw from Keras's global generator.
    """
    weights = {id(w) for w in model.weights}
    states = [v for v in model.variables if id(v) not in weights]
    states.append(global_seed_generator().state)
    entropy = [seed, epoch, lane] if lane else [seed, epoch]
    fresh = np.random.SeedSequence(entropy).generate_state(len(states)) >> 1  # 31 bits
    for state, value in zip(states, fresh):
        state.assign(
            np.array([value, 0], "int64").astype(keras.backend.standardize_dtype(state.dtype))
        )
