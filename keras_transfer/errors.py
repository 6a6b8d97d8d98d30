"""What is said to the user: what was wrong with the input, and lines of progress."""

import re
import sys
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """


def said_in(error: Exception) -> InputError | None:
    """The InputError that a function of ours raised when TensorFlow called it; None if none did."""
    found = re.search(r"InputError: (.+)", str(error))
    return InputError(found[1]) if found else None


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
