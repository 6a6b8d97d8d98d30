"""What is said to the user."""

import sys


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
