"""Callbacks of an `Adapter`: progress and resume, and the choice of an epoch without target labels."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_transfer.adaptation import KEEP
from keras_transfer.adaptation.network import single_label_head
from keras_transfer.adaptation.options import check_choice
from keras_transfer.adaptation.selection import DEFAULT_CRITERIA, EpochScores, Selector
from keras_transfer.adaptation.streams import MOST_BATCHES, Stream, check_target, images_of
from keras_transfer.errors import Diverged, InputError
from keras_transfer.evaluation.measures import predict_batches
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.training.weights import assign, collect, reseed
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.utils.console import progress_bar, say
from keras_transfer.utils.files import read_arrays, write_text
from keras_transfer.utils.names import make_options

SCORES = "scores.json"


class Epochs(keras.callbacks.Callback):
    """Prepare each epoch of an `Adapter`, show its progress, and check its result.

    Args:
        streams: domain → stream.
        steps: per epoch.
        verbose: False prints nothing.
    """

    def __init__(self, streams: dict[str, Stream], steps: int, verbose: bool):
        super().__init__()
        self.streams, self.steps, self.verbose = streams, steps, verbose

    def on_epoch_begin(self, epoch, logs=None):
        # A function of (seed, epoch), so that a resumed run draws the same random numbers.
        reseed(self.model, self.model.seed, epoch)
        if self.model.pseudo_labels is not None:
            self.model.pseudo_labels.renew(self.streams["target"], self.steps)
        self.started = time.perf_counter()
        self.label = f"epoch {epoch + 1}/{self.params['epochs']}"
        self.bar = progress_bar(
            label=self.label, total=self.steps, unit="batches", visible=self.verbose
        )

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            self.bar.close()
            raise Diverged(
                f"The loss became {loss} in step {batch + 1} of the epoch: try a tenth of the "
                "learning rate, clip_norm=1, or float32 instead of mixed_float16."
            )
        self.bar.details(logs or {})
        self.bar.update(batch + 1 - self.bar.done)

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        if self.verbose:
            seconds = time.perf_counter() - self.started
            values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
            say(f"{self.label}  {seconds:.1f} s  {values}")
        source = self.streams.get("source")
        steps = epoch * self.steps + self.bar.done  # a limit may have cut this epoch short
        if source is not None and source.length and steps >= source.length:
            counts = keras.ops.convert_to_numpy(self.model.seen)
            check_classes(self.model.head.names, counts)


def check_classes(names: Sequence[str], counts: np.ndarray) -> None:
    """Raise InputError if a class of the head has no source image."""
    missing = [name for name, count in zip(names, counts) if not count]
    if missing:
        raise InputError(
            f"The source has no image of {', '.join(missing)}: add images, or build the model "
            "without this class."
        )


class SaveState(keras.callbacks.Callback):
    """Save everything that a later process needs to continue an `Adapter`, after each epoch.

    Args:
        folder: created if it does not exist.
        settings: plain data that must be the same when training continues.

    Attributes:
        epoch: number of finished epochs.
        history: name → value per epoch.
    """

    def __init__(self, folder, settings: dict):
        super().__init__()
        _convert_state(Path(folder))
        self.checkpoint = Checkpoint.open(folder, settings, what="adaptation")
        self.epoch = 0
        self.history: dict[str, list] = {}

    def load(self, model) -> None:
        """Restore the last state, if there is one, into a compiled and built model.

        Raises:
            InputError: the state belongs to another model.
        """
        saved = self.checkpoint.load()
        if saved is not None:
            state, arrays = saved
            assign(model.variables, arrays, "model")
            assign(model.optimizer.variables, arrays, "optimizer")
            self.epoch, self.history = state["epoch"], state["history"]

    def on_epoch_end(self, epoch, logs=None):
        self.epoch = epoch + 1
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        optimizer = self.model.optimizer.variables
        self.checkpoint.save(
            {"epoch": self.epoch, "history": self.history},
            {**collect(self.model.variables, "model"), **collect(optimizer, "optimizer")},
        )


def _convert_state(folder: Path) -> None:
    """Convert a state that version 0.1 saved in one file."""
    file = folder / "adapter.npz"
    if file.is_file():
        arrays = read_arrays(file)
        state = json.loads(str(arrays.pop("about")))
        settings = state.pop("settings")
        Checkpoint.open(folder, settings, what="adaptation", empty=False).save(state, arrays)


@dataclass(frozen=True)
class ChoiceOptions:
    """Options of `EpochChoice`.

    Attributes:
        sourceless: the method abandons the source (SHOT, AdaBN), so its accuracy vetoes no epoch.
        keep: `"last"`, or `"selected"`: the epoch `Selector.selected`, or the last one if every
            epoch is vetoed.
        target_report: batches (images, integers) of the target, for `Selector.oracle` and reports;
            neither training nor `selected` depends on them.
        folder: where scores and weights are saved, so that a killed run can be resumed;
            in memory by default.
        source_accuracy, criteria: see `Selector`.
        verbose: print a line per epoch.
    """

    sourceless: bool = False
    keep: str = "last"
    target_report: object = None
    folder: object = None
    source_accuracy: float | None = None
    criteria: Sequence[str] = DEFAULT_CRITERIA
    verbose: bool = True

    def __post_init__(self):
        check_choice("keep", self.keep, KEEP)


class EpochChoice(keras.callbacks.Callback):
    """Score each epoch on unlabelled target images, and end with the weights of one epoch.

    ```python
    choice = EpochChoice(model, target_batches, [120, 80], source=validation, keep="selected")
    adapter.fit(source, target=target, epochs=10, callbacks=[choice])
    print(choice.selector.table())
    ```

    With `keep="selected"` the weights of all epochs that may still be selected are stored, see
    `Selector.candidates`. The source results `val_loss` and `val_accuracy` are added to the logs;
    results of `target_report` are not, so that no other callback can depend on them.

    Args:
        network: the model that an `Adapter` trains.
        target: batches of images alone, the same in each epoch and not augmented, on which epochs
            are scored. See `streams.Stream`.
        source_shares: share or number of source images in each class [C].
        source: batches (images, integers) of validation images; without them an epoch that has
            forgotten the source is not detected.
        options: see `ChoiceOptions`.

    Raises:
        InputError: an invalid option; the target contains more than images; the folder contains a
            selection with other settings.
    """

    def __init__(
        self,
        network: keras.Model,
        target,
        source_shares: Sequence[float],
        *,
        source=None,
        **options,
    ):
        super().__init__()
        self.options = make_options(ChoiceOptions, options, "EpochChoice")
        self.head = single_label_head(network)
        self.network, self.source_network = network, network
        self.target, self.source = Stream(target, "target"), source
        check_target(self.target.first(), network.input_shape[1:])
        self.selector = Selector(
            source_shares,
            source_accuracy=self.options.source_accuracy,
            criteria=tuple(self.options.criteria),
        )
        self.checkpoint: Checkpoint | None = None
        self._weights: dict[int, dict | None] = {}  # epoch → arrays; None if they are in a file
        if self.options.folder is not None:
            self._open(self.options.folder)
        if not network.compiled:
            network.jit_compile = jit_compile()

    # -- callback ---------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        adapter = self.model
        optimizer = getattr(adapter.optimizer, "inner_optimizer", adapter.optimizer)
        if self.options.keep == "selected" and optimizer.use_ema:
            raise InputError(
                "keep='selected' scores the weights after each epoch, but the training ends with "
                "their moving average (ema): use only one of the two."
            )
        if getattr(adapter, "source_encoder", None) is not None:
            # With BatchNorm per domain the source is measured with its own statistics.
            logits = adapter.classifier(adapter.source_encoder.output)
            self.source_network = keras.Model(adapter.source_encoder.inputs, logits)
            self.source_network.jit_compile = jit_compile()

    def on_epoch_begin(self, epoch, logs=None):
        self.back_to(epoch)

    def on_epoch_end(self, epoch, logs=None):
        assert self.model is not None  # on JAX, this access puts the weights into the model
        validation = self.measure(epoch + 1)
        if logs is not None:
            logs.update(validation)

    def on_train_end(self, logs=None):
        self.take()

    # -- scores -----------------------------------------------------------------------------------

    def measure(self, epoch: int, sourceless: bool | None = None) -> dict[str, float]:
        """Score the current weights as an epoch.

        Args:
            epoch: its number.
            sourceless: as in `ChoiceOptions`, for this epoch.

        Returns:
            `val_loss` and `val_accuracy` of the source; {} without `source`.
        """
        validation = self._validate()
        sourceless = self.options.sourceless if sourceless is None else sourceless
        accuracy = None if sourceless else validation.get("val_accuracy")
        before = self.selector.candidates
        probabilities = keras.ops.softmax(self._target_logits())
        scores = self.selector.add(epoch, accuracy, keras.ops.convert_to_numpy(probabilities))
        if self.options.target_report is not None:
            labels, logits = predict_batches(self.network, self.options.target_report)
            self.selector.report(epoch, _accuracy(labels, logits))
        self._store(epoch, before)
        if self.options.verbose:
            self._print(scores, validation)
        return validation

    def back_to(self, epoch: int) -> None:
        """Forget later epochs, which a killed run had scored and a resumed one trains again."""
        self.selector.back_to(epoch)

    def take(self) -> int:
        """Put the weights of the chosen epoch into the model, and return its number.

        Call it while the model has the weights of the last epoch, or of one that was taken before.
        """
        chosen = self.selector.last
        if self.options.keep == "selected":
            if self.selector.selected is None:
                say("selection: every epoch is vetoed; the last one is used, do not trust it")
            chosen = self.selector.selected or chosen
        if chosen != self.selector.last or chosen in self._weights:
            arrays = self._weights[chosen]
            if self.checkpoint:
                arrays = self.checkpoint.load_arrays(f"epoch-{chosen}")
            assign(self.network.weights, arrays or {}, "model")
        return chosen

    def _validate(self):
        if self.source is None:
            return {}
        labels, logits = predict_batches(self.source_network, self.source)
        loss = float(keras.ops.convert_to_numpy(self.head.loss()(labels, logits)))
        return {"val_loss": loss, "val_accuracy": _accuracy(labels, logits)}

    def _target_logits(self):
        images = (np.asarray(images_of(batch)) for batch in self.target.one_pass(MOST_BATCHES))
        return predict_batches(self.network, ((batch, np.zeros(len(batch))) for batch in images))[1]

    def _print(self, scores: EpochScores, validation):
        source = f"source {100 * validation['val_accuracy']:.1f} %, " if validation else ""
        veto = self.selector.veto(scores)
        say(
            f"  {source}target entropy + diversity {scores.information:.3f}, predictions cover "
            f"{scores.classes:.1f} classes{f' (veto: {veto})' if veto else ''}"
        )

    # -- storage ----------------------------------------------------------------------------------

    def _store(self, epoch, before):
        """Store the weights of the candidates, including those before this epoch, which a resumed
        run may have to train again."""
        if self.options.keep == "selected":
            arrays = collect(self.network.weights, "model")
            self._weights[epoch] = None if self.checkpoint else arrays
            if self.checkpoint:
                self.checkpoint.save_arrays(f"epoch-{epoch}", arrays)
        if self.checkpoint:
            scores = json.dumps({"selector": self.selector.to_dict()})
            write_text(self.checkpoint.folder / SCORES, scores)
        for other in self._weights.keys() - {*before, *self.selector.candidates}:
            del self._weights[other]
            if self.checkpoint:
                (self.checkpoint.folder / f"epoch-{other}.npz").unlink(missing_ok=True)

    def _open(self, folder):
        settings = {
            "keep": self.options.keep,
            "source_shares": self.selector.source_shares,
            "source_accuracy": self.selector.source_accuracy,
            "criteria": self.selector.criteria,
        }
        # Not empty: version 0.1 saved no settings beside the scores.
        self.checkpoint = Checkpoint.open(folder, settings, what="selection", empty=False)
        folder = self.checkpoint.folder
        if (folder / SCORES).is_file():
            saved = json.loads((folder / SCORES).read_text(encoding="utf-8"))
            self.selector = Selector.from_dict(saved["selector"])
            epochs = (scores.epoch for scores in self.selector.scores)
            self._weights = {e: None for e in epochs if (folder / f"epoch-{e}.npz").is_file()}


def _accuracy(labels, logits):
    return float((logits.argmax(axis=1) == labels).mean())
