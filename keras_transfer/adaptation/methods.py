"""The methods: each a small object with its loss, its strength over the training, its defaults.

A method is plain data (frozen, comparable, written to files). What it learns itself, a domain
discriminator, it makes in `network`; the `Adapter` keeps and trains it.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_transfer.adaptation import check_methods, check_together, losses
from keras_transfer.errors import InputError

_MOST_PRODUCT = 4096  # width from which CDAN's product is randomised


class Batch(NamedTuple):
    """What a method sees of a step: float32; the numbers of images may differ.

    The last two are None where no method asks for them.
    """

    source_features: object  # [N, D]
    source_logits: object  # [N, C]
    target_features: object  # [M, D]
    target_logits: object  # [M, C]
    view_logits: object = None  # of other views of the target's images [M, C]
    pseudo_labels: object = None  # int [M], see `shot`


@dataclass(frozen=True)
class Method:
    """What all methods share.

    A method of your own is a frozen dataclass under this class with a `name`, a `title` and a `loss`;
    the `Adapter` takes it as an object.

    Attributes:
        weight: factor of λ, ≥ 0.
        gamma: λ = weight · (2 / (1 + e^(−gamma·p)) − 1) at progress p from 0 to 1; a gamma of 0
            is λ = weight throughout.
    """

    weight: float = 1.0
    gamma: float = 0.0

    name: ClassVar[str]
    title: ClassVar[str]
    in_steps: ClassVar[bool] = True  # has a loss in each step
    moves_features: ClassVar[bool] = True  # its loss says nothing to the classifier
    source_free: ClassVar[bool] = False
    views: ClassVar[bool] = False  # needs a second, strongly augmented view of the target
    logs: ClassVar[tuple[str, ...]] = ()  # names of what `loss` logs

    def __post_init__(self):
        for field in ("weight", "gamma"):
            if getattr(self, field) < 0:
                raise InputError(f"{self.name}: {field} must be at least 0.")

    def strength(self, progress):
        """λ at a progress (scalar tensor, 0 to 1)."""
        if not self.gamma:
            return self.weight * ops.ones_like(progress)
        return self.weight * (2.0 / (1.0 + ops.exp(-self.gamma * progress)) - 1.0)

    def network(self, features: int, classes: int, seed: int) -> keras.Model | None:
        """A new network of the method's own, for features of that width; None where it has none."""
        return None

    def loss(self, batch: Batch, strength, network=None, training=True):
        """(what is added to the loss of the classes, name in `logs` → scalar to be logged).

        Args:
            strength: λ, as `strength` gave it.
            network: what `network` made.
            training: passed on to the network.
        """
        raise NotImplementedError

    def to_dict(self) -> dict:
        """Plain data: the name and every field."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class DANN(Method):
    """Features that a discriminator cannot tell the domains by (Ganin et al., arXiv:1505.07818).

    The discriminator learns at full strength; the features get its gradient times −λ.

    Attributes:
        hidden: widths of the discriminator's hidden layers; the paper's for MNIST is (100,).
        batch_norm: BatchNorm after each of them, over both domains.
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
        seen = [
            losses.gradient_reversal(features, strength)
            for features in (batch.source_features, batch.target_features)
        ]
        logits = network(ops.concatenate(seen, axis=0), training=training)
        return self._judged(batch, logits)

    def _judged(self, batch, logits, *weights):
        n = ops.shape(batch.source_features)[0]
        source, target = logits[:n], logits[n:]
        found = losses.domain_confusion(source, target, *weights)
        return found, {"domain_accuracy": losses.domain_accuracy(source, target)}


