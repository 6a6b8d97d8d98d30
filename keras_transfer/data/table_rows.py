"""What the rows of a table stand for: the files that they name, or the texts that they contain."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PureWindowsPath

import numpy as np

from keras_transfer.data.files import check_contents, check_examples
from keras_transfer.data.flaws import report_flaws
from keras_transfer.data.label_columns import Cells, is_missing
from keras_transfer.data.table_files import TableCells
from keras_transfer.errors import ColumnError, InputError
from keras_transfer.modalities import find_modality, known_extensions
from keras_transfer.modalities.text.check import pair_of
from keras_transfer.utils.console import counted, say, verb

_LONGEST_NAME = 255  # bytes
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class FileRows:
    """Rows that name files.

    Args:
        cells: of the table.
        column: of paths, as the table means them, see `image_paths`.
        base: the folder where relative paths start.

    Attributes:
        names: the path of each row.
    """

    one, remedy = "image", "paths and root"

    def __init__(self, cells: TableCells, column: str, base: Path):
        self.names = [str(path) for path in image_paths(cells, column, base)]

    def order(self, row: int):
        """Return the key by which rows of the same class are sorted."""
        return self.names[row]

    def open(self, rows: Sequence[int], progress: bool) -> tuple:
        """Return (a reader of those that can be used, the others with the reason), in order."""
        return check_examples([self.names[row] for row in rows], progress=progress)

    @staticmethod
    def name(cells: TableCells, column: str, base: Path, row: int) -> str:
        """Return what a row is called that is left out."""
        return str(base / str(cells.columns[column][row]))


class TextRows:
    """Rows that contain texts; see `FileRows`.

    Raises:
        ColumnError: if the column contains numbers.
    """

    one, remedy = "text", "column"

    def __init__(self, cells: TableCells, column: str, base: Path):
        self._modality = find_modality("text")
        self._modality.require()
        self._column, self._texts = column, cells.columns[column]
        self.names = [self.name(cells, column, base, row) for row in range(len(cells.rows))]
        _require_texts(cells, column)

    def order(self, row: int):
        return row

    def open(self, rows: Sequence[int], progress: bool) -> tuple:
        from keras_transfer.data.arrays import Contents

        encoded = [_encoded(self._texts[row]) for row in rows]
        names = [self.names[row] for row in rows]
        checked = check_contents(encoded, names, self._modality)
        report_flaws(checked)
        reader = Contents(encoded, names, self._modality).take(checked.usable())
        return reader, checked.skipped

    @staticmethod
    def name(cells: TableCells, column: str, base: Path, row: int) -> str:
        """Return what a row is called: `banking77.csv row 12`."""
        table = Path(cells.name).name if cells.of_file else ""
        return str(base / f"{table} row {cells.rows[row]}".strip())


def _require_texts(cells: TableCells, column: str) -> None:
    """Raise ColumnError if a column contains numbers."""
    texts = cells.columns[column]
    numbers = [row for row, text in enumerate(texts) if _is_number(text)]
    whole = [row for row in numbers if not isinstance(texts[row], str)]
    if not whole and len(numbers) <= len(texts) / 2:
        return
    row = (whole or numbers)[0]
    others = [name for name in cells.columns if name != column]
    longest = max(others, key=lambda name: mean_words(cells.columns[name]), default=column)
    options = (f"text={longest}",) if mean_words(cells.columns[longest]) > 1 else ()
    problem = (
        f"{cells.name}, row {cells.rows[row]}: {column} is {texts[row]!r}, a number, not a text"
    )
    names = " or ".join(options) or "text=NAME"
    raise ColumnError(problem, f"name the column of texts: --column {names}", options)


def name_of_pair(columns: Sequence[str]) -> str:
    """Return what the column of two columns' pairs is called."""
    return " + ".join(columns)


def join_pairs(cells: TableCells, columns: Sequence[str]) -> TableCells:
    """Return a table with one more column, of the pairs of texts in two; empty where one is."""
    for column in columns:
        _require_texts(cells, column)
    pairs = [
        None if is_missing(one) or is_missing(other) else pair_of(_text(one), _text(other))
        for one, other in zip(*(cells.columns[column] for column in columns))
    ]
    return replace(cells, columns={**cells.columns, name_of_pair(columns): pairs})


