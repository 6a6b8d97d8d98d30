"""Near-duplicates: sketches, groups across splits and labels, and splits that keep them together."""

import json

import numpy as np
import pytest
from conftest import raises
from PIL import Image

import keras_transfer as kt
from keras_transfer.cli.options import open_images
from keras_transfer.diagnosis.near import groups_of, near_pairs
from keras_transfer.diagnosis.seen import nearest
from keras_transfer.modalities import find_modality
from keras_transfer.training.config import TrainConfig

pytest.importorskip("imagehash")
SIZE = 160


def scene(seed: int) -> Image.Image:
    """A few soft shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 7, 3)).astype("uint8")
    return Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


CHANGES = {
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": lambda image: image.crop((8, 4, SIZE - 4, SIZE - 8)),
    "small": lambda image: image.resize((64, 64)),
    "tilted": lambda image: image.rotate(3).crop((8, 8, SIZE - 8, SIZE - 8)),
    "dark": lambda image: image.point(lambda value: value // 2),
}


def opened(image):
    return find_modality("image").open_decoded(np.asarray(image))


def agreement(a, b):
    bits = find_modality("image").sketch(opened(a)).bits
    return (bits == find_modality("image").sketch(opened(b)).bits[:1]).mean(axis=1).max()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_has_nearly_the_same_bits(change):
    assert agreement(CHANGES[change](scene(1)), scene(1)) > 0.85
    assert agreement(CHANGES[change](scene(1)), scene(2)) < 0.7


def test_texts_are_alike_by_their_shingles():
    pytest.importorskip("datasketch")
    texts = find_modality("text")

    def likeness(a, b):  # an estimate of the shared part of the shingles
        return 2 * (texts.sketch(a).bits == texts.sketch(b).bits).mean() - 1

    first = "How do I activate my new card before it arrives at home?"
    assert likeness(first, "how do i activate my new card, before it arrives at home") == 1
    assert likeness(first, "How do I activate my new card before it arrives at work?") > 0.6
    assert likeness(first, "Why was my transfer declined by the bank yesterday evening?") < 0.3


def test_pairs_are_linked_by_features_and_bits_together():
    """Rows 0 to 2 form a chain, 3 has equal features alone, 4 equal bits alone, which is not enough."""
    directions = np.eye(6, dtype="float32")[[0, 0, 0, 0, 1, 2]]
    bits = np.random.default_rng(0).integers(0, 256, (6, 2, 32)).astype("uint8")
    bits[1] = bits[0]
    bits[2] = bits[1, ::-1]  # what is its first view is the second of the others
    bits[4] = bits[0]
    pairs, likeness = near_pairs(directions, nearest(directions), bits, 1.8)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]] and (likeness > 1.98).all()
    assert groups_of(6, pairs).tolist() == [0, 0, 0, 1, 2, 3]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Twenty scenes of each class; of one, changed copies are in the other split and the other class."""
    folder = tmp_path_factory.mktemp("planted")
    for name, first in {"a": 0, "b": 100}.items():
        for split, seeds in {"train": range(14), "val": range(14, 20)}.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for seed in seeds:
                scene(first + seed).save(place / f"{seed}.png")
    CHANGES["cropped"](scene(3)).save(folder / "val/a/leak.png")
    CHANGES["small"](scene(104)).save(folder / "train/a/other.png")
    return folder


def test_leakage_and_contradictions_are_listed(planted, real_weights):
    found = kt.diagnose(kt.data.open_data(planted), backbone="mobilenet_0.25", image_size=128)
    near = [p for p in found.problems if p.problem in ("leakage", "near-duplicate")]
    assert [(p.problem, p.path, p.related, p.reason) for p in near] == [
        ("leakage", "val/a/leak.png", ("train/a/3.png",), ""),
        ("near-duplicate", "train/b/4.png", ("train/a/other.png",), "with another label"),
    ]
    assert "val/a/leak.png (val, a): like train/a/3.png, score 1." in found.text()
    assert json.loads(json.dumps(found.to_dict()))["problems"]


def test_splits_keep_them_together(planted, real_weights, tmp_path):
    together = []
    for name in ("copies", "near"):
        options = {"backbone": "mobilenet_0.25", "keep_together": name, "val_split": 0.5}
        splits = []
        for seed in range(4):
            data = open_images(planted / "train", TrainConfig(**options, seed=seed))
            where = {path: split for path, _, split in data.split_table()}
            splits.append(where["b/4.png"] == where["a/other.png"])
        together.append(splits)
    assert not all(together[0]) and all(together[1])
    with raises("--keep-together determines the split"):
        open_images(planted, TrainConfig(**options))
