"""Checkpoints: what unfinished work needs, so that another process can continue it exactly."""

import json
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.runs import changed_settings
from keras_transfer.utils.files import read_arrays, write_arrays, write_text

_STATE = "state.json"
_START = "start"


class Checkpoint:
    """The state of unfinished work in a folder: plain data and named arrays.

    Array files are written first and the state that refers to them last, each whole or not at all,
    so a kill at any moment leaves the old state or the new one.

    Attributes:
        folder: where the files are; it must exist.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    @classmethod
    def open(
        cls,
        folder,
        settings: dict,
        *,
        what: str,
        file: str = "settings.json",
        fingerprint: str | None = None,
        empty: bool = True,
    ) -> "Checkpoint":
        """Start work in a folder, or continue the work there if its settings are the same.

        Args:
            folder: created if it does not exist.
            settings: plain data that everything in the folder depends on.
            what: the kind of work for messages, such as `"comparison"`.
            file: name of the file of the settings, `.json` or `.yaml`.
            fingerprint: digest of the data; saved under `images`.
            empty: a folder without that file must be empty.

        Raises:
            InputError: if `folder` is a file or contains something else, or if the settings or the
                data differ from those that the work began with.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a directory.")
        settings = settings if fingerprint is None else {**settings, "images": fingerprint}
        text = _dump(settings, file)
        path = folder / file
        if not path.is_file():
            if empty and folder.is_dir() and any(folder.iterdir()):
                raise InputError(
                    f"{folder} is not empty and contains no {what}: choose another directory."
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            return cls(folder)
        before, now = _parse(path.read_text(encoding="utf-8"), file), _parse(text, file)
        changed = []
        if fingerprint is not None and before.pop("images", None) != now.pop("images"):
            changed.append("the images changed")
        changed += changed_settings(before, now)
        if changed:
            raise InputError(
                f"Cannot resume the {what} in {folder}, because it began with different settings: "
                f"{'; '.join(changed)}. Undo the change, or choose another directory."
            )
        return cls(folder)

    def save(self, state: dict, arrays: dict, best: dict | None = None) -> None:
        """Write everything that `load` and `load_arrays` need after epoch `state["epoch"]`.

        Args:
            state: plain data. `state["best"]["epoch"]`, if present, is the best epoch so far.
            arrays: name → array.
            best: the arrays of the best epoch, if they were not given before.
        """
        needed = {f"epoch-{state['epoch']}", _START}
        if state.get("best"):
            needed.add(f"best-{state['best']['epoch']}")
        if best is not None:
            self.save_arrays(f"best-{state['best']['epoch']}", best)
        self.save_arrays(f"epoch-{state['epoch']}", arrays)
        write_text(self.folder / _STATE, json.dumps(state))
        for file in self.folder.glob("*.npz"):
            if file.stem not in needed:
                file.unlink()

    def load(self) -> tuple[dict, dict] | None:
        """Return (state, arrays) of the last epoch, or None if no epoch was finished."""
        file = self.folder / _STATE
        if not file.is_file():
            return None
        state = json.loads(file.read_text(encoding="utf-8"))
        return state, read_arrays(self.folder / f"epoch-{state['epoch']}.npz")

    def save_arrays(self, name: str, arrays: dict) -> None:
        """Write arrays under a name; `save` deletes names other than `"start"` and its own."""
        write_arrays(self.folder / f"{name}.npz", arrays)

    def load_arrays(self, name: str) -> dict | None:
        """Return what `save_arrays` wrote, such as `"best-3"` or `"start"`; None if missing."""
        file = self.folder / f"{name}.npz"
        return read_arrays(file) if file.is_file() else None


def collect(variables, name: str) -> dict[str, np.ndarray]:
    """Return the values of Keras variables as `NAME/POSITION` → array."""
    import keras

    return {f"{name}/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}


def assign(variables, arrays: dict, name: str) -> None:
    """Set Keras variables to the values that `collect` returned.

    Raises:
        InputError: if the variables have other shapes, because the model is a different one.
    """
    shapes = [arrays[key].shape for key in arrays if key.startswith(f"{name}/")]
    if shapes != [tuple(variable.shape) for variable in variables]:
        raise InputError(
            f"Cannot resume: the shapes of the {name}'s weights differ from those that were saved. "
            "Build the model as it was built when the work began."
        )
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{name}/{i}"])


def _dump(settings, file):
    if file.endswith(".json"):
        return json.dumps(settings, indent=2) + "\n"
    import yaml

    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _parse(text, file):
    if file.endswith(".json"):
        return json.loads(text)
    import yaml

    return yaml.safe_load(text)
