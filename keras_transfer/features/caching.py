"""Where it pays to compute the frozen part once: a decision, with its reason, for each phase."""

import importlib.util
from dataclasses import asdict, dataclass

from keras_transfer.errors import InputError
from keras_transfer.features.store import Store, shown_bytes
from keras_transfer.modalities.image.augment import Mix, View, resolve_augmentation, views_of
from keras_transfer.utils.files import free_memory

ENGINE_NAMES = ("auto", "keras", "openvino")
CACHES = ("auto", "off", "memory", "disk")


def check_engine(name: str) -> None:
    """Raises InputError where there is no such engine, or it is not installed."""
    if name not in ENGINE_NAMES:
        raise InputError(f"Unknown engine '{name}': give one of {', '.join(ENGINE_NAMES)}.")
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        raise InputError(
            "Engine 'openvino' is not installed: pip install 'keras_transfer[openvino]', or leave "
            "--engine auto."
        )


_MOST_VIEWS = 4
_LEAST_GAIN = 1.2
# An inference graph against the forward part of a training step, measured: 0.4 to 0.5
# (`scripts/benchmark.py`).
_ENGINE = 0.5


@dataclass(frozen=True)
class Caching:
    """How a phase gets its activations.

    Attributes:
        where: `"disk"` or `"memory"`.
        views: number of views of each training image.
        mirror: the two views are the image and its mirror image (the closed path's).
        dtype: that they are kept in.
        bytes: that they take, estimated.
        gain: estimated time of the phase without over that with the cache.
    """

    where: str
    views: int
    mirror: bool
    dtype: str
    bytes: int
    gain: float

    def to_dict(self) -> dict:
        return asdict(self)

    def training_views(self, augmentation) -> tuple[View, ...]:
        if self.mirror:
            return (View(), View("mirror"))[: self.views]
        return views_of(augmentation, self.views)

    def __str__(self):
        kept = f"{self.views} views" if self.views > 1 else "one view"
        return (
            f"trains on activations, {kept} an image, {shown_bytes(self.bytes)} of {self.dtype} "
            f"{'on disk' if self.where == 'disk' else 'in memory'} (estimated gain {self.gain:.1f})"
        )


def plan_caching(
    asked: str,
    planned,
    model,
    images: dict[str, int],
    augmentation,
    mix: Mix = Mix(),
    *,
    store: Store,
    dtype: str = "auto",
) -> tuple[Caching | None, str]:
    """(how, why) of a phase; None where it trains on images.

    Args:
        asked: a name of `CACHES`.
        planned: the phase.
        model: of `build_model`.
        images: number of them in `"train"` and, if there are any, `"val"`.
        augmentation, mix: of the phase.
        dtype: `"auto"` is the precision of the prefix where that fits, else float16.

    Raises:
        InputError: memory or disk was asked for and has no room.
    """
    from keras_transfer.features.prefix import prefix_of

    closed = planned.phase.solver == "logistic"
    if planned.frozen == 0:
        return None, "nothing is frozen"
    if asked == "off" and not closed:
        return None, "as asked for"
    if mix and not closed:
        return None, f"{mix.kind} mixes images with each other"
    prefix = prefix_of(model, planned.frozen, planned.image_size)
    native = prefix.model.outputs[0].dtype if dtype == "auto" else dtype
    choices = [native] if dtype != "auto" or native != "float32" else ["float32", "float16"]
    resolved = resolve_augmentation(augmentation)
    if closed:
        most = 2 if resolved.flip else 1
    elif len(views_of(augmentation, 2)) == 1:
        most = 1
    else:
        most = planned.phase.views or min(_MOST_VIEWS, max(1, planned.epochs // 2))

    where = "memory" if asked in ("memory", "off") else "disk"
    room = free_memory() // 2 if where == "memory" else store.free()
    fewest = most if closed or planned.phase.views else 1
    for kept in choices:
        for views in range(most, fewest - 1, -1):
            rows = images["train"] * views + images.get("val", 0)
            size = rows * prefix.size * (2 if kept != "float32" else 4)
            if size <= room:
                gain = _gain(model, planned, images, views)
                if asked == "auto" and not closed and gain < _LEAST_GAIN:
                    return None, f"the cache would gain too little (estimated {gain:.1f} times)"
                return Caching(where, views, closed, kept, size, gain), ""
    message = f"{shown_bytes(size)} of activations do not fit into {shown_bytes(room)} free {where}"
    if asked == "auto" and not closed:
        return None, message
    raise InputError(
        f"Phase '{planned.phase.name}': {message}. Make room (`keras-transfer cache`), allow more "
        "(KERAS_TRANSFER_CACHE_GB), set fewer views, or "
        + ("train in steps (--set solver=gradient)." if closed else "use --cache off.")
    )


def _gain(model, planned, images, views):
    from keras_transfer.features.prefix import stage_costs
    from keras_transfer.models.builders import backbone_at

    costs = stage_costs(backbone_at(model, planned.image_size))
    prefix, suffix = sum(costs[: planned.frozen]), sum(costs[planned.frozen :])
    train, val = images["train"], images.get("val", 0)
    above = planned.epochs * suffix * (3 * train + val)  # a step back costs two forward
    without = planned.epochs * prefix * (train + val) + above
    return without / (_ENGINE * prefix * (views * train + val) + above)
