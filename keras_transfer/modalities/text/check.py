"""Check texts: encodings, scripts, HTML and near-duplicates."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from keras_transfer.modalities.reading import digest
from keras_transfer.utils.encodings import fitting_encoding

MOST_CHARACTERS = 10_000_000  # of one example, far more than any model reads
EXTENSIONS = (".txt",)
BETWEEN = "\x1f"  # the two texts of a pair: the unit separator of ASCII, which occurs in no text
_SAMPLE = 2000  # characters that tell the script
_MARKUP = re.compile(
    r"</?(a|b|body|br|code|div|em|font|h[1-6]|head|html|i|img|li|meta|p|pre|script|span|strong|style|"
    r"table|td|th|tr|u|ul)(\s[^<>]*)?/?>|&(amp|lt|gt|quot|apos|nbsp|#\d{1,7}|#x[\da-f]{1,6});",
    re.IGNORECASE,
)
_NO_WORDS = re.compile(r"[\W_]+")


class Facts(NamedTuple):
    """What checking a text found.

    Attributes:
        characters: number of characters; 0 if the text cannot be read.
        words: number of its parts between white space.
        script: of most letters, such as `Latin` or `Cyrillic`; empty without letters.
        markup: 1 if it contains HTML.
        digest: BLAKE2b of the UTF-8 bytes, 16 bytes; empty if they were not read.
        fault: why the text cannot be used; None if it can.
    """

    characters: int = 0
    words: int = 0
    script: str = ""
    markup: int = 0
    digest: bytes = b""
    fault: str | None = None

    @property
    def flaw(self) -> str | None:
        """Why the model sees nothing in a usable text; None if it sees something."""
        return None if self.script else "has no letters"


def decode(contents: bytes) -> str:
    """Return the text in the bytes of a file.

    Raises:
        ValueError: it is not UTF-8, empty, binary or too long.
    """
    try:
        # Halves of pairs pass, because `fault_of` names their fault.
        text = contents.decode("utf-8-sig", "surrogatepass")
    except UnicodeDecodeError as error:
        fits = fitting_encoding(contents)
        raise ValueError(
            f"not UTF-8 ({error.reason}, byte {error.start}); it fits {fits}: convert it with "
            f"iconv -f {fits} -t utf-8"
        ) from None
    if fault := fault_of(text):
        raise ValueError(fault)
    return text


def pair_of(first: str, second: str) -> str:
    """Return two texts, such as a question and an answer, as one string that encoders read as a pair."""
    return BETWEEN.join(text.replace(BETWEEN, " ") for text in (first, second))


def fault_of(text: str) -> str | None:
    """Return why a text cannot be used; None if it can."""
    if not text.strip():
        return "empty text"
    if "\0" in text:
        return "not a text but binary data"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not valid text: character {error.start} is half of a pair (a lone surrogate)"
    if len(text) > MOST_CHARACTERS:
        return f"too long: {len(text):,} characters, the limit is {MOST_CHARACTERS:,}; divide it"
    return None


def examine(contents: bytes) -> Facts:
    """Return the facts about the bytes of a text, without a digest."""
    try:
        text = decode(contents)
    except ValueError as error:
        return Facts(fault=str(error))
    markup = int(_MARKUP.search(text) is not None)
    return Facts(len(text), len(text.split()), script_of(text), markup)


def script_of(text: str) -> str:
    """Return the script of most letters at the beginning of a text; "" without letters."""
    text = text[:_SAMPLE]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else ""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else ""


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    """Return the script of a letter: the first word of its Unicode name."""
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "unknown").split()[0]
    return {"CJK": "Han"}.get(name, name.capitalize())[:16]


def alike(contents: bytes) -> bytes:
    """Return a digest, 16 bytes, that texts share if only case, punctuation, spaces or markup differ."""
    words = words_only(contents.decode("utf-8-sig", "replace"))
    return digest(words.encode() or contents)


def words_only(text: str) -> str:
    """Return the words of a text in lower case, without punctuation and markup, one space apart."""
    text = unicodedata.normalize("NFKC", _MARKUP.sub(" ", text)).casefold()
    return _NO_WORDS.sub(" ", text).strip()
