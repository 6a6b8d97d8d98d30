"""What happens between the epochs of an `Adapter`: checks, lines for the reader, the state on disk."""

import json
import time
from pathlib import Path

import keras
import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.runs import changed_settings
from keras_transfer.training.checkpoint import assign, collect
from keras_transfer.training.failures import Diverged
from keras_transfer.training.progress import reseed
from keras_transfer.utils.console import progress_bar, say
from keras_transfer.utils.files import read_arrays, write_arrays

FILE = "adapter.npz"


class Reseed(keras.callbacks.Callback):
    """Every random state of the layers is a function of (seed, epoch), as in a resumed run."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        reseed(self.model, self.seed, epoch)


class EachClassSeen(keras.callbacks.Callback):
    """Ends the training where a whole pass of the source has not shown every class.

    Args:
        steps: after which a pass is through.
    """

    def __init__(self, steps: int, class_names):
        super().__init__()
        self.steps, self.class_names = steps, class_names

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) * self.params["steps"] < self.steps:
            return
        seen = keras.ops.convert_to_numpy(self.model.seen)
        missing = [name for name, times in zip(self.class_names, seen) if not times]
        if missing:
            raise InputError(missing_classes(missing))


def missing_classes(names) -> str:
    return (
        f"The source has no image of {', '.join(names)}: adaptation cannot teach a class that it "
        "never sees. Add images, or build the model without it."
    )


class Lines(keras.callbacks.Callback):
    """A bar in the epoch and a line after it, on stderr."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.bar = progress_bar(
            label=f"epoch {epoch + 1}/{self.params['epochs']}",
            total=self.params["steps"],
            unit="batches",
        )

    def on_train_batch_end(self, batch, logs=None):
        self.bar.details(logs or {})
        self.bar.update(batch + 1 - self.bar.done)

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        seconds = time.perf_counter() - self.started
        shown = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        say(f"epoch {epoch + 1}/{self.params['epochs']}  {seconds:.1f} s  {shown}")


class Clock(keras.callbacks.Callback):
    """Logs the seconds of each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["seconds"] = round(time.perf_counter() - self.started, 3)


class StopWhereLost(keras.callbacks.Callback):
    """Raises `Diverged` at the first loss that is no number."""

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise Diverged(
                f"The loss became {loss} in step {batch + 1} of the epoch: try a tenth of the "
                "learning rate, clip_norm=1, or float32 if this was mixed_float16."
            )


class State(keras.callbacks.Callback):
    """After each epoch all that a later process needs to go on, in one file.

    Args:
        folder: where; made where it does not exist.
        settings: plain data that must be the same when it goes on.
    """

    def __init__(self, folder, settings: dict):
        super().__init__()
        self.path = Path(folder) / FILE
        self.settings = json.loads(json.dumps(settings))
        self.epoch = 0
        self.history: dict[str, list] = {}
        Path(folder).mkdir(parents=True, exist_ok=True)

    def load(self, model) -> None:
        """Puts the last state into a compiled, built model; `epoch` is how many are done.

        Raises:
            InputError: the file is of other settings, or of another network.
        """
        if not self.path.is_file():
            return
        arrays = read_arrays(self.path)
        kept = json.loads(str(arrays.pop("about")))
        changed = list(changed_settings(kept["settings"], self.settings))
        if changed:
            raise InputError(
                f"Cannot go on from {self.path}, it was begun otherwise: {'; '.join(changed)}. Undo "
                "that, or give another state folder."
            )
        groups = (("model", model.variables), ("optimizer", model.optimizer.variables))
        for name, variables in groups:
            shapes = [list(arrays[key].shape) for key in arrays if key.startswith(f"{name}/")]
            if shapes != [list(variable.shape) for variable in variables]:
                raise InputError(f"Cannot go on from {self.path}: its {name} is another one.")
        for name, variables in groups:
            assign(variables, arrays, name)
        self.epoch, self.history = kept["epoch"], kept["history"]

    def on_epoch_end(self, epoch, logs=None):
        self.epoch = epoch + 1
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        about = {"epoch": self.epoch, "history": self.history, "settings": self.settings}
        arrays = {
            "about": np.array(json.dumps(about)),
            **collect(self.model.variables, "model"),
            **collect(self.model.optimizer.variables, "optimizer"),
        }
        write_arrays(self.path, arrays)
