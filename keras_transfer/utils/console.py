"""Lines of progress and progress bars, on stderr."""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
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


_silent = False
_log = None


def say(text: str) -> None:
    """A line of progress on stderr (or where `log_to` says), unless `silence` is in force."""
    if not _silent:
        print(text, file=_log or sys.stderr, flush=True)


def log_to(path) -> None:
    """What is said from now on is added to a file: of a process that is one of many."""
    global _log
    _log = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)


@contextmanager
def quiet_tensorflow():
    """TensorFlow's notes and warnings of saving and tracing are not shown inside; errors are."""
    import tensorflow as tf

    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def silence():
    """Nothing is said inside: for many trainings of which only the outcome is shown."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before
