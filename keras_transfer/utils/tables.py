"""Tables for people: one description, rendered as Markdown, plain text or for the terminal."""

import os
from collections.abc import Iterable, Sequence

_MISSING = "–"
_GAP = "  "


class Table:
    """Rows of cells under a header.

    Attributes:
        header: the columns' names.
        cells: the rows as text, each as long as the header.
        align: one letter per column, `l` or `r`.
    """

    def __init__(self, header: Iterable, rows: Iterable[Iterable], align: str | None = None):
        """Render every cell to one line of text.

        Args:
            header: the columns' names.
            rows: the cells. None becomes a dash, control characters are escaped; anything else is
                rendered with `str`, so format numbers first.
            align: one letter per column, `l` or `r`. By default a column is right-aligned if
                every cell is a number or None.

        Raises:
            ValueError: if a row or `align` does not have one entry per column.
        """
        values = [list(row) for row in rows]
        self.header = [cell_text(name) for name in header]
        self.cells = [[cell_text(cell) for cell in row] for row in values]
        columns = len(self.header)
        if any(len(row) != columns for row in values) or len(align or self.header) != columns:
            raise ValueError(f"Every row and align need {columns} entries, one per column.")
        self.align = _default_align(values, columns) if align is None else align

    def text(self) -> str:
        """Return lines of plain text, the columns padded to the same width."""
        lines = [self.header, *self.cells]
        widths = [max(map(text_width, column)) for column in zip(*lines)]
        return "\n".join(
            _GAP.join(map(_padded, line, widths, self.align)).rstrip() for line in lines
        )

    def markdown(self) -> str:
        """Return a Markdown table; a `|` in a cell is escaped."""
        rule = ["---:" if letter == "r" else "---" for letter in self.align]
        escaped = (
            [cell.replace("|", "\\|") for cell in line] for line in (self.header, *self.cells)
        )
        header, *rows = (f"| {' | '.join(line)} |" for line in escaped)
        return "\n".join([header, f"|{'|'.join(rule)}|", *rows])


def printable(text: str) -> str:
    """Return text on one line: control characters and bytes that are not UTF-8 are escaped."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell_text(value) -> str:
    """Return one line of text for a table cell; None becomes a dash."""
    return _MISSING if value is None else " ".join(printable(str(value)).split())


def text_width(text: str) -> int:
    """Return how many terminal columns a text takes; East Asian characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text, width, letter):
    space = " " * (width - text_width(text))
    return space + text if letter == "r" else text + space


def _default_align(rows: Sequence[Sequence], columns):
    def numeric(column):
        return all(row[column] is None or isinstance(row[column], int | float) for row in rows)

    return "".join("r" if rows and numeric(column) else "l" for column in range(columns))
