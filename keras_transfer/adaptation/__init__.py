"""Domain adaptation: labelled source images, unlabelled target images, a model for the target.

`losses` are the formulas, `methods` say which of them when, `adapter` trains with them, `adabn` and
`shot` do what has to be done outside of the steps, `selection` and `choosing` say which epoch to
keep, `easy` puts all together for `ImageData`, `running` for folders and a run directory.
Loaded when it is first used: the names of the methods are known without Keras.
"""

from collections.abc import Sequence

from keras_transfer.errors import InputError
from keras_transfer.utils.lazy import lazy_names

METHOD_NAMES = ("dann", "coral", "mmd", "cdan", "cdan_e", "mcc", "fixmatch", "adabn", "shot")
BATCH_NORM = ("joint", "per_domain", "frozen")
KEEP = ("last", "selected")

_NAMES = {
    "METHODS": "methods",
    "AdaBN": "methods",
    "Adaptation": "running",
    "Adapted": "api",
    "Adapter": "adapter",
    "CDAN": "methods",
    "CDANE": "methods",
    "DANN": "methods",
    "DeepCORAL": "methods",
    "EpochChoice": "epoch_selection",
    "FixMatch": "methods",
    "MCC": "methods",
    "MMD": "methods",
    "Method": "methods",
    "SHOT": "methods",
    "Selector": "selection",
    "adapt": "api",
    "apply_adabn": "adabn",
    "default_phase": "api",
    "feature_map": "feature_maps",
    "feature_models": "network",
    "losses": "",
}

__all__ = ["BATCH_NORM", "KEEP", "METHOD_NAMES", "check_methods", *_NAMES]


def check_methods(names: Sequence[str]) -> None:
    """Says before Keras is imported what is wrong with names of methods that shall go together.

    Raises:
        InputError: no such method, one of them twice, or a combination that cannot be.
    """
    for name in names:
        if name not in METHOD_NAMES:
            raise InputError(f"Unknown method '{name}': give one of {', '.join(METHOD_NAMES)}.")
    check_together(names)


def check_together(names: Sequence[str]) -> None:
    """The same for methods of any name: whether they go together."""
    if len(set(names)) < len(names):
        raise InputError(f"A method is there twice: {', '.join(names)}.")
    if len(names) > 1 and "shot" in names:
        raise InputError(
            f"Cannot combine {', '.join(names)}: SHOT never sees the source, the others need it. "
            "Run it on the model that the others have made."
        )
    if "adabn" in names[1:-1]:
        raise InputError("AdaBN comes first (before the training) or last (after it).")


def no_batch_norm(name: str) -> InputError:
    """What AdaBN says of a model or backbone without BatchNorm."""
    return InputError(
        f"AdaBN needs BatchNorm, and {name} has none: take another method or backbone."
    )


__getattr__, __dir__ = lazy_names(__name__, _NAMES)
