"""Errors that are meant for the user."""

import re


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """


def said_in(error: Exception) -> InputError | None:
    """The InputError that a function of ours raised when TensorFlow called it; None if none did."""
    found = re.search(r"InputError: (.+)", str(error))
    return InputError(found[1]) if found else None
