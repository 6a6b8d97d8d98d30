"""How good a model is, from one pass over labelled images; and what it says of unlabelled ones.

`measuring` has the short answer (`evaluate`), `assessing` the long one (`assess`), an `Evaluation` of
`result`, which is plain data: `classes`, `labels` and `values` measure a head of each task with
`probabilities`, `ranking`, `calibration`, `abstention` and `slices`, which are NumPy, SciPy and
scikit-learn, and `images` draws what came out. `predicting` has `predict`.
"""

from keras_transfer.utils.lazy import lazy_names

_NAMES = {
    "Calibration": "calibration",
    "Evaluation": "result",
    "assess": "full",
    "calibrate": "calibration",
    "collect": "outputs",
    "evaluate": "api",
    "grad_cam": "gradcam",
    "predict": "prediction",
    "predictions_csv": "prediction",
    "predictions_json": "prediction",
    "shown": "api",
}

# The rest of the names are for the command line.
_INTERNAL = ("collect", "predictions_csv", "predictions_json", "shown")

__all__ = [name for name in _NAMES if name not in _INTERNAL]


__getattr__, __dir__ = lazy_names(__name__, _NAMES)
