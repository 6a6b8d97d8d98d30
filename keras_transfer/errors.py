"""The one exception that means "the user's input is wrong"."""


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """
