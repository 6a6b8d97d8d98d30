"""Generated requests to a travel agency for the offline demo, and a small encoder that reads them."""

from pathlib import Path

import keras
import numpy as np

from keras_transfer.modalities.text.framing import TextFraming, WordPiece
from keras_transfer.models.stages import Backbone
from keras_transfer.models.tokens import TextEmbedding, TokenPooling
from keras_transfer.models.transformers import Block, Form

_ACTIONS = {
    "book": "book reserve order arrange organize secure",
    "cancel": "cancel drop revoke delete annul withdraw",
    "change": "change move modify adjust alter postpone",
    "price": "price rate cost fee charge quote",
}
_THINGS = {
    "flight": "flight plane airline ticket boarding departure",
    "hotel": "hotel room hostel suite stay lodging",
    "table": "table dinner restaurant lunch bistro meal",
    "taxi": "taxi cab ride driver car limousine",
}
_POLITE = "please could you i want to need help me with a the my for tomorrow today now soon"
# Classes are pairs; those of the target never occur in the source, but their words do.
_SHIFTS = {"source": (0, 1), "target": (2,)}
_SOURCE_EACH, _TRAIN_EACH, _VAL_EACH = 80, 10, 50
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WIDTH, _TOKENS = 32, 16


def classes_of(part: str) -> list[str]:
    """Return the classes of `"source"` or `"target"`: an action and a thing."""
    things = list(_THINGS)
    return [
        f"{action} {things[(i + shift) % len(things)]}"
        for shift in _SHIFTS[part]
        for i, action in enumerate(_ACTIONS)
    ]


def write_texts(folder: Path, seed: int) -> None:
    """Write UTF-8 files to source/<class>/ and target/{train,val}/<class>/."""
    rng, seen = np.random.default_rng(seed), set[str]()
    for part, count in (
        ("source", _SOURCE_EACH),
        ("target/train", _TRAIN_EACH),
        ("target/val", _VAL_EACH),
    ):
        for name in classes_of(part.partition("/")[0]):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                while (text := request(name, rng)) in seen:
                    pass
                seen.add(text)
                (place / f"{number:02}.txt").write_text(text, encoding="utf-8")


def request(name: str, rng: np.random.Generator) -> str:
    """Return a request of a class: one word for the action, one for the thing, others between them."""
    action, thing = name.split()
    words = [rng.choice(_ACTIONS[action].split()), rng.choice(_THINGS[thing].split())]
    if rng.random() < 0.5:
        words.reverse()
    polite = list(rng.choice(_POLITE.split(), rng.integers(3, 9), replace=False))
    place = rng.integers(1, len(polite))
    return " ".join([*polite[:place], words[0], polite[place], words[1], *polite[place + 1 :]])


def small_encoder() -> Backbone:
    """Return an encoder of two blocks on the words of these requests, with random weights."""
    known = " ".join([*_ACTIONS.values(), *_THINGS.values()]).split()
    words = [*_SPECIAL, *_POLITE.split(), *known]
    form = Form(_WIDTH, 2, 2 * _WIDTH, norm_first=False, masked=True)
    inputs = keras.Input((None,), dtype="int32", name="token_ids")
    x = TextEmbedding(len(words), _WIDTH, _TOKENS, name="words")(inputs)
    for number in (1, 2):
        x = Block(form, name=f"block_{number}")(x)
    x = TokenPooling("avg", name="pooling")(x)
    framing = TextFraming(_TOKENS, WordPiece("\n".join(words)))
    return Backbone(inputs, x, name="small_encoder", framing=framing)
