"""Domain adaptation: labelled source pictures, unlabelled target pictures, a model for the target.

`losses` are the formulas, `methods` say which of them when, `adapter` trains with them, `adabn` and
`shot` do what has to be done outside of the steps, `easy` puts all together for `ImageData`.
Loaded when it is first used: the names of the methods are known without Keras.
"""

import importlib

METHOD_NAMES = ("dann", "coral", "mmd", "cdan", "cdan_e", "mcc", "fixmatch", "adabn", "shot")
BATCH_NORM = ("joint", "per_domain", "frozen")

_NAMES = {
    "METHODS": "methods",
    "AdaBN": "methods",
    "Adapter": "adapter",
    "CDAN": "methods",
    "CDANE": "methods",
    "DANN": "methods",
    "DeepCORAL": "methods",
    "FixMatch": "methods",
    "MCC": "methods",
    "MMD": "methods",
    "Method": "methods",
    "SHOT": "methods",
    "adapt": "easy",
    "apply_adabn": "adabn",
    "default_phase": "easy",
    "feature_models": "network",
    "losses": None,
}

__all__ = ["BATCH_NORM", "METHOD_NAMES", *_NAMES]


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = importlib.import_module(f"{__name__}.{_NAMES[name] or name}")
    return getattr(module, name) if _NAMES[name] else module


def __dir__():
    return sorted(__all__)
