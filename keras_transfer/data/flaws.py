"""Images in which the model sees (almost) nothing: reported once, by what reads the data or by `check`."""

from collections import Counter
from contextlib import contextmanager

from keras_transfer.utils.console import counted, printable, say, verb

_printed = True


@contextmanager
def unprinted_flaws():
    """Keep `report_flaws` from printing: for what reports them itself."""
    global _printed
    before, _printed = _printed, False
    try:
        yield
    finally:
        _printed = before


def report_flaws(checked) -> None:
    """Print the number of usable images in which the model sees nothing, and the first of each kind.

    Args:
        checked: what `files.check_files` returned.
    """
    if not _printed:
        return
    first: dict[str, int] = {}
    for row, flaw in sorted(checked.flaws.items()):
        first.setdefault(flaw, row)
    counts = Counter(checked.flaws.values())
    for flaw, row in first.items():
        say(
            f"{counted(counts[flaw], checked.modality.one)} {verb(counts[flaw])} empty to the model ({printable(checked.names[row])}: {flaw})"
        )
