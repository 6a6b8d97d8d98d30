"""How good a model is, from one pass over labelled images; and what it says of unlabelled ones.

`measuring` has the short answer (`evaluate`), `assessing` the long one (`assess`), an `Evaluation` of
`result`, which is plain data: `classes`, `labels` and `values` measure a head of each task with
`probabilities`, `ranking`, `calibration`, `abstention` and `slices`, which are NumPy, SciPy and
scikit-learn, and `images` draws what came out. `predicting` has `predict`.
"""

import importlib

_NAMES = {
    "Calibration": "calibration",
    "Evaluation": "result",
    "assess": "full",
    "calibrate": "calibration",
    "collect": "outputs",
    "evaluate": "api",
    "predict": "prediction",
    "predictions_csv": "prediction",
    "predictions_json": "prediction",
    "shown": "api",
}

__all__ = list(_NAMES)


def __getattr__(name):
    # Keras is loaded with the first name that needs it: what can be told without it is told at once.
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
