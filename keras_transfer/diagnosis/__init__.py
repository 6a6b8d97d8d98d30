"""Diagnosis of a dataset from features that are computed once, and what to label next.

`seen` reads or computes the features, `label_errors` contradicts labels, `result` holds the problems and
writes the list that `data.corrections` applies. Modules may import `features` and the rooms below it.
Importing the room loads neither Keras nor TensorFlow.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "Diagnosis": "result",
    "LabelErrors": "label_errors",
    "Problem": "result",
    "diagnose": "api",
    "find_label_errors": "label_errors",
    "select": "selection",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