@dataclass(frozen=True)
class CDAN(DANN):
    """DANN whose discriminator sees features and predictions together (arXiv:1705.10667).

    Their product, or where that is wider than 4096, its random estimate (`random_width` wide). No
    gradient reaches the predictions.

    Attributes:
        entropy_weights: count each example by 1 + e^(−H): CDAN+E.
        random_width: of the random estimate.
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
            x = losses.randomised_product(
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
        seen = [
            losses.gradient_reversal(features, strength),
            ops.stop_gradient(ops.softmax(logits)),
        ]
        weights = ()
        if self.entropy_weights:
            weights = [
                losses.certainty_weights(x) for x in (batch.source_logits, batch.target_logits)
            ]
        return self._judged(batch, network(seen, training=training), *weights)


@dataclass(frozen=True)
class CDANE(CDAN):
    """CDAN+E: CDAN in which certain predictions count up to twice (arXiv:1705.10667)."""

    entropy_weights: bool = True

    name = "cdan_e"
    title = "CDAN+E"


@dataclass(frozen=True)
class DeepCORAL(Method):
    """Features with the same covariance in both domains (Sun and Saenko, arXiv:1607.01719).

    The paper wants λ such that both losses end about equal, and gives no number. The default is
    ours: with 1 the loss, divided by 4D², hardly moved the features that we tried. Look at
    `align_loss` beside `class_loss`.
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
        found = losses.mmd(batch.source_features, batch.target_features, self.scales)
        return strength * found, {}


@dataclass(frozen=True)
class MCC(Method):
    """Predictions on the target that confuse no classes (Jin et al., arXiv:1912.03699).

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

    Where the model is sure of a target image, the class that it names is what it has to answer for
    another, strongly augmented view of it. As the Transfer-Learning-Library has it for adaptation.

    Attributes:
        threshold: least probability of the class named, 0 to 1.
    """

    threshold: float = 0.9

    name = "fixmatch"
    title = "FixMatch"
    moves_features = False
    views = True
    logs = ("sure",)

    def loss(self, batch, strength, network=None, training=True):
        found, sure = losses.pseudo_labels(batch.target_logits, batch.view_logits, self.threshold)
        return strength * found, {"sure": sure}


@dataclass(frozen=True)
class AdaBN(Method):
    """BatchNorm's statistics are those of the target, the weights stay (Li et al., arXiv:1603.04779).

    It has no loss: it acts once, where it stands in the list of methods. Alone or last: after the
    training. First of several: before it.
    """

    name = "adabn"
    title = "AdaBN"
    in_steps = False
    moves_features = False


@dataclass(frozen=True)
class SHOT(Method):
    """From a model of the source and target images alone (Liang et al., arXiv:2002.08546).

    The classifier stands still. The features learn to make predictions that are certain and
    diverse, and that agree with pseudo-labels: the class whose centroid among the target's features
    was nearest when the epoch began; `weight` is on all of it. It needs BatchNorm somewhere, as its
    authors' bottleneck has: without any it unlearns (see docs/adaptation.md).

    Attributes:
        beta: weight of the pseudo-labels, ≥ 0 (the paper takes 0.1 for digits).
    """

    beta: float = 0.3

    name = "shot"
    title = "SHOT"
    source_free = True

    def loss(self, batch, strength, network=None, training=True):
        agreement = keras.losses.sparse_categorical_crossentropy(
            batch.pseudo_labels, batch.target_logits, from_logits=True
        )
        certain = losses.information_maximisation(batch.target_logits)
        return strength * (certain + self.beta * ops.mean(agreement)), {}


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (DANN, DeepCORAL, MMD, CDAN, CDANE, MCC, FixMatch, AdaBN, SHOT)
}


def resolve_methods(methods) -> tuple[Method, ...]:
    """The methods that are meant by a name, a method, or a list of these; `[]` and None are none.

    Raises:
        InputError: no such method, one of them twice, or a combination that cannot be.
    """
    if methods is None:
        methods = ()
    if isinstance(methods, (str, Method, type)):
        methods = (methods,)
    found = tuple(_resolved(method) for method in methods)
    check_together([method.name for method in found])
    return found


def _resolved(method):
    if isinstance(method, str):
        check_methods([method])
        return METHODS[method]()
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if not isinstance(method, Method):
        raise InputError(f"{method!r} is no method: give one of {', '.join(METHODS)}.")
    return method
