"""Domain adaptation: labelled source images and unlabelled target images give a model for the target.

`losses` contains the formulas, `methods` combines them, `adapter` trains with them, `selection`
scores epochs without target labels; `api` adapts a model to `ImageData`, `run` folders to a run
directory. The room imports from `advisor`, `training` and the rooms below; method names are known
without Keras.
"""

from keras_transfer.utils.names import lazy_names

METHOD_NAMES = ("dann", "coral", "mmd", "cdan", "cdan_e", "mcc", "fixmatch", "adabn", "shot")
BATCH_NORM = ("joint", "per_domain", "frozen")
KEEP = ("last", "selected")

_NAMES = {
    "METHODS": "methods",
    "AdaBN": "methods",
    "Adaptation": "run",
    "Adapted": "api",
    "Adapter": "adapter",
    "CDAN": "methods",
    "CDANE": "methods",
    "DANN": "methods",
    "DeepCORAL": "methods",
    "EpochChoice": "callbacks",
    "FixMatch": "methods",
    "MCC": "methods",
    "MMD": "methods",
    "Method": "methods",
    "SHOT": "methods",
    "Selector": "selection",
    "adapt": "api",
    "apply_adabn": "target_passes",
    "check_methods": "options",
    "default_phase": "api",
    "feature_map": "network",
    "feature_models": "network",
    "losses": "",
}

__all__ = ["BATCH_NORM", "KEEP", "METHOD_NAMES", *_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
