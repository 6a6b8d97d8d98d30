"""Progress bars, on stderr: in a terminal and in a notebook, and nowhere else."""

import sys
import warnings
from typing import Any


def bar(items=None, *, shown: bool = True, **options: Any):
    """A bar of tqdm's that is gone when it is done.

    Args:
        items: what is gone through; or none, and the bar is told by `update`.
        shown: False hides it wherever it is.
        options: of `tqdm.tqdm`: `desc`, `total`, `unit`, `leave` …

    In a notebook it is a widget where ipywidgets are installed, else a line of text; the variable
    `TQDM_DISABLE` hides all of them there.
    """
    options = {"leave": False, **options}
    if not shown:
        options["disable"] = True
    if not _in_notebook():
        from tqdm import tqdm

        return tqdm(
            items, **{"disable": None, **options}
        )  # None: it asks whether stderr is a terminal
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no ipywidgets
        from tqdm.auto import tqdm
    return tqdm(items, **options)


def _in_notebook() -> bool:
    """Whether cells of Jupyter or Colab run here; its stderr is no terminal, and yet somebody looks."""
    if "IPython" not in sys.modules:
        return False
    shell = sys.modules["IPython"].get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})
