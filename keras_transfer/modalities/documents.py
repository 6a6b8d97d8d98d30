"""Augmentations in files."""

from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.documents import read_yaml


def read_fields(path: Path) -> dict:
    """Return the names and values in a .yaml or .json file.

    Raises:
        InputError: if it cannot be read or contains anything else.
    """
    try:
        config = read_yaml(path.expanduser())
    except OSError as error:
        raise InputError(f"augment: {path} cannot be read: {error.strerror}") from None
    except InputError as error:
        raise InputError(f"augment: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"augment: {path} must contain names and values")
    return config
