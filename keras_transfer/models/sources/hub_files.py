"""Files of a repository on the Hugging Face Hub: found where they are stored, or downloaded."""

from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.models.sources.presets import where_stored
from keras_transfer.utils.console import first_line
from keras_transfer.utils.extras import is_installed, missing_extra

HUB = "hf://"


def downloaded(address: str, name: str) -> Path:
    """Return the local path of a file, which is downloaded if it is not there.

    Args:
        address: `hf://USER/NAME`.
        name: of the file in that repository.

    Raises:
        InputError: it is not on this machine and cannot be downloaded.
    """
    stored = where_stored(address)
    found = sorted(stored.glob(f"snapshots/*/{name}"), key=lambda file: file.stat().st_mtime)
    if found:
        return found[-1]
    failed = missing_extra("huggingface_hub")
    if is_installed("huggingface_hub"):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(address.removeprefix(HUB), name))
        except Exception as error:  # of the hub or the network
            failed = first_line(error).rstrip(".")
    raise InputError(
        f"{address} is not on this machine ({stored} has no {name}), and the download failed "
        f"({failed}). Copy that folder from a machine that has it, or pass its path."
    )
