"""A web page that runs an exported model in the browser: a folder for any file server.

The static files are in the folder `page/` beside this module; a modality adds the script that reads its
examples. ONNX Runtime for the web comes from npm.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from keras_transfer.errors import InputError
from keras_transfer.export.npm import Package
from keras_transfer.export.serving import suffix
from keras_transfer.models.builders import heads_of
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.utils.files import write_text

PAGE = "index.html"

_STATIC = Path(__file__).with_name("page")
_RUNTIME = Package(
    "onnxruntime-web", "1.30.0", ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
)


def check_page(modality, framing=None) -> None:
    """Raise InputError if examples of a modality cannot be entered on a page, or npm is missing.

    Args:
        framing: of the model.
    """
    if modality.page is None:
        raise InputError(f"A web page cannot take {modality.many}: choose another --format.")
    if framing is not None:
        modality.page_input(modality.framing_for(framing, None))
    _RUNTIME.require("The page")


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
    runtime = _RUNTIME.folder("The page")
    for file in (*sorted(_STATIC.iterdir()), *(runtime / name for name in _RUNTIME.files)):
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
