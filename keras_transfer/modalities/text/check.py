"""Check and decode texts: UTF-8, in files or in memory."""

from typing import NamedTuple

EXTENSIONS = (".txt",)
MOST_CHARACTERS = 10_000_000  # of one example, far more than any model reads


class Facts(NamedTuple):
    """What checking a text found.

    Attributes:
        characters: number of characters; 0 if the text cannot be read.
        digest: BLAKE2b of the whole file, 16 bytes; empty if the file was not read.
        fault: why the text cannot be used; None if it can.
    """

    characters: int = 0
    digest: bytes = b""
    fault: str | None = None

    @property
    def flaw(self) -> str | None:
        """Why the model sees nothing in a usable text: an empty text is a fault."""
        return None


def decode(contents: bytes) -> str:
    """Return the text in the bytes of a file.

    Raises:
        ValueError: it is not UTF-8, empty, or too long.
    """
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {error.start} is 0x{contents[error.start]:02x}; save it as UTF-8"
        ) from None
    if fault := fault_of(text):
        raise ValueError(fault)
    return text


def fault_of(text: str) -> str | None:
    """Return why a text cannot be used; None if it can."""
    if not text.strip():
        return "empty text"
    if len(text) > MOST_CHARACTERS:
        return f"too long: {len(text):,} characters, the limit is {MOST_CHARACTERS:,}; divide it"
    return None


def examine(contents: bytes) -> Facts:
    """Return the facts about the bytes of a text file, without a digest."""
    try:
        return Facts(len(decode(contents)))
    except ValueError as error:
        return Facts(fault=str(error))
