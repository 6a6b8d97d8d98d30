"""Which epoch's weights an adaptation ends with: a callback that scores each without target labels."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_transfer.adaptation import KEEP
from keras_transfer.adaptation.network import single_label_head
from keras_transfer.adaptation.selection import DEFAULT_CRITERIA, EpochScores, Selector
from keras_transfer.adaptation.streams import Stream, check_target, images_of
from keras_transfer.errors import InputError
from keras_transfer.evaluation.measures import outputs_of
from keras_transfer.models.acceleration import jit_compile
from keras_transfer.training.checkpoint import assign, collect
from keras_transfer.utils.console import say
from keras_transfer.utils.files import read_arrays, write_arrays, write_text

SCORES = "scores.json"
_MOST = 1000  # batches of a stream without end


class EpochChoice(keras.callbacks.Callback):
    """Scores each epoch on unlabelled target images; at the end the model has the weights of one.

    ```python
    choice = EpochChoice(model, target_batches, [120, 80], source=validation, keep="selected")
    adapter.fit(source, target=target, epochs=10, callbacks=[choice])
    print(choice.selector.table())
    ```

    With `keep="selected"` the weights of those epochs are kept that may still be selected, see
    `Selector.candidates`. It puts `val_loss` and `val_accuracy`, those of the source, into the logs.
    Nothing of `target_report` is there, so that no other callback can act on it either.

    Args:
        network: the model that an `Adapter` trains.
        target: batches of images alone, the same in each epoch and as the model shall see them (not
            augmented): what is scored. See `streams.Stream`.
        source_shares: share, or number, of source images in each class [C].
        source: batches (images, integers) of validation images; None: an epoch that has unlearned
            the source is not seen.
        sourceless: the method leaves the source behind (SHOT, AdaBN) and gets no veto for it.
        keep: `"last"`, or `"selected"`: what `Selector.selected` says, and the last where every epoch
            is vetoed.
        target_report: batches (images, integers) of the target, for `Selector.oracle` and reports;
            neither training nor `selected` depends on them.
        folder: where scores and weights are kept, so that a killed run can go on; None: in memory.
        source_accuracy, criteria: see `Selector`.
        verbose: says a line an epoch.

    Raises:
        InputError: no such `keep`; a target that gives more than images; a folder in which
            something else was begun.
    """

    def __init__(
        self,
        network: keras.Model,
        target,
        source_shares,
        *,
        source=None,
        sourceless: bool = False,
        keep: str = "last",
        target_report=None,
        folder=None,
        source_accuracy: float | None = None,
        criteria=DEFAULT_CRITERIA,
        verbose: bool = True,
    ):
        super().__init__()
        if keep not in KEEP:
            raise InputError(f"keep must be one of {KEEP}, not {keep!r}.")
        self.head = single_label_head(network)
        self.network, self.of_source = network, network
        self.target = Stream(target, "target")
        check_target(self.target.first(), network.input_shape[1:])
        self.source, self.sourceless, self.target_report = source, sourceless, target_report
        self.keep, self.verbose = keep, verbose
        self.selector = Selector(
            source_shares, source_accuracy=source_accuracy, criteria=tuple(criteria)
        )
        self.folder = None if folder is None else Path(folder)
        self._weights: dict[int, Any] = {}  # epoch → arrays, or the file that they are in
        if self.folder is not None:
            self._load()
        if not network.compiled:
            network.jit_compile = jit_compile()

    # -- as a callback ----------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        adapter = self.model
        optimizer = getattr(adapter.optimizer, "inner_optimizer", adapter.optimizer)
        if self.keep == "selected" and optimizer.use_ema:
            raise InputError(
                "keep='selected' scores the weights after each epoch, but an average of them (ema) "
                "is what the training ends with: leave one of the two out."
            )
        if getattr(adapter, "source_encoder", None) is not None:
            # BatchNorm per domain: the source by its own statistics.
            logits = adapter.classifier(adapter.source_encoder.output)
            self.of_source = keras.Model(adapter.source_encoder.inputs, logits)
            self.of_source.jit_compile = jit_compile()

    def on_epoch_begin(self, epoch, logs=None):
        self.back_to(epoch)

    def on_epoch_end(self, epoch, logs=None):
        assert self.model is not None  # on JAX, asking for it puts the weights into the model
        validation = self.measure(epoch + 1)
        if logs is not None:
            logs.update(validation)

    def on_train_end(self, logs=None):
        self.take()

    # -- what it does -----------------------------------------------------------------------------

    def measure(self, epoch: int, sourceless: bool | None = None) -> dict[str, float]:
        """Scores the model as it is now, as an epoch of that number.

        Returns:
            `val_loss` and `val_accuracy` of the source; {} without `source`.
        """
        found = self._validation()
        sourceless = self.sourceless if sourceless is None else sourceless
        accuracy = None if sourceless else found.get("val_accuracy")
        before = self.selector.candidates
        answers = keras.ops.softmax(self._answers())
        scores = self.selector.add(epoch, accuracy, keras.ops.convert_to_numpy(answers))
        if self.target_report is not None:
            self.selector.report(
                epoch, self._accuracy(*outputs_of(self.network, self.target_report))
            )
        self._keep(epoch, before)
        if self.verbose:
            self._say(scores, found)
        return found

    def back_to(self, epoch: int) -> None:
        """Forgets later epochs: a killed run had scored them and trains them again."""
        self.selector.back_to(epoch)

    def take(self) -> int:
        """Puts the weights of the epoch that is to be kept into the model; returns its number.

        To be called with the weights of the last epoch, or of one that was taken, in the model.
        """
        chosen = self.selector.last
        if self.keep == "selected":
            if self.selector.selected is None:
                say("selection: every epoch is vetoed, so the last one is kept: do not trust it")
            chosen = self.selector.selected or chosen
        if chosen != self.selector.last or chosen in self._weights:
            assign(self.network.weights, self._arrays(chosen), "model")
        return chosen

    def _validation(self):
        if self.source is None:
            return {}
        labels, logits = outputs_of(self.of_source, self.source)
        loss = float(keras.ops.convert_to_numpy(self.head.loss()(labels, logits)))
        return {"val_loss": loss, "val_accuracy": self._accuracy(labels, logits)}

    def _answers(self):
        """Logits float32 [N, C] of the target images."""
        images = (np.asarray(images_of(batch)) for batch in self.target.once(_MOST))
        return outputs_of(self.network, ((batch, np.zeros(len(batch))) for batch in images))[1]

    @staticmethod
    def _accuracy(labels, logits):
        return float((logits.argmax(axis=1) == labels).mean())

    def _say(self, scores: EpochScores, found):
        source = f"source {100 * found['val_accuracy']:.1f} %, " if found else ""
        veto = self.selector.veto(scores)
        say(
            f"  {source}target entropy + diversity {scores.information:.3f}, answers amount to "
            f"{scores.classes:.1f} classes{f' (veto: {veto})' if veto else ''}"
        )

    # -- what is kept -----------------------------------------------------------------------------

    def _keep(self, epoch, before):
        """Weights of the candidates and of those before this epoch: it may have to be done again."""
        if self.keep == "selected":
            arrays = collect(self.network.weights, "model")
            if self.folder is None:
                self._weights[epoch] = arrays
            else:
                self._weights[epoch] = self.folder / f"epoch-{epoch}.npz"
                write_arrays(self._weights[epoch], arrays)
        if self.folder is not None:
            about = {"keep": self.keep, "selector": self.selector.to_dict()}
            write_text(self.folder / SCORES, json.dumps(about))
        for other in self._weights.keys() - {*before, *self.selector.candidates}:
            left = self._weights.pop(other)
            if self.folder is not None:
                left.unlink(missing_ok=True)

    def _arrays(self, epoch):
        kept = self._weights[epoch]
        return kept if self.folder is None else read_arrays(kept)

    def _load(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / SCORES
        if not file.is_file():
            return
        about = json.loads(file.read_text(encoding="utf-8"))
        begun = Selector.from_dict(about["selector"])
        same = ("source_shares", "source_accuracy", "criteria")
        if about["keep"] != self.keep or any(
            getattr(begun, name) != getattr(self.selector, name) for name in same
        ):
            raise InputError(
                f"Cannot go on from {file}, it was begun otherwise (keep={about['keep']!r}): undo "
                "that, or give another folder."
            )
        self.selector = begun
        kept = (self.folder / f"epoch-{scores.epoch}.npz" for scores in begun.scores)
        self._weights = {int(file.stem.split("-")[1]): file for file in kept if file.is_file()}
