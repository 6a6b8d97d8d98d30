"""A run as one page of HTML that needs nothing but itself, and several runs beside each other.

`writing` measures the run and makes the page of what `summary` (what was trained on what), `course`
(schedule and curves), `scores` (how good it is), `confusion` and `gallery` (images with Grad-CAM)
give, which are pure functions of plain data; `comparing` sets runs beside each other.
"""

import importlib

_NAMES = {"compare_runs": "side_by_side", "write_report": "write"}

__all__ = list(_NAMES)


def __getattr__(name):
    # Keras is loaded with the first name that needs it: what can be told without it is told at once.
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
