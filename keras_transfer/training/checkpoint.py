"""Progress of a training, epoch by epoch: history, checkpoints, and the best weights.

Everything that training depends on is either a pure function of (phase, seed, epoch), such as what
trains, the learning rate, order, augmentation and dropout, or in the checkpoint that is written after
each epoch: weights, optimizer variables, and the memory of early stopping and of the plateau.
"""

import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_transfer.errors import Diverged, Signals
from keras_transfer.models.stages import Frozen
from keras_transfer.runs import Run
from keras_transfer.schedules.plans import PlannedPhase, can_restart
from keras_transfer.training.logs import LOGS
from keras_transfer.training.rollback import LOW_EPOCHS, SLOWER, fell, restart_of
from keras_transfer.training.soup import describe, greedy, strongest
from keras_transfer.training.weights import (
    collect,
    plain_values,
    reseed,
    set_plain,
    set_state,
    state_of,
)
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import ProgressBar, counted, progress_bar, say
from keras_transfer.utils.image_sizes import size_of


class Progress(keras.callbacks.Callback):
    """Records each epoch: history, best weights, checkpoint, and a line on stderr.

    Args:
        run: where history and model are written.
        checkpoint: where the state is written.
        trainer: the `training.Trainer`. `fit` may run another network on its model's weights.
        signals: deferred while a state is written.
        validation: number of validation examples, of which those of a group count as one; if there are any, epochs without a validation are
            never the best.
        logs: names of `logs.LOGS` that get each row of the history, too.

    Attributes:
        phase: index of the current phase.
        phase_epoch: its finished epochs.
        epoch: all finished epochs.
        rows: the history.
        phases: the phases in `metrics.json`.
        best: number, rank and validation metrics of the best epoch; the last two are those of the
            average where that is saved.
        soup: what `metrics.json` says of the average of epochs.
        candidates: epochs that may be averaged, see `training.soup`.
        evaluate: returns the validation metrics of the network, in a phase whose epochs are averaged.
        engines: name of a phase → engine that computed its features.
        low: validations in a row that are far below the best one.
        save_seconds: within a phase, write the state at most that often.
    """

    _PLAIN = (
        *("phase", "phase_epoch", "epoch", "rows", "phases", "best", "memory", "engines", "low"),
        *("soup", "candidates"),
    )
    _MEMORY = ("best", "wait", "cooldown_counter", "best_epoch")

    def __init__(
        self,
        run: Run,
        checkpoint: Checkpoint,
        trainer,
        signals: Signals,
        *,
        validation: int,
        logs: Sequence[str] = (),
    ):
        super().__init__()
        self.run, self.checkpoint, self.signals = run, checkpoint, signals
        self.source, self.seed, self.keep = trainer.model, trainer.config.seed, trainer.config.keep
        self.seed_offset = trainer.workers.seed_offset
        self.ranked_by = trainer.head.ranked_by if trainer.head else None
        self.validation = validation
        self.low = 0
        self._oldest = 1
        self.logs = [LOGS[name](run) for name in logs if trainer.workers.chief]
        self.phase = self.phase_epoch = self.epoch = 0
        self.rows: list[dict] = []
        self.phases: list[dict] = []
        self.best: dict = {}
        self.soup: dict = {}
        self.candidates: list[dict] = []
        self.evaluate: Callable[[], dict] | None = None
        self.memory: dict[str, dict] = {}
        self.engines: dict = {}
        self.watching: list[keras.callbacks.Callback] = []
        self.save_seconds = 0.0
        self._counted_until = time.perf_counter()  # for the phases' wall_seconds
        self._saved = 0.0
        self._unsaved: dict[str, dict] = {}  # name → arrays
        self._bar: ProgressBar | None = None

    # -- state

    def load(self) -> dict[str, np.ndarray] | None:
        """Restore the last state; return its arrays, or None if no epoch was finished."""
        loaded = self.checkpoint.load()
        if loaded is None:
            return None
        state, arrays = loaded
        for name in self._PLAIN:
            setattr(self, name, state.get(name, getattr(self, name)))
        set_plain(self.source, arrays)  # low-rank updates are added when the phase continues
        return arrays

    @property
    def _named(self) -> list[str]:
        """Names of the arrays that are needed besides those of the last epoch."""
        best = [f"best-{self.best['epoch']}"] if self.best else []
        averaged = ["soup"] if self.soup.get("used") else []
        return [*best, *averaged, *(f"soup-{c['epoch']}" for c in self.candidates)]

    def _save(self, weights: dict):
        self._unsaved = {name: self._unsaved[name] for name in self._named if name in self._unsaved}
        recent = time.perf_counter() - self._saved < self.save_seconds
        if self.phase_epoch and recent and not self.rolled_back:
            return
        state = {name: getattr(self, name) for name in self._PLAIN} | {"named": self._named}
        optimizer = {}
        if self.planned.phase.solver == "gradient":
            optimizer = collect(self.model.optimizer.variables, "optimizer")
        with self.signals.protected():
            self.run.write_history(self.rows)
            self.checkpoint.save(state, {**weights, **optimizer}, self._unsaved)
        self._saved, self._unsaved = time.perf_counter(), {}

    def load_best(self) -> None:
        """Put the weights of the best epoch, or of the average, into the model."""
        name = "soup" if self.soup.get("used") else f"best-{self.best['epoch']}"
        best = self.checkpoint.load_arrays(name)
        set_plain(self.source, best or {})

    # -- a phase

    def start_phase(self, planned: PlannedPhase, frozen: Frozen, watching, oldest: int = 1) -> None:
        """Start or continue a phase.

        Args:
            watching: callbacks of this phase whose memory is saved.
            oldest: first epoch to whose weights it may go back.
        """
        self.planned, self.watching, self._oldest = planned, watching, oldest
        phase = planned.phase
        if not self.phase_epoch:
            self.low = 0
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
        how = f"{counted(planned.epochs, 'epoch')}, rate {phase.learning_rate:g}"
        if phase.solver == "logistic":
            how = "in closed form"
        say(f"phase {phase.name}: {how}; {frozen}")

    def goes_back(self, phase) -> bool:
        """Return whether a phase may go back to the best weights."""
        return can_restart(phase) and self.keep == "best" and self.validation > 0

    @property
    def rolled_back(self) -> bool:
        """Whether the last epoch ended with a return to the best weights, within its phase."""
        last = self._rollbacks()[-1:]
        return self.phase_epoch > 0 and bool(last) and last[0]["epoch"] == self.epoch

    @property
    def phase_of_best(self) -> int:
        """The index of the phase that the best epoch belongs to."""
        return int(
            np.searchsorted(np.cumsum([p["epochs"] for p in self.phases]), self.best["epoch"])
        )

    def _rollbacks(self):
        return self.phases[-1].get("rollbacks", []) if self.phases else []

    def restart(self, planned: PlannedPhase) -> tuple[float, float]:
        """Return speed and factor of the learning rate, see `rollback.restart_of`."""
        return restart_of(self._rollbacks(), self.epoch - self.phase_epoch, planned.epochs)

    def on_train_begin(self, logs=None):
        if self.phase_epoch:  # resumed within a phase
            for callback in self.watching:
                for name, value in self.memory.get(type(callback).__name__, {}).items():
                    setattr(callback, name, value)

    def on_epoch_begin(self, epoch, logs=None):
        reseed(self.source, self.seed, epoch, self.seed_offset)
        self.started = time.perf_counter()
        done = self.phase_epoch * self.planned.steps_per_epoch
        # The last epoch of a phase whose length is given in steps may be incomplete.
        self.steps = min(self.planned.steps_per_epoch, self.planned.steps - done)
        self._bar = progress_bar(
            label=f"epoch {epoch + 1}/{self.params['epochs']}", total=self.steps, unit="batches"
        )

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            self._diverged(batch, loss)
        self._bar.details(logs or {})
        self._bar.update(batch + 1 - self._bar.done)
        if batch + 1 >= self.steps < self.planned.steps_per_epoch:
            self.model.stop_training = True

    def close(self) -> None:
        """Remove the progress bar, also after an error."""
        if self._bar:
            self._bar.close()

    def finish_logs(self) -> None:
        """Log what is known at the end of the run."""
        for log in self.logs:
            log.finish()

    def _diverged(self, batch, loss):
        phase = self.planned.phase
        saved = "no epoch was finished, so no model is saved"
        if self.best:
            saved = f"the model of epoch {self.best['epoch']} is saved in {self.run.path}"
        raise Diverged(
            f"The loss became {loss} in phase '{phase.name}', epoch {self.epoch + 1}, step "
            f"{batch + 1}, at a learning rate of {self._rate():.3g}; {saved}. Try a tenth of the "
            f"learning rate ({phase.learning_rate / 10:.3g}), a longer warmup, clip_norm=1, or float32 "
            "if this was mixed_float16."
        )

    def _rate(self):
        """Return the learning rate of the last step."""
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        steps = int(keras.ops.convert_to_numpy(optimizer._iterations))
        if self.planned.phase.shape == "plateau":
            return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        speed, factor = self.restart(self.planned)
        return float(self.planned.learning_rate([max(0, steps - 1) * speed])[0] * factor)

    def on_epoch_end(self, epoch, logs=None):
        self.close()
        row = {"learning_rate": self._rate()}
        scale = getattr(self.model.optimizer, "dynamic_scale", None)
        if scale is not None:
            row["loss_scale"] = float(keras.ops.convert_to_numpy(scale))
        self.record(logs or {}, row, time.perf_counter() - self.started, self.model.stop_training)
        if self.rolled_back:
            self.model.stop_training = True  # and `fit` is called again

    def record(self, logs: dict, more: dict, seconds: float, ended: bool = False) -> None:
        """Count and save a finished epoch.

        Args:
            logs: its metrics, those of validation as `val_…`.
            more: further columns of its row in the history.
            ended: whether the phase ends here, before its planned epochs.
        """
        now = time.perf_counter()
        entry = self.phases[-1]
        entry["wall_seconds"] += now - self._counted_until  # includes compiling and saving
        self._counted_until = now
        # ReduceLROnPlateau adds the learning rate, which `more` contains.
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
        judged = bool(validation) or not self.validation
        improved = judged and (not self.best or rank > self.best["rank"])
        if improved:
            self.best = {"epoch": self.epoch, "rank": rank, "val": validation}
        ended = ended or self.phase_epoch == self.planned.epochs
        if validation:
            self.low = self.low + 1 if self._fell(rank, validation) else 0
        if self.low >= LOW_EPOCHS and not ended:
            self._roll_back()
        weights = plain_values(self.source)
        if improved:
            self._unsaved[f"best-{self.epoch}"] = weights
        if self.evaluate and validation:
            self._unsaved[f"soup-{self.epoch}"] = weights
            candidate = {"epoch": self.epoch, "rank": rank, "val": validation}
            self.candidates = strongest([*self.candidates, candidate])
        if ended:
            self._average()
            self.phase, self.phase_epoch = self.phase + 1, 0
        self.memory = {
            type(callback).__name__: {
                name: None if (value := getattr(callback, name)) is None else float(value)
                for name in self._MEMORY
                if hasattr(callback, name)
            }
            for callback in self.watching
        }
        self._save(weights if ended else state_of(self.source))
        for log in self.logs:
            log(self.rows[-1])
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        say(f"epoch {self.epoch}/{epochs}  {seconds:.1f} s  {metrics}")

    def _fell(self, rank, validation):
        """Return whether an epoch is far below the best one, to which the phase can go back."""
        return (
            self.goes_back(self.planned.phase)
            and rank[0] == self.best["rank"][0]  # at the same image size
            and self.best["epoch"] >= self._oldest
            and fell(validation, self.best["val"], self.ranked_by, self.validation)
        )

    def _roll_back(self):
        self.low = 0
        entry, to = self.phases[-1], self.best["epoch"]
        rate = self.planned.phase.learning_rate * SLOWER ** (len(self._rollbacks()) + 1)
        entry.setdefault("rollbacks", []).append({"epoch": self.epoch, "to": to, "rate": rate})
        self.rows[-1]["rolled_back_to"] = to
        name = self.ranked_by or "loss"
        say(
            f"validation {name} was far below that of epoch {to} ({self.best['val'][name]:.4f}) in "
            f"{LOW_EPOCHS} validations in a row: back to its weights, at a rate of {rate:.3g}"
        )

    def _average(self):
        """Choose the average of the candidates; it is saved if it is no worse than the best epoch."""
        if not self.candidates:
            return
        started = time.perf_counter()
        before = state_of(self.source)

        def weights_of(epoch):
            name = f"soup-{epoch}"
            return self._unsaved.get(name) or self.checkpoint.load_arrays(name)

        def evaluate(weights):
            set_plain(self.source, weights)
            return {name: float(value) for name, value in self.evaluate().items()}

        found, weights = greedy(self.candidates, weights_of, evaluate, self._rank)
        set_state(self.source, before)
        used = len(found["epochs"]) > 1 and found["rank"] >= self.best["rank"]
        self.soup = {
            "epochs": found["epochs"],
            "val": found["val"],
            "single": self.best["val"],
            "used": used,
        }
        if used:
            self.best |= {"rank": found["rank"], "val": found["val"]}
            self._unsaved["soup"] = weights
        say(describe(self.soup, self.best["epoch"], self.ranked_by or "loss"))
        self.candidates = []
        self.phases[-1]["wall_seconds"] += time.perf_counter() - started

    def _rank(self, validation):
        # Only epochs at the image size of the model are compared.
        same_size = float(self.planned.image_size == size_of(self.source.input_shape))
        if not validation or self.keep == "last":
            return [same_size, self.epoch]
        # The highest metric that the head is ranked by, then the lowest loss.
        return [same_size, validation.get(self.ranked_by, 0.0), -validation["loss"]]

    def metrics(self, data, **more) -> dict:
        """Return the content of metrics.json."""
        return {
            "val": self.best["val"],
            "best_epoch": self.best["epoch"],
            "wall_seconds": round(sum(phase["wall_seconds"] for phase in self.phases), 3),
            "images": {split: len(examples) for split, examples in data.examples.items()},
            "skipped": len(data.skipped),
            "phases": self.phases,
            **({"soup": self.soup} if self.soup else {}),
            **more,
        }


