"""A web page that runs an exported model in the browser: a folder for any file server.

The static files are in the folder `page/` beside this module; a modality adds the script that reads its
examples. ONNX Runtime for the web comes from npm, once, into the cache folder.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from keras_transfer.errors import InputError
from keras_transfer.export.serving import suffix
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.utils.console import first_line
from keras_transfer.utils.files import cache_folder, new_folder, write_text

PAGE = "index.html"

_STATIC = Path(__file__).with_name("page")
_PACKAGE, _VERSION = "onnxruntime-web", "1.30.0"
_RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_MINUTES = 5  # that the download may take


def check_page(modality, framing=None) -> None:
    """Raise InputError if examples of a modality cannot be entered on a page, or npm is missing.

    Args:
        framing: of the model.
    """
    if modality.page is None:
        raise InputError(f"A web page cannot take {modality.many}: choose another --format.")
    if framing is not None:
        modality.page_input(modality.framing_for(framing, None))
    if not _cached().exists() and shutil.which("npm") is None:
        raise InputError(
            f"The page needs {_PACKAGE} {_VERSION}, which npm downloads, and npm was not found. Install "
            "Node.js, or export on a machine that has it."
        )


def write_page(folder: Path, model: keras.Model, title: str, examples: Sequence = ()) -> None:
    """Write the page around `model.onnx`, which is already in the folder.

    Args:
        folder: exists, with the files of an ONNX export.
        title: heading of the page.
        examples: a few of the run's, decoded, if they were found: for pairs of texts, there are two boxes.

    Raises:
        InputError: the runtime cannot be downloaded.
    """
    modality, heads = modality_of(model), heads_of(model)
    framing = modality.framing_for(framing_of(model), None)
    runtime = _runtime()
    for file in (*sorted(_STATIC.iterdir()), *(runtime / name for name in _RUNTIME)):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(modality.page, folder / "input.js")
    document = {
        "title": title,
        "input": modality.page_input(framing, examples),
        "heads": [_head(name, head, heads) for name, head in heads.items()],
    }
    write_text(folder / "model.json", json.dumps(document, ensure_ascii=False) + "\n")


def _head(name, head, heads: Mapping) -> dict:
    output = f"scores{suffix(heads, name)}"
    return {"name": name, "task": head.task, "names": list(head.names), "output": output}


def _cached() -> Path:
    return cache_folder() / f"{_PACKAGE}-{_VERSION}"


def _runtime() -> Path:
    """Return a folder with ONNX Runtime for the web, downloaded if it is not in the cache."""
    place = _cached()
    if place.exists():
        return place
    try:
        _download(place)
    except InputError:
        if not place.exists():  # else another process was faster
            raise
    return place


def _download(place):
    with tempfile.TemporaryDirectory() as scratch, new_folder(place) as folder:
        command = [shutil.which("npm") or "npm", "pack", f"{_PACKAGE}@{_VERSION}", "--silent"]
        try:
            subprocess.run(
                command,
                cwd=scratch,
                check=True,
                capture_output=True,
                text=True,
                timeout=60 * _MINUTES,
            )
        except (OSError, subprocess.SubprocessError) as error:
            told = (getattr(error, "stderr", None) or "").strip()
            reason = told.splitlines()[-1] if told else first_line(error)
            raise InputError(
                f"npm cannot download {_PACKAGE} {_VERSION}, which the page needs: {reason}. Check the "
                f"network, or copy the folder {place} from another machine."
            ) from error
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as files:
            for name in _RUNTIME:
                member = files.extractfile(f"package/dist/{name}")
                assert member is not None, "it is a file"
                (folder / name).write_bytes(member.read())