def _text(cell) -> str:
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else str(cell)


def _encoded(text) -> bytes:
    """Return a cell as UTF-8; an empty one is an empty text."""
    if is_missing(text):
        return b""
    if isinstance(text, bytes):
        return text
    try:
        return str(text).encode("utf-8", "surrogateescape")  # bytes of a file that are not UTF-8
    except UnicodeEncodeError:  # half of a pair, which the check refuses
        return str(text).encode("utf-8", "surrogatepass")


def _is_number(value) -> bool:
    if is_missing(value) or isinstance(value, (bool, np.bool_)):
        return False
    try:
        return float(value) is not None
    except (TypeError, ValueError):
        return False


def mean_words(values: Sequence) -> float:
    """Return the number of words of a column's texts, in the mean of some; 0 for other cells."""
    some = values[:: max(1, len(values) // 100)]
    return sum(len(v.split()) for v in some if isinstance(v, str)) / max(1, len(some))


# -- paths ----------------------------------------------------------------------------------------


def image_paths(cells: TableCells, column: str, base: Path) -> list[Path]:
    """Return the file of each row, as the table means it: see `from_table`.

    Args:
        base: the folder where relative paths start.

    Raises:
        InputError: if a cell is empty or not a path, or two files have the name of a path without an
            extension.
    """
    read = Cells(cells.columns, cells.name, cells.rows)
    texts = read.read(column, _path_text, "which is not a path")
    found, backslashes, drives, extensions = [], [], [], []
    for index, text in enumerate(texts):
        path = base / text
        if _DRIVE.match(text) and not path.exists():
            path = _below(base, text)
            drives.append(f"{text} as {path}")
        elif "\\" in text and not path.exists():
            path = base / text.replace("\\", "/")
            backslashes.append(text)
        if path.suffix.lower() not in known_extensions() and not path.is_file():
            files = _by_stem(path.parent).get(path.name, [])
            if len(files) > 1:
                raise InputError(
                    f"{read.where(index)}: {column} is {text!r}, but {len(files)} files in "
                    f"{path.parent} have this name: {', '.join(files)}; add the extension."
                )
            if files:
                path = path.parent / files[0]
                extensions.append(f"{text} as {files[0]}")
        found.append(path)
    _by_stem.cache_clear()
    for changed, what in (
        (backslashes, "backslashes, which are read as slashes"),
        (drives, f"the drive of another machine: looked for below {base}"),
        (extensions, "no extension: the image of that name is read"),
    ):
        if changed:
            say(
                f"{cells.name}: {counted(len(changed), 'path')} {verb(len(changed), 'has', 'have')} {what} (first: {changed[0]})"
            )
    return found


def _below(base: Path, text: str) -> Path:
    """Return the longest end of a path with a Windows drive that exists below a folder."""
    parts = PureWindowsPath(text).parts[1:]
    ends = [base.joinpath(*parts[start:]) for start in range(len(parts))]
    fitting = (path for path in ends if path.is_file() or path.name in _by_stem(path.parent))
    return next(fitting, ends[0] if ends else base)


def _path_text(value) -> str:
    """Return a cell as a path; a ValueError or a TypeError says that it cannot be one."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # integers beside empty cells
        return str(int(value))
    text = os.fsdecode(os.fspath(value))
    # Systems raise errors where names are looked up that they cannot have, such as whole texts.
    if "\0" in text or any(
        len(os.fsencode(part)) > _LONGEST_NAME for part in re.split(r"[/\\]", text)
    ):
        raise ValueError
    return text


@cache
def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Return name without extension → names of the images in a folder."""
    stems: dict[str, list[str]] = {}
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # noqa: PTH208
    for name in names:
        stem, extension = os.path.splitext(name)  # noqa: PTH122
        if extension.lower() in known_extensions():
            stems.setdefault(stem, []).append(name)
    return stems
