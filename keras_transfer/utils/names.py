"""Names that are looked up (of packages, loaded on first use, and of options), and plain arguments."""

import difflib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeVar

from keras_transfer.errors import InputError

Options = TypeVar("Options")


def lazy_names(
    package: str, names: Mapping[str, str], moved: Mapping[str, str] | None = None
) -> tuple[Callable, Callable]:
    """Make a package's `__getattr__` and `__dir__`, so that importing it stays fast.

    Args:
        package: the package's `__name__`.
        names: public name → module that defines it, relative to the package (`"api"`) or in full
            (`"keras_transfer.data.splits"`); an empty string means that the name is itself a module
            of the package.
        moved: old name → full new name (`"keras_transfer.data.find_duplicates"`). Old names work
            with a `DeprecationWarning` that gives the new one, and are not listed.

    Returns:
        `(__getattr__, __dir__)`, to be assigned to module-level names of the package.
    """

    def load(name: str):
        if name in names:
            where = names[name] or name
            full = where.startswith(f"{package.partition('.')[0]}.")
            module = importlib.import_module(where if full else f"{package}.{where}")
            return getattr(module, name) if names[name] else module
        if moved and name in moved:
            new = moved[name]
            text = f"{package}.{name} is now {new}; the old name goes in 0.3."
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            where, _, what = new.rpartition(".")
            return getattr(importlib.import_module(where), what)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return load, lambda: sorted({*names, *vars(sys.modules[package])})


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


def check_minutes(minutes: float | None) -> None:
    """Raise InputError unless a limit, if there is one, is a number above 0."""
    if minutes is not None and not (isinstance(minutes, Real) and minutes > 0):
        number = f"{minutes:g}" if isinstance(minutes, Real) else repr(minutes)
        raise InputError(f"minutes must be above 0, not {number}.")


def sequence_of_names(names: Any, what: str) -> tuple[str, ...]:
    """Return names as text; raise InputError if they are no sequence, such as their number.

    Args:
        what: where they were given, for the message: `"class_names"`.
    """
    if isinstance(names, (bytes, Mapping)) or not isinstance(names, Iterable):
        raise InputError(
            f"{what} must be a sequence of names, such as ['cat', 'dog'], not {names!r}."
        )
    return tuple(str(name) for name in names)
