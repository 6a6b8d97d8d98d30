"""Keras callbacks that a user names on the command line: `module:Class`."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from keras_transfer.errors import InputError


def check_callbacks(names: Iterable[str]) -> None:
    """Raise InputError for a name that cannot be a callback; nothing is imported."""
    for name in names:
        module, found, attribute = name.partition(":")
        if not (module and found and attribute.isidentifier()):
            raise InputError(
                f"Invalid --callback '{name}'. Pass module:Class, such as my_callbacks:Notify."
            )
        with _from_here():
            try:
                known = importlib.util.find_spec(module)
            except (ImportError, ValueError):  # of the package that it is in
                known = None
        if known is None:
            raise InputError(
                f"--callback {name}: there is no module '{module}', neither installed nor in the "
                "current folder."
            )


def make_callbacks(names: Iterable[str]) -> list:
    """Return a `keras.callbacks.Callback` for each name, made without arguments.

    Raises:
        InputError: the module fails, or what it has of that name makes no callback.
    """
    return [_make(name) for name in names]


def _make(name):
    import keras

    module, _, attribute = name.partition(":")
    try:
        with _from_here():
            loaded = importlib.import_module(module)
        if not hasattr(loaded, attribute):
            close = get_close_matches(attribute, dir(loaded), 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InputError(f"--callback {name}: {module} has no '{attribute}'.{hint}")
        made = getattr(loaded, attribute)()
    except InputError:
        raise
    except Exception as error:  # the user's code
        raise InputError(f"--callback {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(made, keras.callbacks.Callback):
        raise InputError(
            f"--callback {name} makes a {type(made).__name__}, not a keras.callbacks.Callback."
        )
    return made


@contextmanager
def _from_here():
    """Find modules in the current folder, as `python script.py` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
