"""Metrics by task, calibration, abstention, slices, prediction and Grad-CAM.

`api` has `evaluate` (the main metrics) and `assess` (all of them, as an `Evaluation`). Training uses
only `measures`. This room may import from `features` and the rooms below it.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "Calibration": "calibration",
    "Evaluation": "result",
    "assess": "api",
    "calibrate": "calibration",
    "collect": "outputs",
    "evaluate": "api",
    "grad_cam": "gradcam",
    "predict": "prediction",
    "predictions_csv": "prediction",
    "predictions_json": "prediction",
    "summary_text": "api",
}
_MOVED = {"shown": "keras_transfer.evaluation.summary_text"}

# The rest of the names are for the command line.
__all__ = ["Calibration", "Evaluation", "assess", "calibrate", "evaluate", "grad_cam", "predict"]

__getattr__, __dir__ = lazy_names(__name__, _NAMES, _MOVED)
