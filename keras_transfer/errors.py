"""Errors that are meant for the user."""

import re


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """

    exit_code = 2


class WorkerLost(Exception):
    """Another process of a distributed training died or cannot be reached."""

    exit_code = 75  # "temporary failure" of sysexits.h: start all workers again with --resume


def said_in(error: Exception) -> InputError | None:
    """The InputError that a function of ours raised when TensorFlow called it; None if none did."""
    found = re.search(r"InputError: (.+)", str(error))
    return InputError(found[1]) if found else None
