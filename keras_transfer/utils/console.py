"""Messages, progress bars and tables for a person at a terminal or in a notebook.

Progress goes to stderr, results go to stdout. rich is imported only to draw.
"""

import atexit
import importlib.util
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path

from keras_transfer.utils.files import encode_text

_MISSING = "–"
_GAP = "  "
_DRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0  # without a terminal

_silent = False
_log = None  # a file that receives messages instead of stderr
_display = None  # the live display that all open bars share


def say(text: str) -> None:
    """Print a line on stderr (or into the file given to `log_to`), unless silenced."""
    stream = _log or sys.stderr
    if not _silent and stream is not None:  # None: a process without stderr
        print(text, file=stream, flush=True)


def log_to(path) -> None:
    """Append all further messages to a file: for one of several worker processes."""
    global _log
    # Like stderr, it escapes names of files that are not UTF-8. It is open until the process ends.
    _log = Path(path).open("a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115


@contextmanager
def silence():
    """Suppress messages and progress bars: for many short trainings that report one result."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


@contextmanager
def quiet_tensorflow():
    """Suppress TensorFlow's notes and warnings about saving and tracing; errors still appear."""
    import tensorflow as tf

    logger = tf.get_logger()
    level, handlers = logger.level, logging.root.handlers[:]
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
        # TensorFlow adds one, after which the user's `logging.basicConfig` would have no effect.
        logging.root.handlers[:] = handlers


def progress_bar(
    items: Iterable | None = None,
    label: str = "",
    *,
    total: int | None = None,
    unit: str = "",
    done: int = 0,
    visible: bool = True,
) -> "ProgressBar":
    """Open a progress bar on stderr, removed on completion.

    In a terminal or a notebook with ipywidgets it is drawn by rich. Elsewhere long work prints a
    plain line now and then, at most every 10 seconds. `TTY_INTERACTIVE=0` in the environment
    turns drawing off.

    Args:
        items: what to iterate over; without it, call `update` after each step and `close` at the
            end, or use the bar in a `with` statement.
        label: the work, such as `"checking images"`.
        total: number of steps; by default `len(items)`, unknown if that fails.
        unit: the things counted, in the plural, such as `"files"`.
        done: number of steps completed before.
        visible: False prints nothing at all.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return ProgressBar(items, label, total, unit, done, visible and not _silent)


class ProgressBar:
    """A progress bar, opened by `progress_bar`.

    Attributes:
        done: completed steps.
    """

    _display = None

    def __init__(self, items, label, total, unit, done, visible):
        self.done = done
        self._items, self._label, self._total, self._unit = items, label, total, unit
        self._details = ""
        self._visible = visible
        self._started = time.monotonic()
        self._next = self._started + _LINE_SECONDS
        if visible and (display := _shared_display()) is not None:
            self._next = self._started + _DRAW_SECONDS
            self._task = display.add_task(label, total=total, completed=done, unit=unit, details="")
            self._display = display

    def __iter__(self) -> Iterator:
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()  # after an exception

    def update(self, steps: int = 1) -> None:
        """Count completed steps."""
        self.done += steps
        if self._visible and (now := time.monotonic()) >= self._next:
            self._show(now)

    def relabel(self, label: str) -> None:
        """Change the text in front of the bar."""
        self._label = label
        if self._display:
            self._show(time.monotonic())

    def details(self, values: Mapping[str, float]) -> None:
        """Show numbers such as the loss behind the bar, the next time it is drawn."""
        if self._display and time.monotonic() >= self._next - _DRAW_SECONDS:
            self._details = "  ".join(f"{k} {float(v):.3f}" for k, v in values.items())

    def close(self) -> None:
        """Remove the bar. Closing twice is allowed."""
        display, self._display, self._visible = self._display, None, False
        if display:
            display.remove_task(self._task)
            if not display.tasks:
                _close_display()

    def _show(self, now):
        if self._display:
            self._next = now + _DRAW_SECONDS
            self._display.update(
                self._task,
                completed=self.done,
                description=self._label,
                details=self._details,
                refresh=True,
            )
            return
        # Lines become rarer with time, so that a day's work does not fill a screen.
        self._next = now + max(_LINE_SECONDS, (now - self._started) / 4)
        unit = f" {self._unit}" if self._unit else ""
        of = f" of {self._total}" if self._total else ""
        share = f" ({100 * self.done // self._total} %)" if self._total else ""
        say(f"{self._label}{': ' if self._label else ''}{self.done}{of}{unit}{share}")


def _shared_display():
    """Return rich's live display, or None where nothing can be drawn."""
    global _display
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    if _display is not None:
        return _display if stream is _display.console.file else None
    drawing = stream is not None and os.environ.get("TTY_INTERACTIVE") != "0"
    if _log or not drawing or not _can_draw(stream):
        return None
    from rich import progress
    from rich.console import Console

    _display = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[unit]}", markup=False),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[details]}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,  # no thread: bars refresh it when they are updated
        transient=True,
        redirect_stdout=False,  # results must not go to stderr
    )
    _display.start()
    return _display


def _can_draw(stream):
    if stream.isatty():
        return os.environ.get("TERM") != "dumb"
    # The kernel of a notebook names its stream; a redirected one is a file.
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return (
        "IPKernelApp" in getattr(shell, "config", {})
        and getattr(stream, "name", "") in ("stderr", "<stderr>")
        and importlib.util.find_spec("ipywidgets") is not None
    )


@atexit.register
def _close_display():
    """Give the terminal its cursor back."""
    global _display
    display, _display = _display, None
    if display:
        display.stop()


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
    text = encode_text(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: float | str, unit: str) -> str:
    """Return a number with its unit, in the plural unless it is 1: "1 epoch", "2.5 epochs"."""
    return f"{number} {unit}" if str(number) == "1" else f"{number} {unit}s"


def verb(number: int, one: str = "is", several: str = "are") -> str:
    """Return the word that suits a number of things."""
    return one if number == 1 else several


def listed(items: Iterable, most: int = 10) -> str:
    """Return the first items on one line, separated by commas, and the number of the others."""
    items = list(items)
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(printable(str(item)) for item in items[:most]) + more


def list_lines(title: str, rows: Sequence, all_by: str, most: int = 10) -> Iterator[str]:
    """Yield a list for a report: an empty line, the title with the count, and the first rows.

    Args:
        all_by: options that print all of them.
    """
    if rows:
        yield ""
        yield f"{title}: {len(rows)}"
        yield from (f"  {row}" for row in rows[:most])
        if len(rows) > most:
            yield f"  and {len(rows) - most} more ({all_by})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def print_table(table: Table) -> None:
    """Print a table on stdout: drawn with lines in a terminal, as plain text elsewhere."""
    if not sys.stdout.isatty():
        print(table.text())
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text  # plain text, whereas rich reads markup in strings

    drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for name, letter in zip(table.header, table.align):
        drawn.add_column(Text(name), justify="right" if letter == "r" else "left")
    for row in table.cells:
        drawn.add_row(*map(Text, row))
    Console(file=sys.stdout, highlight=False).print(drawn)


def format_bytes(size: int) -> str:
    """Return a number of bytes as text with a unit."""
    unit = min(4, int(math.log2(max(1, size)) // 10))
    return f"{size / (1 << 10 * unit):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"