class SwapAverages(keras.callbacks.SwapEMAWeights):
    """Validates and saves the averaged weights; trains on with the plain ones.

    Works around two errors of Keras's callback (3.15): on TensorFlow it swaps by additions, which
    round; and if `stop_training` ends `fit` early, it leaves the plain weights in the model. It also
    swaps twice per epoch instead of four times.

    Args:
        resumed: whether the model is in the state that `on_epoch_end` left.
    """

    def __init__(self, resumed: bool = False):
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = resumed

    def _tf_swap_variables(self, optimizer):
        self._backend_swap_variables(optimizer)

    def on_test_end(self, logs=None):
        """Leave the averages in the model, which are saved; the next epoch begins with the plain weights."""

    def on_epoch_end(self, epoch, logs=None):
        if not self._ema_weights_in_model:
            self._swap_variables()
            self._ema_weights_in_model = True
        if self.model.stop_training or epoch == self.params["epochs"] - 1:
            self._finalize_ema_values()


def watching_callbacks(phase, has_validation: bool) -> list:
    """Return the Keras callbacks that end a phase or lower its learning rate."""
    monitor = "val_loss" if has_validation else "loss"
    found = []
    if phase.shape == "plateau":
        found.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor, factor=phase.drop_factor, patience=phase.patience
            )
        )
    if phase.early_stopping:
        found.append(keras.callbacks.EarlyStopping(monitor, patience=phase.early_stopping))
    return found
