"""How a model reads texts: the words of its vocabulary, the rules that find them, and how many fit.

Importing this module loads neither Keras nor TensorFlow.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing

LEAST_TOKENS = 3  # the special tokens and one word


@dataclass(frozen=True)
class Vocabulary:
    """The words of a tokenizer, of which some are special tokens.

    Attributes:
        words: one a line; a word's id is the number of its line, from 0.
        start, end, padding, unknown, mask: the special tokens.

    Raises:
        InputError: a special token other than the mask is not in the vocabulary.
    """

    kind: ClassVar[str]

    words: str
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

    def recorded(self) -> dict:
        """Return its fields, as plain data, with a digest in place of the vocabulary."""
        return {**asdict(self), "words": len(self.vocabulary), "digest": self.digest}


@dataclass(frozen=True)
class WordPiece(Vocabulary):
    """The tokenizer of BERT (arXiv:1810.04805), as plain data; see `tokens.WordPieces` for the ops.

    Attributes:
        words, start, end, padding, unknown, mask: see `Vocabulary`.
        lowercase: whether letters become small.
        strip_accents: whether accents are removed.
    """

    kind = "WordPiece"

    lowercase: bool = True
    strip_accents: bool = True

    def __str__(self) -> str:
        letters = "small letters" if self.lowercase else "letters as they are"
        return f"{self.kind}, {len(self.vocabulary):,} words, {letters}"


@dataclass(frozen=True)
class SentencePiece(Vocabulary):
    """The tokenizer of multilingual encoders (arXiv:1808.06226), as plain data; see `tokens.SentencePieces`.

    Attributes:
        words, start, end, padding, unknown, mask: see `Vocabulary`.
        model: the file of the package sentencepiece, in base64.
        shift: what is added to the ids of that file.
        ends: number of `end` tokens between the texts of a pair.
    """

    kind = "SentencePiece"

    model: str = field(kw_only=True)
    shift: int = 0
    ends: int = 1

    def recorded(self) -> dict:
        """Return its fields, as plain data, with digests in place of the vocabulary and the file."""
        digest = hashlib.blake2b(self.model.encode(), digest_size=8).hexdigest()
        return {**super().recorded(), "model": digest}

    def __str__(self) -> str:
        return f"{self.kind}, {len(self.vocabulary):,} pieces"


TOKENIZERS = {tokenizer.kind: tokenizer for tokenizer in (WordPiece, SentencePiece)}


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
    tokenizer: WordPiece | SentencePiece | None = None

    def __post_init__(self):
        least = LEAST_TOKENS + getattr(self.tokenizer, "ends", 1) - 1  # those between two texts
        if self.size is not None and self.size < least:
            raise InputError(f"Texts need at least {least} tokens, not {self.size}.")

    @property
    def settled(self) -> bool:
        """Whether the tokenizer is known."""
        return self.tokenizer is not None

    @property
    def required(self) -> WordPiece | SentencePiece:
        """The tokenizer; an InputError if it is open."""
        if self.tokenizer is None:
            raise InputError(
                "The model's tokenizer is unknown: choose an encoder whose tokenizer is WordPiece (BERT, "
                "DistilBERT, ELECTRA) or SentencePiece (XLM-R), by its name or its folder."
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
        tokenizer = self.tokenizer and {"kind": self.tokenizer.kind, **asdict(self.tokenizer)}
        return {"modality": self.modality, "tokens": self.size, "tokenizer": tokenizer}

    def recorded(self) -> dict:
        """Return the same with a digest in place of the vocabulary, which the model contains."""
        tokenizer = self.tokenizer and self.tokenizer.recorded()
        return {"modality": self.modality, "tokens": self.size, "tokenizer": tokenizer}

    def settings(self) -> dict:
        """Return what a run's settings contain: the size is `tokens`, not that of an image."""
        return {"image_size": None, **self.recorded()}

    @classmethod
    def from_dict(cls, values: Mapping) -> "TextFraming":
        """Return what `to_dict` wrote; what `recorded` wrote has an open tokenizer."""
        tokenizer = values.get("tokenizer")
        if tokenizer is None or "digest" in tokenizer:
            return cls(values["tokens"])
        fields = dict(tokenizer)
        # Models of before the second kind do not name theirs.
        return cls(values["tokens"], TOKENIZERS[fields.pop("kind", WordPiece.kind)](**fields))

    def __str__(self) -> str:
        return "open" if self.tokenizer is None else str(self.tokenizer)
