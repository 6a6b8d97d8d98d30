"""Texts as a `Modality`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality
from keras_transfer.modalities.reading import digest
from keras_transfer.modalities.statistics import binned, counted, described, spread
from keras_transfer.modalities.text import augment, check
from keras_transfer.modalities.text.arrays import parts_of
from keras_transfer.modalities.text.framing import TextFraming
from keras_transfer.modalities.text.sketch import NEAR
from keras_transfer.utils.console import verb
from keras_transfer.utils.extras import require

_SLICES = (5, 10, 20, 50, 100, 200, 500)  # words
_EXCERPT = 70  # characters
_FEW = 100  # values in memory, of which one is a string if they are texts
_RULES = 3  # of checking: increase it when `examine` changes what it finds in the same file


class Texts(Modality):
    """Texts: UTF-8 in files, strings once decoded, token ids for the model."""

    name, one, many = "text", "text", "texts"
    extensions = frozenset(check.EXTENSIONS)
    formats = "UTF-8"
    facts = check.Facts
    framed_by = ("tokens",)
    mirrors = False
    not_in_8_bits = "the ranges of values are measured on images"
    taps = ("last", "all", "all+tfidf")
    baseline = "TF-IDF"
    typed = True
    beside = True
    equal = "texts that are equal but for case, spaces and punctuation"
    alike = staticmethod(check.alike)
    sketched = 1
    sketched_by = "datasketch"
    near = NEAR
    axes = 2
    any_length = True
    reads = "text"
    input_name = "token_ids"
    input_dtype = "int32"
    decoded = (("string", []),)
    served = "texts in UTF-8"
    served_decoded = "`serving_default` takes texts, too."
    file_example = "text.txt"
    unreadable = "is empty or not UTF-8"
    page = Path(__file__).with_name("page.js")

    @property
    def rules(self) -> str:
        return str(_RULES)

    def examine(self, contents: bytes) -> check.Facts:
        return check.examine(contents)

    def statistics(self, columns: Mapping) -> dict[str, dict]:
        known = columns["characters"] > 0
        scripts = columns["script"][known]
        return {
            "characters": spread(columns["characters"][known]),
            "words": spread(columns["words"][known]),
            "scripts": counted(scripts[scripts != b""]),
            "markup": {"texts": int(columns["markup"].sum())},
        }

    def describe_statistics(self, statistics: dict) -> Iterator[str]:
        names = {"least": "minimum", "median": "median", "greatest": "maximum"}
        if statistics["characters"]:
            yield ""
        for title in ("characters", "words"):
            if found := statistics[title]:
                yield f"{title}: {', '.join(f'{n} {found[k]:,}' for k, n in names.items())}"
        yield from described(statistics, {"scripts": "script"})
        if count := statistics["markup"]["texts"]:
            yield f"HTML tags or entities, which the model would read as words: {count} {verb(count, 'text', 'texts')}"

    def sizes(self, columns: Mapping) -> list[str]:
        return binned(columns["words"], _SLICES, "words")

    def excerpt(self, reader, index: int, most: int = _EXCERPT) -> str:
        text = " ".join(reader.decoded(index).replace(check.BETWEEN, " | ").split())
        return text if len(text) <= most else f"{text[: most - 1]}…"

    def occluded(self, example: str, framing) -> tuple:
        from keras_transfer.modalities.text.occlusion import occluded

        return occluded(example, framing)

    def notes(self, data, framing: TextFraming) -> Iterator[str]:
        from keras_transfer.modalities.text.notes import notes

        splits = getattr(data, "examples", {"train": data})
        reader = splits.get("train", next(iter(splits.values()))).images
        yield from notes(reader, framing, self.preparation(reader, (), framing).lengths)

    def baseline_features(self, examples: Sequence[str]):
        from keras_transfer.modalities.text.tfidf import vectorizer

        return vectorizer(examples)

    def looks_right(self, start: bytes) -> bool:
        """Return False: what is not called .txt is not taken for a text."""
        return False

    def open(self, contents: bytes) -> str:
        return check.decode(contents)

    def whole(self, opened: str, framing=None) -> str:
        return opened

    def open_decoded(self, example: str) -> str:
        return example

    def check_decoded(self, example: str) -> str | None:
        # As in tables, neither text of a pair may be empty.
        whole = all(part.strip() for part in example.split(check.BETWEEN))
        return check.fault_of(example if whole else "")

    def encode(self, example: str) -> bytes:
        return example.encode()

    def digest(self, example: str) -> bytes:
        return digest(example.encode())

    def caster(self, split: str, **facts):
        from keras_transfer.modalities.text.arrays import Cast

        return Cast(split)

    def holds(self, values: Sequence, facts: Mapping) -> bool:
        first = list(values[:_FEW])
        first += [part for value in first for part in parts_of(value)]
        return not facts and any(isinstance(value, (str, bytes)) for value in first)

    def framing(self, values: Mapping) -> TextFraming:
        return TextFraming.from_dict(values)

    def open_framing(self, size: int | None) -> TextFraming:
        return TextFraming(size)

    def choose_framing(self, data, size: int | None):
        """Raise InputError: the encoder brings its tokenizer, whatever the data."""
        framing = TextFraming(size)
        framing.required  # noqa: B018 - raises
        return framing, ""

    def default_framing(self, data, size: int | None) -> TextFraming:
        framing, _ = self.choose_framing(data, size)
        return framing

    def model_input(self, name: str, shape, size: int | None) -> tuple:
        if size is not None:
            raise InputError(f"{name} reads texts: it has no image_size.")
        return tuple(shape[1:]), self.input_dtype, self.input_name

    def preparation(self, reader, views: Sequence, framing, memory=None):
        require("tensorflow_text", "Reading texts")
        from keras_transfer.modalities.text.preparation import Preparation

        return Preparation(reader, views, framing, memory)

    def resolve_augmentation(self, augmentation) -> augment.TextAugmentation:
        return augment.resolve_augmentation(augmentation)

    def default_augmentation(self, data, size: int | None) -> str:
        return "none"

    def stronger_augmentation(self, augmentation) -> augment.TextAugmentation:
        return augment.PRESETS["heavy"]

    def mixer(self, mix) -> Callable:
        raise InputError(f"mix {mix.kind} is for images: half of each of two texts is not a text.")

    def decoder(self, framing) -> Callable:
        from keras_transfer.modalities.text.serving import decoder

        return decoder(framing)

    def batch_decoder(self, framing) -> Callable:
        from keras_transfer.modalities.text.serving import batch_decoder

        return batch_decoder(framing)

    def sketch(self, opened: str):
        from keras_transfer.modalities.text.sketch import sketch

        return sketch(check.words_only(opened))

    def requests(self, framing) -> dict:
        from keras_transfer.modalities.text.serving import requests

        return requests(framing)

    def trial(self, example: str, framing) -> tuple:
        from keras_transfer.modalities.text.serving import padded_ids

        return padded_ids([example], framing)[0], {
            "serving_default": {"texts": example},
            "serve_bytes": {"bytes": example.encode()},
        }

    def noise(self, framing, count: int = 2) -> list:
        """Return words of the vocabulary in any order."""
        words = framing.required.vocabulary
        rng = np.random.default_rng(0)
        return [" ".join(words[i] for i in rng.integers(0, len(words), 12)) for _ in range(count)]

    def describe_input(self, framing, count: str) -> str:
        shape = f"one text at a time, [1, {framing.size}]" if count == "1" else "[N, T]"
        padding = framing.required.ids[framing.required.padding]
        return f"Input `token_ids`: int32 {shape}, T at most {framing.size}, padded with {padding} at the end."

    def longest_inputs(self, inputs, framing) -> np.ndarray:
        padding = framing.required.ids[framing.required.padding]
        missing = framing.size - inputs.shape[1]
        return np.pad(inputs, ((0, 0), (0, missing)), constant_values=padding)

    def write_preparation(self, folder, framing) -> None:
        from keras_transfer.modalities.text.description import write_description

        write_description(folder, framing)

    def page_input(self, framing, examples=()) -> dict:
        from keras_transfer.modalities.text.description import page_input

        return page_input(framing, any(check.BETWEEN in text for text in examples))

    def describe_preparation(self, framing) -> str:
        from keras_transfer.modalities.text.description import describe

        return describe(framing)

    def describe_limits(self, framing) -> str:
        return f"Of a text longer than {framing.size} tokens only the beginning is read."


MODALITY = Texts()
