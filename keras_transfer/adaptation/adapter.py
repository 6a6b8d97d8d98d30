"""The `Adapter`: a Keras model that trains another one on a labelled source and an unlabelled target."""

import keras
from keras import ops

from keras_transfer.adaptation import BATCH_NORM, losses
from keras_transfer.adaptation.callbacks import Epochs, SaveState
from keras_transfer.adaptation.methods import Batch, resolve_methods
from keras_transfer.adaptation.network import (
    LAST,
    feature_models,
    other_domain_encoder,
    single_label_head,
)
from keras_transfer.adaptation.options import check_choice
from keras_transfer.adaptation.streams import (
    Stream,
    check_source,
    check_target,
    images_of,
    together,
)
from keras_transfer.adaptation.target_passes import PseudoLabels, apply_adabn, check_norms
from keras_transfer.errors import InputError
from keras_transfer.models import acceleration
from keras_transfer.models.stages import backbone_of, norms_of, quick_statistics
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.plans import make_optimizer
from keras_transfer.training.distributed.single_process import require_single_process


class Adapter(keras.Model):
    """Train a model on labelled source images so that it also works on unlabelled target images.

    Compile and fit it like any Keras model. It trains `model` itself, which is the result of `fit`
    and remains a plain Keras model.

    ```python
    adapter = Adapter(model, "dann")
    adapter.compile(keras.optimizers.Adam(1e-3))
    adapter.fit(source, target=target, epochs=10)  # (images, integers), images
    model.save("adapted.keras")
    ```

    Args:
        model: from `build_model`, with one single-label head. Frozen leading stages
            (`kt.freeze(model, "stage:3")`) stay frozen; everything else is trained.
        methods: a name from `METHODS`, a method (`DANN(hidden=(100,))`), or a list of them whose
            losses are added (`["mcc", "dann"]`). An empty list trains on the source alone.
        batch_norm: statistics of the stages that are trained. `"joint"` normalizes the batches of
            both domains together, as most papers do. `"per_domain"` normalizes each domain by itself
            with shared scales and offsets; the model ends with the target statistics. `"frozen"`
            uses the statistics that the model came with. The statistics of frozen stages never
            change; a bottleneck uses joint statistics if those of the backbone are frozen.
        feature_layer: layer of the head whose output is aligned [N, D]; by default the bottleneck
            if the head has one, else the output of the backbone; for SHOT the input of the last layer.
        seed: of discriminators, dropout and random projections.

    Raises:
        InputError: an unsuitable head, unknown methods or an invalid combination, missing
            BatchNorm, or features that no trained weight can change.
    """

    def __init__(
        self, model: keras.Model, methods, *, batch_norm="joint", feature_layer=None, seed: int = 0
    ):
        check_choice("batch_norm", batch_norm, BATCH_NORM)
        methods = resolve_methods(methods)
        head = single_label_head(model)
        # The adapter computes in float32, whatever the precision of the model.
        super().__init__(name=f"{model.name}_adapter", dtype="float32")
        self.model, self.head, self.methods = model, head, methods
        self.batch_norm, self.seed = batch_norm, seed
        self.source_free = any(method.source_free for method in methods)
        self._aligns = any(method.in_steps for method in methods)
        self._views = any(method.views for method in methods)
        if feature_layer is None and self.source_free:
            feature_layer = LAST  # SHOT freezes only the last layer
        self.feature_layer = feature_layer
        frozen = backbone_of(model).frozen_stages
        self._set_batch_norm(frozen)
        # Frozen BatchNorm is folded, which takes less time for the same result.
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
            for number, method in enumerate(methods)
        ]
        for name, shape in (("step", ()), ("steps", ()), ("seen", (classes,))):
            weight = self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)
            setattr(self, name, weight)
        self.pseudo_labels = None
        if self.source_free:
            self.pseudo_labels = PseudoLabels(model, feature_layer, classes)
        self.trackers = {name: keras.metrics.Mean(name=name) for name in self._log_names()}
        self.built = True

    def _set_batch_norm(self, frozen):
        norms = norms_of(self.model, frozen)
        if any(method.name == "adabn" for method in self.methods):
            check_norms(self.model)
        if self.source_free and not norms_of(self.model):
            raise InputError(
                f"SHOT needs BatchNorm, which {self.model.name} does not have: give the head a "
                "bottleneck (Classification(names, bottleneck=256))."
            )
        if self.batch_norm == "per_domain" and not norms:
            raise InputError(
                f"batch_norm 'per_domain' needs BatchNorm in the trained part of {self.model.name}: "
                "use 'joint'."
            )
        in_backbone = {id(x) for s in backbone_of(self.model).stages for x in s.layers}
        for norm in norms:
            if id(norm) in in_backbone:
                norm.trainable = self.batch_norm != "frozen"

    def _check_features(self):
        aligning = [m.title for m in self.methods if m.in_steps and m.moves_features]
        if aligning and not self.encoder.trainable_variables:
            raise InputError(
                f"{aligning[0]} trains the features, but everything before the classifier is frozen: "
                "freeze less, or give the head a bottleneck (Classification(names, bottleneck=256))."
            )

    def _log_names(self):
        names = [] if self.source_free else ["class_loss"]
        if self._aligns:
            names += ["align_loss", "lambda", "target_entropy"]
            names += dict.fromkeys(name for method in self.methods for name in method.logs)
            in_steps = [method.name for method in self.methods if method.in_steps]
            if len(in_steps) > 1:
                names += [f"{log}_{name}" for name in in_steps for log in ("align_loss", "lambda")]
        return names

    # -- compile ----------------------------------------------------------------------------------

    def compile(self, optimizer="adam", loss=None, metrics=None, *, jit_compile=None, **options):
        """Compile like `keras.Model.compile`.

        Args:
            optimizer: a Keras optimizer; see `make_optimizer` for rates per stage.
            loss, metrics: for the labels and logits of the source; those of the head by default.
            jit_compile: by default whatever suits the machine.
            options: `run_eagerly`, `steps_per_execution`, …
        """
        if self.source_free and (loss is not None or metrics is not None):
            raise InputError("SHOT sees no labels: omit loss and metrics.")
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
            jit_compile=acceleration.jit_compile() if jit_compile is None else jit_compile,
            **options,
        )

    def make_optimizer(self, phase: Phase, steps: int) -> keras.optimizers.Optimizer:
        """Return the optimizer of a phase: rates per stage, schedule, decay, clipping, averaging.

        Discriminators use the learning rate of the head.

        Args:
            phase: only the settings of the optimizer are used.
            steps: of the whole training: epochs times steps_per_epoch.
        """
        return make_optimizer(self.model, phase, steps, self.trainable_variables)

    # -- a step -----------------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """Return logits for images; for a dict domain → images, features and logits of each."""
        if not isinstance(inputs, dict):
            return self.model(inputs, training=training)
        features, sizes = self._features(inputs, training)
        logits = ops.cast(self.classifier(features, training=training), "float32")
        features = ops.cast(features, "float32")
        outputs, start = {}, 0
        for domain, n in sizes.items():
            outputs[f"{domain}_features"] = features[start : start + n]
            outputs[f"{domain}_logits"] = logits[start : start + n]
            start += n
        return outputs

    def _features(self, inputs, training):
        """Return (features of all images, domain after domain; domain → number of images)."""
        sizes = {domain: ops.shape(images)[0] for domain, images in inputs.items()}
        if len({images.dtype for images in inputs.values()}) > 1:
            inputs = {domain: ops.cast(images, "float32") for domain, images in inputs.items()}
        remaining, features = dict(inputs), []
        if self.source_encoder is not None:
            features.append(self.source_encoder(remaining.pop("source"), training=training))
        features.append(self.encoder(_concatenated(remaining.values()), training=training))
        return _concatenated(features), sizes

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(x, dict):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total = 0.0
        if "source_logits" in y_pred:
            total = super().compute_loss(x, y, y_pred["source_logits"], sample_weight, training)
            self._track("class_loss", total)
            self._mark_seen(y)
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
            if several:
                logs = {**logs, f"align_loss_{method.name}": loss}
                logs[f"lambda_{method.name}"] = strength
            for name, value in logs.items():
                self._track(name, value)
        self._track("align_loss", align)
        self._track("lambda", strengths[0])
        self._track("target_entropy", ops.mean(losses.entropy(batch.target_logits)))
        return align

    def _mark_seen(self, labels):
        shares = labels
        if len(labels.shape) == 1:
            shares = ops.one_hot(ops.cast(labels, "int32"), len(self.head.names))
        self.seen.assign(ops.maximum(self.seen, ops.cast(ops.max(shares, axis=0) > 0, "float32")))

    def _track(self, name, value):
        self.trackers[name].update_state(ops.stop_gradient(value))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if isinstance(y_pred, dict):
            if "source_logits" not in y_pred:
                return self.get_metrics_result()
            return super().compute_metrics(x, y, y_pred["source_logits"], sample_weight)
        # The adaptation losses are not measured on validation images.
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        return {name: value for name, value in results.items() if name not in self.trackers}

    # -- fit --------------------------------------------------------------------------------------

    def fit(
        self,
        source=None,
        target=None,
        *,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        callbacks=(),
        verbose="auto",
        state=None,
        **options,
    ) -> keras.callbacks.History:
        """Train on batches of both domains, one of each per step; the shorter stream is repeated.

        Args:
            source: batches (images [N, H, W, 3], integers [N]), optionally with weights [N]: a
                `tf.data.Dataset`, a `PyDataset`, a data loader, or a function of a number n that
                returns the endless batches from the n-th on. None for SHOT.
            target: batches of images alone, in any of these forms; for FixMatch of (images, other
                views of them).
            epochs: ≥ 1.
            steps_per_epoch: by default the number of batches of the longer stream.
            callbacks: Keras callbacks.
            verbose: 0 prints nothing; otherwise a progress bar, and a line per epoch, on stderr.
            state: a folder for checkpoints. If the same call is repeated (in another process, after
                the same `compile` of the same model), training continues after the last finished
                epoch and ends with the same weights, provided that the streams give the same batches
                (shuffle with a seed).
            options: other arguments of `keras.Model.fit`, such as `validation_data`: labelled
                images, which influence nothing here.

        Returns:
            The `History` of all epochs: `class_loss`, `align_loss` (including the factor λ, except
            for adversarial losses, which apply λ to the gradient), `lambda` (of the first method),
            `target_entropy` (nats), `domain_accuracy` with a discriminator, the metrics on the
            source, and `loss`; with several methods also `align_loss_NAME` and `lambda_NAME`.

        Raises:
            InputError: a domain without images, images of another size, labels in the target, labels
                that the head does not have, or a class without source images.
            Diverged: the loss became NaN or infinite.
        """
        require_single_process("An adaptation")
        self._assert_compile_called("fit")
        streams = self._check_streams(source, target)
        lengths = [stream.length for stream in streams.values()]
        if steps_per_epoch is None:
            if not any(lengths):
                raise InputError("The length of the streams is unknown: give steps_per_epoch.")
            steps_per_epoch = max(length for length in lengths if length)
        if epochs < 1 or steps_per_epoch < 1:
            raise InputError("epochs and steps_per_epoch must be 1 or more.")
        self.step.assign(0.0)
        self.steps.assign(float(epochs * steps_per_epoch))
        self.seen.assign(ops.zeros(self.seen.shape))
        self.optimizer.build(self.trainable_variables)
        saved = None
        if state is not None:
            saved = SaveState(state, self._settings(epochs, steps_per_epoch))
            saved.load(self)
        done = saved.epoch if saved else 0
        if not done:
            self._adabn_first(streams, steps_per_epoch)
        if done < epochs:
            with quick_statistics(self.model):
                super().fit(
                    self._joined(streams, done * steps_per_epoch),
                    epochs=epochs,
                    initial_epoch=done,
                    steps_per_epoch=steps_per_epoch,
                    callbacks=[
                        Epochs(streams, steps_per_epoch, verbose != 0),
                        *callbacks,
                        *([saved] if saved else []),
                    ],
                    shuffle=False,
                    verbose=0,
                    **options,
                )
        else:  # the state was saved before Keras replaced the weights by their moving averages
            self.optimizer.finalize_variable_values(self.trainable_weights)
        if self.methods and self.methods[-1].name == "adabn":
            apply_adabn(self.model, streams["target"], most=steps_per_epoch)
        return self._history(saved)

    def _check_streams(self, source, target):
        """Return domain → stream, without a target that no method needs."""
        shape, streams = self.model.input_shape[1:], {}
        if self.source_free and source is not None:
            raise InputError(
                "SHOT never sees the source: train the model on it first, then call fit(target=…)."
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
        """Return the input of `keras.Model.fit` from a step on: (domain → images, labels, …)."""
        used = {k: v for k, v in streams.items() if k == "source" or self._aligns}

        def join(*batches):
            inputs, rest = {}, ()
            for domain, batch in zip(used, batches):
                if domain == "source":
                    inputs[domain], *rest = batch
                else:
                    inputs[domain] = images_of(batch)
                    if self._views:
                        inputs["view"] = batch[1]
            return (inputs, *rest)

        return together(used, start, join)

    def _adabn_first(self, streams, most):
        """Apply AdaBN before the training if it is the first of several methods, or for SHOT, whose
        first centroids would otherwise come from other statistics than its training batches."""
        first = len(self.methods) > 1 and self.methods[0].name == "adabn"
        if first or (self.source_free and self.batch_norm != "frozen" and norms_of(self.model)):
            apply_adabn(self.model, streams["target"], most=most)

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

    def _history(self, saved):
        history = getattr(self, "history", None)
        if not isinstance(history, keras.callbacks.History):  # nothing was trained
            history = keras.callbacks.History()
            history.history = {}
        if saved:
            history.history = saved.history
            history.epoch = list(range(saved.epoch))
        return history


def _concatenated(tensors):
    tensors = list(tensors)
    return tensors[0] if len(tensors) == 1 else ops.concatenate(tensors, axis=0)
