"""The `Adapter`: labelled source images, unlabelled target images, a model for the target."""

import keras
from keras import ops

from keras_transfer.adaptation import BATCH_NORM, losses, progress
from keras_transfer.adaptation.adabn import apply_adabn, check_norms
from keras_transfer.adaptation.methods import Batch, resolve_methods
from keras_transfer.adaptation.network import (
    LAST,
    feature_models,
    other_domain_encoder,
    single_label_head,
)
from keras_transfer.adaptation.shot import PseudoLabels, Renew
from keras_transfer.adaptation.streams import (
    Stream,
    check_source,
    check_target,
    images_of,
    together,
)
from keras_transfer.errors import InputError
from keras_transfer.models import acceleration as precision
from keras_transfer.models.stages import backbone_of, norms_of, quick_statistics
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.plans import make_optimizer
from keras_transfer.training.distributed.workers import require_alone


class Adapter(keras.Model):
    """Trains a model on labelled source images such that it holds on unlabelled target images.

    It is compiled and fitted like any Keras model. `model` itself is what is trained: after `fit` it
    is the result, plain as before.

    ```python
    adapter = Adapter(model, "dann")
    adapter.compile(keras.optimizers.Adam(1e-3))
    adapter.fit(source, target=target, epochs=10)  # (images, integers), images
    model.save("adapted.keras")
    ```

    Args:
        model: from `build_model`, with one single-label head. Leading stages that are frozen
            (`kt.freeze(model, "stage:3")`) stay frozen; the rest trains.
        methods: a name of `METHODS`, a method (`DANN(hidden=(100,))`), or a list of them whose
            losses are added (`["mcc", "dann"]`). An empty list trains on the source alone.
        batch_norm: of the stages that train. `"joint"`: normalised over both domains' batches
            together, as most papers do. `"per_domain"`: each domain by its own batches, scales and
            offsets shared; the model keeps the target's statistics. `"frozen"`: those that the model
            came with. The statistics of frozen stages stay in any case; a bottleneck's are joint
            where those of the backbone are frozen.
        feature_layer: layer of the head whose output is aligned [N, D]; by default the bottleneck
            where the head has one, else the backbone's output; for SHOT what the last layer takes.
        seed: of discriminators, dropout and random maps.

    Raises:
        InputError: another head, unknown methods or combinations, BatchNorm that is not there, or
            features that no trained weight moves.
    """

    def __init__(
        self, model: keras.Model, methods, *, batch_norm="joint", feature_layer=None, seed: int = 0
    ):
        if batch_norm not in BATCH_NORM:
            raise InputError(f"batch_norm must be one of {BATCH_NORM}, not {batch_norm!r}.")
        chosen = resolve_methods(methods)
        head = single_label_head(model)
        # Full precision outside of the model, which has a precision of its own.
        super().__init__(name=f"{model.name}_adapter", dtype="float32")
        self.model = model
        self.head, self.methods, self.seed = head, chosen, seed
        # To SHOT all but the last layer are features: only the classes' directions stand still.
        if feature_layer is None and any(method.source_free for method in chosen):
            feature_layer = LAST
        self.batch_norm, self.feature_layer = batch_norm, feature_layer
        frozen = backbone_of(model).frozen_stages
        self._set_batch_norm(frozen)
        # With BatchNorm that stands still it is folded: less time for the same numbers.
        self.encoder, self.classifier = feature_models(
            model, feature_layer, frozen=frozen, fold=batch_norm == "frozen"
        )
        if self.source_free:
            self.classifier.trainable = False
        self._check_features()
        self.source_encoder = None
        if batch_norm == "per_domain" and self._aligns and not self.source_free:
            self.source_encoder = other_domain_encoder(model, feature_layer, frozen=frozen)
        classes, width = len(head.names), self.encoder.output_shape[-1]
        self.networks = [
            method.network(width, classes, seed + 1000 * number)
            for number, method in enumerate(chosen)
        ]
        self.step = self._kept("step")
        self.steps = self._kept("steps")
        self.seen = self._kept("seen", (classes,))
        self.pseudo_labels = None
        if self.source_free:
            self.pseudo_labels = PseudoLabels(model, feature_layer, classes)
        self._make_trackers()
        self.built = True

    # -- what it is made of -----------------------------------------------------------------------

    @property
    def source_free(self) -> bool:
        """True where the method never sees the source."""
        return any(method.source_free for method in self.methods)

    @property
    def _aligns(self):
        """True where the target takes part in the steps."""
        return any(method.in_steps for method in self.methods)

    @property
    def _views(self):
        return any(method.views for method in self.methods)

    def _set_batch_norm(self, frozen):
        norms = norms_of(self.model, frozen)
        names = [method.name for method in self.methods]
        if "adabn" in names:
            check_norms(self.model)
        if self.source_free and not norms_of(self.model):
            raise InputError(
                f"SHOT needs BatchNorm, and {self.model.name} has none: give the head a bottleneck "
                "(Classification(names, bottleneck=256))."
            )
        if self.batch_norm == "per_domain" and not norms:
            raise InputError(
                f"batch_norm 'per_domain' needs BatchNorm in the part that trains, and "
                f"{self.model.name} has none there: take 'joint'."
            )
        in_backbone = {id(x) for s in backbone_of(self.model).stages for x in s.layers}
        for norm in norms:
            if id(norm) in in_backbone:
                norm.trainable = self.batch_norm != "frozen"

    def _check_features(self):
        aligning = [m.title for m in self.methods if m.in_steps and m.moves_features]
        if aligning and not self.encoder.trainable_variables:
            raise InputError(
                f"{aligning[0]} moves the features, but everything before the classifier is frozen: "
                "freeze less, or give the head a bottleneck (Classification(names, bottleneck=256))."
            )

    def _kept(self, name, shape=()):
        return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

    def _make_trackers(self):
        names = [] if self.source_free else ["class_loss"]
        if self._aligns:
            names += ["align_loss", "lambda", "target_entropy"]
            in_steps = [method.name for method in self.methods if method.in_steps]
            names += dict.fromkeys(name for method in self.methods for name in method.logs)
            if len(in_steps) > 1:
                names += [
                    f"{what}_{name}" for name in in_steps for what in ("align_loss", "lambda")
                ]
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    # -- compiled like any Keras model ------------------------------------------------------------

    def compile(self, optimizer="adam", loss=None, metrics=None, *, jit_compile=None, **options):
        """Like `keras.Model.compile`.

        Args:
            optimizer: of Keras; for a rate of each stage see `make_optimizer`.
            loss, metrics: on the source's labels and logits; by default the head's.
            jit_compile: by default what suits the machine.
            options: `run_eagerly`, `steps_per_execution`, …
        """
        if self.source_free and (loss is not None or metrics is not None):
            raise InputError("SHOT sees no labels: leave loss and metrics out.")
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self.model.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if not self.source_free:
            loss = self.head.loss() if loss is None else loss
            metrics = self.head.metrics() if metrics is None else metrics
        super().compile(
            optimizer,
            loss,
            metrics=metrics,
            jit_compile=precision.jit_compile() if jit_compile is None else jit_compile,
            **options,
        )

    def make_optimizer(self, phase: Phase, steps: int) -> keras.optimizers.Optimizer:
        """The optimizer of a phase: rates per stage, decay, shape of the rate, clipping, averages.

        Discriminators learn at the rate of the head.

        Args:
            phase: what it says of anything but the optimizer is not looked at.
            steps: of the whole training: epochs times steps_per_epoch.
        """
        return make_optimizer(self.model, phase, steps, self.trainable_variables)

    # -- a step -----------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """Logits of images; of a dict of both domains what the losses need."""
        if not isinstance(inputs, dict):
            return self.model(inputs, training=training)
        features, sizes = self._features(inputs, training)
        logits = ops.cast(self.classifier(features, training=training), "float32")
        features = ops.cast(features, "float32")
        found, start = {}, 0
        for part, n in sizes.items():
            found[f"{part}_features"] = features[start : start + n]
            found[f"{part}_logits"] = logits[start : start + n]
            start += n
        return found

    def _features(self, inputs, training):
        """(features of all images, part after part; part → how many of them are its)."""
        sizes = {part: ops.shape(images)[0] for part, images in inputs.items()}
        if len({images.dtype for images in inputs.values()}) > 1:
            inputs = {part: ops.cast(images, "float32") for part, images in inputs.items()}
        parts, found = dict(inputs), []
        if self.source_encoder is not None:
            found.append(self.source_encoder(parts.pop("source"), training=training))
        found.append(self.encoder(_concatenated(parts.values()), training=training))
        return _concatenated(found), sizes

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(x, dict):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total = 0.0
        if "source_logits" in y_pred:
            total = super().compute_loss(x, y, y_pred["source_logits"], sample_weight, training)
            self._track("class_loss", total)
            self._see(y)
        else:
            total = sum(self.losses, total)
        if "target_logits" in y_pred:
            if self.source_free:
                y_pred = {**y_pred, "pseudo_labels": self.pseudo_labels(x["target"])}
            total = total + self._align(y_pred, training)
        if training:
            self.step.assign_add(1.0)
        return total

    def _align(self, outputs, training):
        batch = Batch(*(outputs.get(name) for name in Batch._fields))
        done = ops.minimum(self.step / ops.maximum(self.steps, 1.0), 1.0)
        align, strengths = 0.0, []
        several = sum(method.in_steps for method in self.methods) > 1
        for method, network in zip(self.methods, self.networks):
            if not method.in_steps:
                continue
            strength = method.strength(done)
            strengths.append(strength)
            loss, logs = method.loss(batch, strength, network, training)
            align = align + loss
            for name, value in logs.items():
                self._track(name, value)
            if several:
                self._track(f"align_loss_{method.name}", loss)
                self._track(f"lambda_{method.name}", strength)
        self._track("align_loss", align)
        self._track("lambda", strengths[0])
        self._track("target_entropy", ops.mean(losses.entropy(batch.target_logits)))
        return align

    def _see(self, labels):
        classes = len(self.head.names)
        shares = labels
        if len(labels.shape) == 1:
            shares = ops.one_hot(ops.cast(labels, "int32"), classes)
        self.seen.assign(ops.maximum(self.seen, ops.cast(ops.max(shares, axis=0) > 0, "float32")))

    def _track(self, name, value):
        self.trackers[name].update_state(ops.stop_gradient(value))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, dict):
            if "source_logits" not in y_pred:
                return self.get_metrics_result()
            return super().compute_metrics(x, y, y_pred["source_logits"], sample_weight)
        # On labelled images nothing of the adaptation is measured.
        found = super().compute_metrics(x, y, y_pred, sample_weight)
        return {name: value for name, value in found.items() if name not in self.trackers}

    # -- fitted like any Keras model --------------------------------------------------------------

    def fit(
        self,
        source=None,
        target=None,
        *,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        validation_data=None,
        callbacks=(),
        verbose="auto",
        state=None,
        **options,
    ) -> keras.callbacks.History:
        """Trains the model on batches of both domains, one of each a step.

        The stream that is shorter is begun anew as often as needed.

        Args:
            source: batches (images [N, H, W, 3], integers [N]) or with weights [N] as a third
                part: a `tf.data.Dataset`, a `PyDataset`, a data loader, or a function of a number n
                that gives the endless batches from the n-th on. None for SHOT.
            target: batches of images alone, of any such kind; for FixMatch of (images, other
                views of them).
            epochs: ≥ 1.
            steps_per_epoch: by default the batches of the longer stream.
            validation_data: as Keras takes it: labelled images, by which nothing is chosen here.
            callbacks: of Keras.
            verbose: 0 says nothing; else a bar and a line an epoch on stderr.
            state: a folder where after each epoch all is kept. Called again with the same arguments
                (in another process, after the same `compile` of the same model) it goes on after the
                last epoch, and ends with the same weights, provided the streams give the same
                batches again (shuffle with a seed).
            options: other arguments of `keras.Model.fit`.

        Returns:
            The `History`, of all epochs: `class_loss`, `align_loss` (as it is added, the factor λ
            included but for adversarial losses, where λ acts in the gradient), `lambda` (of the
            first method), `target_entropy` (nats), `domain_accuracy` where there is a
            discriminator, the metrics on the source, `loss`; of several methods `align_loss_NAME`
            and `lambda_NAME` too.

        Raises:
            InputError: no image in a domain, images of another size, target labels, labels that
                the head does not have, classes that a whole pass of the source has not shown.
            Diverged: the loss became NaN or infinite.
        """
        require_alone("An adaptation")
        self._assert_compile_called("fit")
        streams = self._streams(source, target)
        lengths = [stream.length for stream in streams.values()]
        if steps_per_epoch is None:
            if not any(lengths):
                raise InputError("No stream says how long it is: give steps_per_epoch.")
            steps_per_epoch = max(length for length in lengths if length)
        if epochs < 1 or steps_per_epoch < 1:
            raise InputError("epochs and steps_per_epoch must be 1 or more.")
        for variable, value in ((self.step, 0), (self.steps, epochs * steps_per_epoch)):
            variable.assign(float(value))
        self.seen.assign(ops.zeros(self.seen.shape))
        self.optimizer.build(self.trainable_variables)
        kept = None
        if state is not None:
            kept = progress.State(state, self._settings(epochs, steps_per_epoch))
            kept.load(self)
        done = kept.epoch if kept else 0
        if not done:
            self._before(streams, steps_per_epoch)
        if done < epochs:
            with quick_statistics(self.model):
                super().fit(
                    self._joined({k: streams[k] for k in self._in_steps}, done * steps_per_epoch),
                    epochs=epochs,
                    initial_epoch=done,
                    steps_per_epoch=steps_per_epoch,
                    validation_data=validation_data,
                    callbacks=[
                        *self._callbacks(streams, steps_per_epoch, verbose, callbacks, kept)
                    ],
                    shuffle=False,
                    verbose=0,
                    **options,
                )
        else:  # the state was kept before Keras put the averages of an EMA into the weights
            self.optimizer.finalize_variable_values(self.trainable_weights)
        if self.methods and self.methods[-1].name == "adabn":
            apply_adabn(self.model, streams["target"], most=steps_per_epoch)
        return self._history(kept)

    @property
    def _in_steps(self):
        if self.source_free:
            return ("target",)
        return ("source", "target") if self._aligns else ("source",)

    def _streams(self, source, target):
        """domain → its stream, checked; a target that nothing needs is left out."""
        shape, streams = self.model.input_shape[1:], {}
        if self.source_free and source is not None:
            raise InputError(
                "SHOT never sees the source: train the model on it first, then fit(target=…) alone."
            )
        if not self.source_free:
            if source is None:
                raise InputError("fit needs the source: batches of (images, labels).")
            streams["source"] = Stream(source, "source")
            check_source(streams["source"].first(), shape, len(self.head.names))
        if target is None and self.methods:
            raise InputError("fit needs the target: target=batches of images.")
        if target is not None:
            streams["target"] = Stream(target, "target")
            check_target(streams["target"].first(), shape, self._views)
        return streams if self.methods else {"source": streams["source"]}

    def _joined(self, streams, start):
        domains = tuple(streams)

        def join(*batches):
            inputs, rest = {}, ()
            for domain, batch in zip(domains, batches):
                if domain == "source":
                    inputs[domain], *rest = batch
                else:
                    inputs[domain] = images_of(batch)
                    if self._views:
                        inputs["view"] = batch[1]
            return (inputs, *rest)

        return together(streams, start, join)

    def _before(self, streams, most):
        first = bool(self.methods) and self.methods[0].name == "adabn" and len(self.methods) > 1
        # SHOT's BatchNorms run on batches of the target: so do its centroids, from the beginning.
        follows = self.source_free and self.batch_norm != "frozen" and norms_of(self.model)
        if first or follows:
            apply_adabn(self.model, streams["target"], most=most)

    def _callbacks(self, streams, steps, verbose, callbacks, kept):
        yield progress.Reseed(self.seed)
        if self.source_free:
            yield Renew(streams["target"], steps)
        if verbose != 0:
            yield progress.Lines()
        yield progress.StopWhereLost()
        if not self.source_free and streams["source"].length:
            yield progress.EachClassSeen(streams["source"].length, self.head.names)
        yield from callbacks
        if kept:
            yield kept

    def _settings(self, epochs, steps):
        return {
            "methods": [method.to_dict() for method in self.methods],
            "batch_norm": self.batch_norm,
            "feature_layer": self.feature_layer,
            "seed": self.seed,
            "epochs": epochs,
            "steps_per_epoch": steps,
            "precision": self.model.dtype_policy.name,
        }

    def _history(self, kept):
        history = getattr(self, "history", None)
        if not isinstance(history, keras.callbacks.History):  # nothing was left to do
            history = keras.callbacks.History()
            history.history = {}
        if kept:
            history.history = kept.history
            history.epoch = list(range(kept.epoch))
        return history


def _concatenated(parts):
    parts = list(parts)
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=0)
