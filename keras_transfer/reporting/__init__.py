"""A run as one page of HTML that needs nothing but itself, and several runs beside each other.

`writing` measures the run and makes the page of what `summary` (what was trained on what), `course`
(schedule and curves), `scores` (how good it is), `confusion` and `gallery` (images with Grad-CAM)
give, which are pure functions of plain data; `comparing` sets runs beside each other.
"""

from keras_transfer.utils.lazy import lazy_names

_NAMES = {"compare_runs": "side_by_side", "show_batch": "sheet", "write_report": "write"}

__all__ = list(_NAMES)


__getattr__, __dir__ = lazy_names(__name__, _NAMES)
