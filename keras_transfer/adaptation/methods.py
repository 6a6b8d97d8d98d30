"""Adaptation methods: each a small object with a loss, a strength over the training, and defaults.

A method is plain data (frozen, comparable, saved in files). If it needs a network of its own, such as
a domain discriminator, it creates one in `network`, which the `Adapter` stores and trains.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import losses
from keras_transfer.adaptation.options import check_combination, check_methods
from keras_transfer.errors import InputError

_MOST_PRODUCT = 4096  # largest width of the exact product in CDAN


class Batch(NamedTuple):
    """The tensors of a step, float32. The domains may have different numbers of images.

    The last two are None if no method needs them.
    """

    source_features: object  # [N, D]
    source_logits: object  # [N, C]
    target_features: object  # [M, D]
    target_logits: object  # [M, C]
    view_logits: object = None  # of other views of the target images [M, C]
    pseudo_labels: object = None  # int [M], see `PseudoLabels`


@dataclass(frozen=True)
class Method:
    """Base class of the methods.

    To write your own method, derive a frozen dataclass with a `name`, a `title` and a `loss`, and
    pass an instance to the `Adapter`.

    Attributes:
        weight: factor of λ, ≥ 0.
        gamma: λ = weight · (2 / (1 + e^(−gamma·p)) − 1) at progress p from 0 to 1; if gamma is 0,
            λ = weight throughout.
    """

    weight: float = 1.0
    gamma: float = 0.0

    name: ClassVar[str]
    title: ClassVar[str]
    in_steps: ClassVar[bool] = True  # has a loss in each step
    moves_features: ClassVar[bool] = True  # the loss trains only what precedes the classifier
    source_free: ClassVar[bool] = False
    views: ClassVar[bool] = False  # needs a second, strongly augmented view of the target
    logs: ClassVar[tuple[str, ...]] = ()  # names of the scalars that `loss` returns

    def __post_init__(self):
        for field in ("weight", "gamma"):
            if getattr(self, field) < 0:
                raise InputError(f"{self.name}: {field} must be at least 0.")

    def strength(self, progress):
        """Return λ at a progress (scalar tensor, 0–1)."""
        if not self.gamma:
            return self.weight * ops.ones_like(progress)
        return self.weight * (2.0 / (1.0 + ops.exp(-self.gamma * progress)) - 1.0)

    def network(self, features: int, classes: int, seed: int) -> keras.Model | None:
        """Create the network of the method for features of a width, if it needs one."""
        return None

    def loss(self, batch: Batch, strength, network=None, training=True):
        """Return (term to add to the classification loss, name in `logs` → scalar to log).

        Args:
            batch: the tensors of the step.
            strength: λ from `strength`.
            network: created by `network`.
            training: passed to the network.
        """
        raise NotImplementedError

    def to_dict(self) -> dict:
        """Return the name and every field, as plain data."""
        fields = dataclasses.asdict(self).items()
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in fields}
        return {"name": self.name, **plain}


@dataclass(frozen=True)
class DANN(Method):
    """Features by which a discriminator cannot tell the domains apart (Ganin et al., arXiv:1505.07818).

    The discriminator learns at full strength; the features receive its gradient times −λ.

    Attributes:
        hidden: widths of the hidden layers of the discriminator; (100,) for MNIST in the paper.
        batch_norm: whether BatchNorm, over both domains, follows each of them.
    """

    gamma: float = 10.0
    hidden: tuple[int, ...] = (1024, 1024)
    batch_norm: bool = True

    name = "dann"
    title = "DANN"
    logs = ("domain_accuracy",)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "hidden", tuple(self.hidden))

    def network(self, features, classes, seed):
        inputs = keras.Input((features,), dtype="float32")
        return keras.Model(inputs, self._discriminate(inputs, seed), name=f"{self.name}_domains")

    def _discriminate(self, x, seed):
        seeds = iter(np.random.SeedSequence(seed).generate_state(len(self.hidden) + 1).tolist())

        def dense(width):
            start = keras.initializers.GlorotUniform(seed=next(seeds))
            return keras.layers.Dense(width, kernel_initializer=start, dtype="float32")

        for width in self.hidden:
            x = dense(width)(x)
            if self.batch_norm:
                x = keras.layers.BatchNormalization(momentum=0.9, dtype="float32")(x)
            x = keras.layers.ReLU(dtype="float32")(x)
        return dense(1)(x)

    def loss(self, batch, strength, network=None, training=True):
        features = ops.concatenate([batch.source_features, batch.target_features], axis=0)
        reversed_features = losses.gradient_reversal(features, strength)
        return self._confusion(batch, network(reversed_features, training=training))

    def _confusion(self, batch, logits, *weights):
        n = ops.shape(batch.source_features)[0]
        source, target = logits[:n], logits[n:]
        loss = losses.domain_confusion(source, target, *weights)
        return loss, {"domain_accuracy": losses.domain_accuracy(source, target)}


@dataclass(frozen=True)
class CDAN(DANN):
    """DANN with a discriminator that sees features and predictions jointly (arXiv:1705.10667).

    It takes their product, or a random estimate of it if the product is wider than 4096. No gradient
    reaches the predictions.

    Attributes:
        entropy_weights: weight each example by 1 + e^(−H), as in CDAN+E.
        random_width: width of the random estimate.
    """

    entropy_weights: bool = False
    random_width: int = 1024

    name = "cdan"
    title = "CDAN"

    def network(self, features, classes, seed):
        shapes = [keras.Input((width,), dtype="float32") for width in (features, classes)]
        if features * classes <= _MOST_PRODUCT:
            x = losses.outer_product(*shapes)
        else:
            x = losses.randomized_product(
                *(self._random_map(tensor, seed + i) for i, tensor in enumerate(shapes))
            )
        return keras.Model(shapes, self._discriminate(x, seed), name=f"{self.name}_domains")

    def _random_map(self, tensor, seed):
        return keras.layers.Dense(
            self.random_width,
            use_bias=False,
            trainable=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=seed),
            dtype="float32",
        )(tensor)

    def loss(self, batch, strength, network=None, training=True):
        features = ops.concatenate([batch.source_features, batch.target_features], axis=0)
        logits = ops.concatenate([batch.source_logits, batch.target_logits], axis=0)
        inputs = [
            losses.gradient_reversal(features, strength),
            ops.stop_gradient(ops.softmax(logits)),
        ]
        weights = ()
        if self.entropy_weights:
            weights = [
                losses.certainty_weights(x) for x in (batch.source_logits, batch.target_logits)
            ]
        return self._confusion(batch, network(inputs, training=training), *weights)


@dataclass(frozen=True)
class CDANE(CDAN):
    """CDAN+E: CDAN that weights certain predictions up to twice as much (arXiv:1705.10667)."""

    entropy_weights: bool = True

    name = "cdan_e"
    title = "CDAN+E"


@dataclass(frozen=True)
class DeepCORAL(Method):
    """Features with the same covariance in both domains (Sun and Saenko, arXiv:1607.01719).

    The paper recommends a λ with which both losses end about equal, and gives no number. The default
    is larger than 1, because the loss is divided by 4D² and hardly moved the features otherwise.
    Compare `align_loss` with `class_loss`.
    """

    weight: float = 10.0

    name = "coral"
    title = "DeepCORAL"

    def loss(self, batch, strength, network=None, training=True):
        return strength * losses.coral(batch.source_features, batch.target_features), {}


@dataclass(frozen=True)
class MMD(Method):
    """Features with the same distribution, by a multi-kernel MMD (DAN, arXiv:1502.02791).

    Attributes:
        scales: the bandwidths are 2^k times the mean squared distance, see `losses.mmd`.
    """

    scales: tuple[int, ...] = losses.MMD_SCALES

    name = "mmd"
    title = "MMD (DAN)"

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(self.scales))

    def loss(self, batch, strength, network=None, training=True):
        loss = losses.mmd(batch.source_features, batch.target_features, self.scales)
        return strength * loss, {}


@dataclass(frozen=True)
class MCC(Method):
    """Target predictions with minimum class confusion (Jin et al., arXiv:1912.03699).

    Attributes:
        temperature: divides the logits, > 0.
    """

    temperature: float = 2.5

    name = "mcc"
    title = "MCC"
    moves_features = False

    def loss(self, batch, strength, network=None, training=True):
        return strength * losses.mcc(batch.target_logits, self.temperature), {}


@dataclass(frozen=True)
class FixMatch(Method):
    """Predictions that strong augmentation does not change (Sohn et al., arXiv:2001.07685).

    A confident prediction for a target image is the label of another, strongly augmented view of the
    image, as in the adaptation examples of the Transfer-Learning-Library.

    Attributes:
        threshold: lowest probability of a confident prediction, 0–1.
    """

    threshold: float = 0.9

    name = "fixmatch"
    title = "FixMatch"
    moves_features = False
    views = True
    logs = ("sure",)

    def loss(self, batch, strength, network=None, training=True):
        loss, share = losses.pseudo_labels(batch.target_logits, batch.view_logits, self.threshold)
        return strength * loss, {"sure": share}


@dataclass(frozen=True)
class AdaBN(Method):
    """BatchNorm statistics of the target; the weights do not change (Li et al., arXiv:1603.04779).

    It has no loss and acts once: after the training if it is the only or the last method, before
    the training if it is the first of several.
    """

    name = "adabn"
    title = "AdaBN"
    in_steps = False
    moves_features = False


@dataclass(frozen=True)
class SHOT(Method):
    """Adaptation from a source model and target images alone (Liang et al., arXiv:2002.08546).

    The classifier is frozen. The features learn to give predictions that are certain and diverse,
    and that agree with pseudo-labels: the class whose centroid among the target features was nearest
    at the start of the epoch. `weight` scales the whole loss. The model needs BatchNorm, as in the
    bottleneck of the authors: without any, accuracy falls (see docs/adaptation.md).

    Attributes:
        beta: weight of the pseudo-labels, ≥ 0 (0.1 for digits in the paper).
    """

    beta: float = 0.3

    name = "shot"
    title = "SHOT"
    source_free = True

    def loss(self, batch, strength, network=None, training=True):
        agreement = keras.losses.sparse_categorical_crossentropy(
            batch.pseudo_labels, batch.target_logits, from_logits=True
        )
        certain = losses.information_maximization(batch.target_logits)
        return strength * (certain + self.beta * ops.mean(agreement)), {}


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (DANN, DeepCORAL, MMD, CDAN, CDANE, MCC, FixMatch, AdaBN, SHOT)
}


def resolve_methods(methods) -> tuple[Method, ...]:
    """Return the methods for a name, a method, or a list of these; () for `[]` and None.

    Raises:
        InputError: an unknown method, a duplicate, or an invalid combination.
    """
    if methods is None:
        methods = ()
    if isinstance(methods, (str, Method, type)):
        methods = (methods,)
    resolved = tuple(_resolved(method) for method in methods)
    check_combination([method.name for method in resolved])
    return resolved


def _resolved(method):
    if isinstance(method, str):
        check_methods([method])
        return METHODS[method]()
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if not isinstance(method, Method):
        raise InputError(f"{method!r} is not a method. Choose from {', '.join(METHODS)}.")
    return method
