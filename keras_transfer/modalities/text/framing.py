"""How a model reads texts: the words of its vocabulary, the rules that find them, and how many fit.

Importing this module loads neither Keras nor TensorFlow.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing

LEAST_TOKENS = 3  # the special tokens and one word


@dataclass(frozen=True)
class WordPiece:
    """The tokenizer of BERT (arXiv:1810.04805), as plain data; see `tokens.Tokens` for the ops.

    Attributes:
        words: the vocabulary, one word a line; a word's id is the number of its line, from 0.
        lowercase: whether letters become small.
        strip_accents: whether accents are removed.
        start, end, padding, unknown, mask: the special tokens.

    Raises:
        InputError: a special token is not in the vocabulary.
    """

    words: str
    lowercase: bool = True
    strip_accents: bool = True
    start: str = "[CLS]"
    end: str = "[SEP]"
    padding: str = "[PAD]"
    unknown: str = "[UNK]"
    mask: str = "[MASK]"

    def __post_init__(self):
        for token in (self.start, self.end, self.padding, self.unknown):
            if token not in self.ids:
                raise InputError(
                    f"The tokenizer's vocabulary of {len(self.ids)} words has no {token}."
                )

    @cached_property
    def vocabulary(self) -> list[str]:
        """The words, by their id."""
        return self.words.split("\n")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word → id."""
        return {word: number for number, word in enumerate(self.vocabulary)}

    @cached_property
    def digest(self) -> str:
        """A digest of the vocabulary, in hexadecimal digits."""
        return hashlib.blake2b(self.words.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class TextFraming(Framing):
    """The tokens that a model reads of a text.

    Attributes:
        size: the largest number of tokens, special ones included; longer texts are cut at the end.
        tokenizer: None leaves it open.

    Raises:
        InputError: the size is out of its range.
    """

    modality: ClassVar[str] = "text"

    size: int | None = None
    tokenizer: WordPiece | None = None

    def __post_init__(self):
        if self.size is not None and self.size < LEAST_TOKENS:
            raise InputError(f"Texts need at least {LEAST_TOKENS} tokens, not {self.size}.")

    @property
    def settled(self) -> bool:
        """Whether the tokenizer is known."""
        return self.tokenizer is not None

    @property
    def required(self) -> WordPiece:
        """The tokenizer; an InputError if it is open."""
        if self.tokenizer is None:
            raise InputError(
                "The model's tokenizer is unknown: choose an encoder with a WordPiece tokenizer (BERT, "
                "DistilBERT, ELECTRA) by its name or its folder."
            )
        return self.tokenizer

    @property
    def shape(self) -> tuple[None]:
        """Shape of a model input: each batch has the length of its longest text."""
        return (None,)

    @property
    def longest(self) -> tuple[int | None]:
        """Shape of the largest model input."""
        return (self.size,)

    @property
    def built_size(self) -> None:
        """None: an encoder reads texts of any length up to its limit."""
        return None

    @property
    def extent(self) -> str:
        """How much a model reads, in words."""
        return f"at most {self.size} tokens"

    def at(self, size: int | None) -> "TextFraming":
        """Return the same framing for another size; None leaves it as it is."""
        return self if size is None else replace(self, size=size)

    def to_dict(self) -> dict:
        """Return everything, as plain data."""
        tokenizer = self.tokenizer and asdict(self.tokenizer)
        return {"modality": self.modality, "tokens": self.size, "tokenizer": tokenizer}

    def recorded(self) -> dict:
        """Return the same with a digest in place of the vocabulary, which the model contains."""
        if self.tokenizer is None:
            return self.to_dict()
        words = {"words": len(self.tokenizer.vocabulary), "digest": self.tokenizer.digest}
        return {**self.to_dict(), "tokenizer": {**asdict(self.tokenizer), **words}}

    def settings(self) -> dict:
        """Return what a run's settings contain: the size is `tokens`, not that of an image."""
        return {"image_size": None, **self.recorded()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "TextFraming":
        """Return what `to_dict` wrote; what `recorded` wrote has an open tokenizer."""
        tokenizer = values.get("tokenizer")
        if tokenizer is None or "digest" in tokenizer:
            return cls(values["tokens"])
        return cls(values["tokens"], WordPiece(**tokenizer))

    def __str__(self) -> str:
        if self.tokenizer is None:
            return "WordPiece"
        letters = "small letters" if self.tokenizer.lowercase else "letters as they are"
        return f"WordPiece, {len(self.tokenizer.vocabulary):,} words, {letters}"
