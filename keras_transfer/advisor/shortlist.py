"""Which backbones are looked at where none, or several, were named. Needs neither data nor Keras."""

from keras_transfer.models.sources.applications import BACKBONES, find_spec, weights_path
from keras_transfer.schedules.recipes import AUTO
from keras_transfer.utils.console import say

# Tried where no weights are on this machine: small and middling ones.
SHORTLIST = ("mobilenet_v2", "efficientnet_v2_b0", "resnet50")
_MOST_BACKBONES = 6


def named(backbones: str) -> list[str] | None:
    """`"auto"`, a name, or several with commas → as `advise` takes them; `auto` among them means all
    whose weights are on this machine."""
    names = [name.strip() for name in backbones.split(",") if name.strip()]
    if names == [AUTO]:
        return None
    found = [each for name in names for each in (candidates() if name == AUTO else [name])]
    return list(dict.fromkeys(found))


def candidates(image_size: int | None = None) -> list[str]:
    """Backbones whose ImageNet weights are on this machine, else those worth a download.

    At most six, those of `SHORTLIST` first, then the smaller ones; all take the image size.
    """
    fitting = [spec for spec in BACKBONES.values() if spec.min_size <= (image_size or spec.size)]
    present = [spec for spec in fitting if weights_path(spec).is_file()]
    if not present:
        return [find_spec(name).name for name in SHORTLIST]
    present.sort(key=lambda spec: (spec.name not in SHORTLIST, spec.parameters))
    if len(present) > _MOST_BACKBONES:
        left = ", ".join(spec.name for spec in present[_MOST_BACKBONES:])
        say(f"advisor: looks at {_MOST_BACKBONES} backbones; not at {left}")
    return [spec.name for spec in present[:_MOST_BACKBONES]]


def fallback_backbone(image_size: int | None = None) -> str:
    """The backbone where nothing can be measured: the first of the shortlist, or the largest of those
    whose weights are on this machine."""
    names = candidates(image_size)
    if names[0] in SHORTLIST:
        return names[0]
    return max(names, key=lambda name: BACKBONES[name].parameters)
