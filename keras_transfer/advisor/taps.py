"""Choose what a head reads: the last stage or all stages, of one backbone or of several."""

from dataclasses import dataclass

import numpy as np

from keras_transfer.advisor.inputs import sized_backbone
from keras_transfer.data.examples import ImageData
from keras_transfer.data.splits import stratified_sample
from keras_transfer.features.closed_form import solve
from keras_transfer.features.prefix import Prefix
from keras_transfer.modalities.image.framing import Framing
from keras_transfer.models import TAPS
from keras_transfer.models.sources.applications import names_of

_MOST = 3000  # examples


@dataclass(frozen=True)
class Taps:
    """What a head should read. Print it for one line with the reason.

    Attributes:
        backbone: name for `build_model`: the given one, or one of several.
        taps: `"last"` or `"all"`.
        losses: (backbone, taps) → loss of the closed form in cross-validation, the mean over several
            heads. The lowest was chosen.
    """

    backbone: str
    taps: str
    losses: dict[tuple[str, str], float]

    def __str__(self):
        if len(self.losses) < 2:
            return f"taps {self.taps}: there is nothing to compare"
        texts = [f"{_form(*form)} {loss:.3f}" for form, loss in self.losses.items()]
        return f"head on {_form(self.backbone, self.taps)}: cross-validated loss {', '.join(texts)}"


def _form(backbone, taps):
    return f"{'all stages' if taps == 'all' else 'the last stage'} of {backbone}"


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
    """Return which taps, and which of several backbones, give the best head in closed form.

    The heads are compared by their loss in cross-validation on at most 3000 training images. Groups
    of the split, and copies of an image, stay in one fold. All features come from one pass.

    Args:
        data: any task, or several heads; only training images are read.
        backbone: a name, the path of a source model, or several joined by `+`. Of those, each is
            compared alone, and all together.
        image_size, weights: see `build_model`; the data decide a crop that is open.

    Raises:
        InputError: the backbone is unknown or cannot be built at this size.
    """
    from keras_transfer.features.extraction import extract
    from keras_transfer.models.builders import by_head, head_for
    from keras_transfer.models.framing import framing_of

    network = sized_backbone(backbone, image_size, data, taps="all", weights=weights)
    names = names_of(backbone)
    train = _sample(data, seed)
    rows = np.arange(len(train))
    crop = framing_of(network).square[1]
    prefix = Prefix(network, f"{network.name}, all taps", crop=crop)
    activations = extract(prefix, train, engine=engine, store=store)
    features = activations.gather(rows).astype("float32")
    several = head_for(data)
    heads = several if isinstance(several, dict) else {"": several}
    losses = {}
    for form, (columns, part) in _forms(network.cuts, names).items():
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
        losses[form] = float(np.mean(known))
    best = min(losses, key=lambda form: losses[form]) if losses else ("+".join(names), TAPS[0])
    return Taps(*best, losses)


def _forms(cuts, names) -> dict[tuple[str, str], tuple]:
    """Return (backbone, taps) → (features that the head reads, positions of the last stage in them)."""
    if not cuts.tapped:
        return {}
    groups = [[number] for number in range(len(names))]
    groups += [list(range(len(names)))] if len(names) > 1 else []
    forms: dict[tuple[str, str], tuple] = {}
    for group in groups:
        name = "+".join(names[number] for number in group)
        last, every = cuts.columns(group, last=True), cuts.columns(group)
        forms[name, "last"] = last, None
        forms[name, "all"] = every, np.searchsorted(every, last)
    return forms


def _sample(data, seed):
    train = data.examples["train"]
    if len(train) <= _MOST:
        return train
    labels = train.labels
    if data.task == "single_label":
        return train.take(
            np.sort(stratified_sample(labels, _MOST, groups=train.together, seed=seed))
        )
    rows = np.random.default_rng(seed).permutation(len(train))[:_MOST]
    return train.take(np.sort(rows))
