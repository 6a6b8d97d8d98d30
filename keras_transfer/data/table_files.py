"""Read tables as spreadsheets, pandas and other programs write them: CSV, TSV, Parquet, DataFrames."""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keras_transfer.data.files import TABLES
from keras_transfer.errors import InputError
from keras_transfer.modalities.text.check import MOST_CHARACTERS
from keras_transfer.utils.console import listed, say
from keras_transfer.utils.encodings import MARKS, fitting_encoding
from keras_transfer.utils.extras import require

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAMPLED = 50  # rows by which the separator is recognized
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[,;\t ]*(\r\n|\r|\n|\Z)', re.IGNORECASE)  # of Excel


@dataclass(frozen=True)
class TableCells:
    """The cells of a table.

    Attributes:
        columns: name → one value per row.
        name: the file, for messages.
        rows: number of each row in the file, without the header, for messages.
        of_file: whether it was read from a file.
    """

    columns: Mapping[str, Sequence]
    name: str = "the table"
    rows: list[int] = field(default_factory=list)
    of_file: bool = False


def read_columns(table) -> TableCells:
    """Read a file, DataFrame or mapping of columns.

    Names and texts are stripped of white space at their ends, and rows without any text are left out.

    Raises:
        InputError: if it cannot be read, or two columns have the same name.
    """
    if isinstance(table, (str, Path)):
        return _read_file(Path(table).expanduser())
    if isinstance(table, Mapping):
        pairs = [(str(name), list(values)) for name, values in table.items()]
        if len({len(values) for _, values in pairs}) > 1:
            lengths = ", ".join(f"{name} {len(values)}" for name, values in pairs)
            raise InputError(f"The table's columns differ in length: {lengths}.")
    elif hasattr(table, "columns"):  # a DataFrame of pandas or a similar library
        _require_unique([str(name).strip() for name in table.columns], "the table")
        pairs = [(str(name), list(table[name].to_list())) for name in table.columns]
    else:
        raise InputError(
            f"A table must be a file, a DataFrame or a mapping of columns, not "
            f"{type(table).__name__}."
        )
    return _cells(pairs, "the table")


def _read_file(path):
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: pass a table in it, or open its Parquet files as hf:{path}."
        )
    if not path.is_file():
        raise InputError(f"no such file: {path}; check the path")
    kind = path.suffix.lower()
    if kind == ".parquet":
        require("pyarrow", f"Reading {path.name}")
        import pyarrow.parquet

        try:
            read = pyarrow.parquet.ParquetFile(path).read()
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from None
        pairs = zip(read.column_names, (column.to_pylist() for column in read.columns))
        return _cells(list(pairs), path)
    if kind not in TABLES:
        raise InputError(f"{path} is not one of {', '.join(TABLES)}: export it as CSV UTF-8.")
    return _read_csv(path, "\t" if kind == ".tsv" else ",")


def _cells(pairs, name) -> TableCells:
    """Return the cells of (column name, values) pairs."""
    pairs = [(column.strip(), [_stripped(value) for value in values]) for column, values in pairs]
    _require_unique([column for column, _ in pairs], name)
    count = len(pairs[0][1]) if pairs else 0
    return TableCells(dict(pairs), str(name), list(range(1, count + 1)), isinstance(name, Path))


def _stripped(value):
    return value.strip() if isinstance(value, str) else value


def _require_unique(names, table):
    twice = [repr(name) for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise InputError(
            f"{table} has several columns named {', '.join(twice)}: rename all but one of each."
        )


# -- CSV ------------------------------------------------------------------------------------------


def _read_csv(path, usual) -> TableCells:
    text = _decoded(path)
    if found := _SEPARATOR_LINE.match(text):
        text, delimiter = text[found.end() :], found[1]
    else:
        delimiter = _delimiter(text, usual)
    try:
        with _long_cells():
            lines = _lines(text, delimiter, path)
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}): write a quote inside a cell in quotes twice, and "
            "close all quotes."
        ) from None
    header, rows = _header(lines, path)
    _require_unique(header, path)
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    _say_empty(path, [n for n, row in enumerate(rows, 1) if not any(row)], len(rows))
    for number, row in numbered:
        if len(row) < len(header) or any(row[len(header) :]):
            what = f"{path}, row {number} has {len(row)} cells, but the header has {len(header)}; "
            if len(row) < len(header):
                raise InputError(
                    f"{what}add the others, or put quotes around cells of several lines."
                )
            raise InputError(
                f"{what}put quotes around cells with {_DELIMITERS.get(delimiter, delimiter)}."
            )
    columns = {
        name: [row[i] for _, row in numbered]
        for i, name in enumerate(header)
        if name  # pandas writes its index without a name
    }
    return TableCells(columns, str(path), [number for number, _ in numbered], True)


def _decoded(path) -> str:
    raw = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in raw[:2]:  # UTF-16 without a mark begins with ASCII
        encoding = "utf-16-be" if raw[:1] == b"\0" else "utf-16-le"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fits, remedy = "", "save it as 'CSV UTF-8'"
        if encoding == "utf-8":
            name = fitting_encoding(raw)
            fits = f" It fits {name}:"
            remedy += f", or convert it with iconv -f {name} -t utf-8"
        raise InputError(
            f"{path} cannot be read as {encoding.upper()} CSV ({error.reason}, line {line}).{fits} {remedy}."
        ) from None
    if "\0" in text:
        raise InputError(f"{path} is not CSV but binary: export the table as 'CSV UTF-8'.")
    return text


@contextmanager
def _long_cells():
    """Let cells be as long as the longest text; Python's own limit is 131,072 characters."""
    before = csv.field_size_limit(2 * MOST_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _lines(text, delimiter, path) -> list[list[str]]:
    """Return the stripped cells of all rows; in a file with tabs, quotes may be letters like others."""
    try:
        return list(_rows(text, delimiter))
    except csv.Error:
        if delimiter != "\t":
            raise
    rows = list(_rows(text, delimiter, quoting=csv.QUOTE_NONE))
    say(f"{path}: its quotes do not enclose whole cells, and are read as they stand")
    return rows


def _rows(text, delimiter, quoting=csv.QUOTE_MINIMAL):
    """Yield the stripped cells of each row; a csv.Error names the line."""
    # Spaces before a quote would make it part of the text.
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        skipinitialspace=True,
        quoting=quoting,
    )
    try:
        for row in lines:
            yield [cell.strip() for cell in row]
    except csv.Error as error:
        raise csv.Error(f"line {lines.line_num}: {error}") from None


def _delimiter(text, usual):
    """Return the separator that splits most rows like the header; the usual one if none does."""

    def score(delimiter):
        found = []
        try:
            for row in _rows(text, delimiter):
                if any(row):
                    found.append(len(row))
                if len(found) > _SAMPLED:
                    break
        except csv.Error:
            pass
        width = found[0] if found else 0
        alike = sum(count == width for count in found) / max(1, len(found))
        return width > 1, alike, width, delimiter == usual

    return max(_DELIMITERS, key=score)


def _header(lines, path):
    """Return (the names of the columns, the rows below); empty rows above are left out."""
    first = next((i for i, row in enumerate(lines) if any(row)), None)
    if first is None:
        raise InputError(f"{path} is empty.")
    header = lines[first]
    while header and not header[-1]:
        header = header[:-1]
    return header, lines[first + 1 :]


def _say_empty(path, empty, count):
    """Report empty rows between others; at the end of a file they are usual."""
    while empty and empty[-1] == count:
        empty, count = empty[:-1], count - 1
    if empty:
        say(f"{path}: {len(empty)} empty rows are left out ({listed(empty)})")
