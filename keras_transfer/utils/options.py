"""Keyword arguments collected in a dataclass."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from keras_transfer.errors import InputError

Options = TypeVar("Options")


def make_options(kind: type[Options], values: Mapping[str, Any], function: str) -> Options:
    """Make a dataclass of options from keyword arguments.

    Args:
        kind: the dataclass; it validates the values itself.
        values: name → value.
        function: name of the function that takes them, for the message.

    Raises:
        InputError: a name is not a field of the dataclass.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            similar = difflib.get_close_matches(name, names, 1)
            hint = f"Did you mean {similar[0]}?" if similar else f"Choose from {', '.join(names)}."
            raise InputError(f"Unknown option '{name}' of {function}. {hint}")
    return kind(**values)
