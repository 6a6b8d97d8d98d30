"""Describe how training clips vary, as plain data: presets and fields (no TensorFlow)."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.modalities.documents import read_fields


@dataclass(frozen=True)
class ClipAugmentation:
    """How much a training clip may vary from epoch to epoch.

    There is no gain, because each clip is scaled by its own maximum.

    Attributes:
        shift: largest shift in time, as a share of the window, in [0, 1].
        speed: largest change of speed, in [0, 1]: at 0.1 a clip is 10 % faster and higher, or slower and
            lower, as another speaker's might be.
        noise: largest amplitude of white noise, as a share of the clip's, in [0, 1]; 0.1 is 20 dB.
        bands, times: largest share of the image's rows and columns that one mask covers, in [0, 1];
            there are two masks of each (SpecAugment, arXiv:1904.08779).

    Raises:
        InputError: if a value is out of its range.
    """

    shift: float = 0.1
    speed: float = 0.15
    noise: float = 0.0
    bands: float = 0.1
    times: float = 0.1

    flip = False

    def __post_init__(self):
        for name, value in asdict(self).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= 1:
                raise InputError(f"augmentation: {name} must be between 0 and 1, not {value!r}")

    @property
    def changes(self) -> bool:
        """Whether variants differ from the clip as in evaluation."""
        return any(asdict(self).values())

    def to_dict(self) -> dict:
        """Return plain data, which `resolve_augmentation` accepts."""
        return asdict(self)


PRESETS = {
    "none": ClipAugmentation(0.0, 0.0, 0.0, 0.0, 0.0),
    "light": ClipAugmentation(),
    "medium": ClipAugmentation(noise=0.1, bands=0.2, times=0.2),
    "heavy": ClipAugmentation(shift=0.2, noise=0.3, bands=0.3, times=0.3),
}


def resolve_augmentation(augmentation) -> ClipAugmentation:
    """Return the augmentation that a name, a file or an object stands for.

    Args:
        augmentation: a name in `PRESETS`; a `ClipAugmentation`, or a dict of its fields, which may
            start from a preset (`{"preset": "medium", "noise": 0}`) and say `"flip": False`, which
            is always so; or the path of a .yaml or .json file that contains such a dict.

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(augmentation, ClipAugmentation):
        return augmentation
    if isinstance(augmentation, Mapping):
        return _from_dict(dict(augmentation))
    if isinstance(augmentation, (str, os.PathLike)):
        if str(augmentation) in PRESETS:
            return PRESETS[str(augmentation)]
        if Path(augmentation).suffix in (".yaml", ".yml", ".json"):
            return _from_dict(read_fields(Path(augmentation)))
    raise InputError(
        f"augment: {augmentation!r} does not suit audio clips; choose one of {', '.join(PRESETS)}, or "
        f"give the fields {', '.join(_FIELDS)}"
    )


def _from_dict(values) -> ClipAugmentation:
    preset = values.pop("preset", "light")
    if values.pop("flip", False):
        raise InputError("augment: audio clips cannot be mirrored; leave out flip")
    unknown = [str(name) for name in values if name not in _FIELDS]
    if unknown:
        raise InputError(
            f"augment: audio clips have no {', '.join(unknown)}; the fields are preset, "
            f"{', '.join(_FIELDS)}"
        )
    if str(preset) not in PRESETS:
        raise InputError(
            f"augment: unknown preset {preset!r} for audio clips; choose one of {', '.join(PRESETS)}"
        )
    return replace(PRESETS[str(preset)], **values)


_FIELDS = tuple(field.name for field in fields(ClipAugmentation))
