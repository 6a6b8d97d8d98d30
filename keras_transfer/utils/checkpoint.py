"""The checkpoint of unfinished work: settings, state and arrays in a folder.

Each file is written whole or not at all, so that a killed process leaves no half files.
"""

import json
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.documents import (
    RENAMED_SINCE_0_1,
    UNRECORDED,
    changed_settings,
    dump_settings,
    parse_settings,
)
from keras_transfer.utils.files import (
    check_output_folder,
    explain_writing,
    read_arrays,
    write_arrays,
    write_text,
)

_STATE_FILE = "state.json"


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
        check_output_folder(folder)
        settings = settings if fingerprint is None else {**settings, "images": fingerprint}
        text = dump_settings(settings, file)
        path = folder / file
        if not path.is_file():
            if empty and folder.is_dir() and any(folder.iterdir()):
                raise InputError(
                    f"{folder} is not empty and contains no {what}: choose another directory."
                )
            with explain_writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            return cls(folder)
        before, now = (
            parse_settings(path.read_text(encoding="utf-8"), file),
            parse_settings(text, file),
        )
        before = {RENAMED_SINCE_0_1.get(key, key): value for key, value in before.items()}
        before = {key: value for key, value in UNRECORDED.items() if key in now} | before
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

    def save(self, state: dict, arrays: dict, named: dict[str, dict] | None = None) -> None:
        """Write everything that `load` and `load_arrays` need after epoch `state["epoch"]`.

        Args:
            state: plain data. `state["named"]`, if present, lists the named arrays that it needs.
            arrays: name → array.
            named: those of them that were not given before.
        """
        needed = {f"epoch-{state['epoch']}", "start", *state.get("named", ())}
        for name, values in (named or {}).items():
            self.save_arrays(name, values)
        self.save_arrays(f"epoch-{state['epoch']}", arrays)
        write_text(self.folder / _STATE_FILE, json.dumps(state))
        for file in self.folder.glob("*.npz"):
            if file.stem not in needed:
                file.unlink()

    def load(self) -> tuple[dict, dict] | None:
        """Return (state, arrays) of the last epoch, or None if no epoch was finished."""
        file = self.folder / _STATE_FILE
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
