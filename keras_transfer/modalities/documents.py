"""Augmentations in files."""

from pathlib import Path

from keras_transfer.errors import InputError


def read_fields(path: Path) -> dict:
    """Return the names and values in a .yaml or .json file.

    Raises:
        InputError: if it cannot be read or contains anything else.
    """
    import yaml

    try:
        config = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"augment: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"augment: {path} is not valid YAML or JSON: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(config, dict):
        raise InputError(f"augment: {path} must contain names and values")
    return config
