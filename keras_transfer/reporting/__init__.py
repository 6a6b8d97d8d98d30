"""HTML pages from Jinja templates: the report of a run, the comparison of runs, contact sheets.

Python computes plain data (`run_report`, `side_by_side`, `adaptation`, `problems`) and `templates/` contains all
HTML. This room may import from all rooms but `cli`.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "compare_runs": "side_by_side",
    "show_batch": "sheet",
    "write_problems": "problems",
    "write_report": "run_report",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
