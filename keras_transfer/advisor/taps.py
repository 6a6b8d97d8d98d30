"""Choose what a head reads: the last stage or all stages."""

from dataclasses import dataclass

import numpy as np

from keras_transfer.advisor.inputs import random_sample, sized_backbone
from keras_transfer.data.examples import ImageData
from keras_transfer.data.splits import stratified_sample
from keras_transfer.features.closed_form import solve
from keras_transfer.features.prefix import prefix_of
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models import TAPS

_MOST = 3000  # examples


@dataclass(frozen=True)
class Taps:
    """What a head should read. Print it for one line with the reason.

    Attributes:
        taps: `"last"` or `"all"`, for `build_model`.
        losses: loss of the closed form in cross-validation with each, the mean over several heads.
    """

    taps: str
    losses: dict[str, float]

    def __str__(self):
        if not self.losses:
            return f"taps {self.taps}: there is nothing to compare"
        texts = [f"{taps} {loss:.3f}" for taps, loss in self.losses.items()]
        return f"taps {self.taps}: cross-validated loss {', '.join(texts)}"


def choose_taps(
    data: ImageData,
    backbone: str,
    *,
    image_size: int | Framing | None = None,
    weights: str | None = "imagenet",
    engine: str = "auto",
    seed: int = 0,
    store=None,
) -> Taps:
    """Return which taps give the better head in closed form.

    The heads are compared by their loss in cross-validation on at most 3000 training images. Groups
    of the split, and copies of an image, stay in one fold. All features come from one pass.

    Args:
        data: any task, or several heads; only training images are read.
        backbone: a name, the path of a source model, or several joined by `+`.
        image_size, weights: see `build_model`; the data decide a crop that is open.

    Raises:
        InputError: the backbone is unknown or cannot be built at this size.
    """
    from keras_transfer.features.extraction import extract
    from keras_transfer.models.builders import by_head, head_for

    network = sized_backbone(backbone, image_size, data, taps="all", weights=weights)
    train = _sample(data, seed)
    rows = np.arange(len(train))
    prefix = prefix_of(network, len(network.stages))
    activations = extract(prefix, train, engine=engine, store=store)
    features = activations.gather(rows).astype("float32")
    several = head_for(data)
    heads = several if isinstance(several, dict) else {"": several}
    last, every = network.cuts.last_columns(), np.arange(features.shape[1])
    losses = {}
    for taps, columns, part in zip(TAPS, (last, every), (None, last)):
        found: list[float | None] = []
        for name, labels in by_head(heads, train.labels).items():
            head = heads[name].fitted(labels)
            targets = head.from_units(labels)
            inputs = features[:, columns]
            solved = solve(head.task, inputs, targets, train.together, part=part, seed=seed)
            found.append(solved.cross_validation)
        known = [loss for loss in found if loss is not None]
        if len(known) < len(found):  # a class is too small for folds
            break
        losses[taps] = float(np.mean(known))
    return Taps(min(losses, key=lambda taps: losses[taps], default=TAPS[0]), losses)


def _sample(data, seed):
    train = data.examples["train"]
    if data.task == "single_label" and len(train) > _MOST:
        labels = train.labels
        return train.take(
            np.sort(stratified_sample(labels, _MOST, groups=train.together, seed=seed))
        )
    return random_sample(train, _MOST, seed)
