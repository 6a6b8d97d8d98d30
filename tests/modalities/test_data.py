"""Folders to batches: layouts, checks, splits, decoding, transforms, the training stream."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_folder, raises
from PIL import Image

from keras_transfer.data import (
    check_examples,
    from_directory,
    labeled_images,
    list_images,
    read_tree,
)
from keras_transfer.modalities.image.decode import decode
from keras_transfer.modalities.image.serving import decode_in_graph

LEFT, TOP_RIGHT, BOTTOM_RIGHT = (200, 50, 20), (30, 180, 90), (20, 40, 220)

# --- Material ---------------------------------------------------------------------------------


def three_colours() -> Image.Image:
    """48 x 32: left half, upper right and lower right quarter in one colour each."""
    pixels = np.empty((32, 48, 3), np.uint8)
    pixels[:, :24] = LEFT
    pixels[:16, 24:] = TOP_RIGHT
    pixels[16:, 24:] = BOTTOM_RIGHT
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- Folders ----------------------------------------------------------------------------------


def test_read_tree_of_classes(animals):
    (animals / "dog" / "young" / "small").mkdir(parents=True)
    (animals / "dog" / "young" / "small" / "A.JPG").write_bytes(b"x")
    (animals / "dog" / "notes.txt").write_text("kept here, judged later")
    for dropping in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (animals / "dog" / dropping).write_bytes(b"x")
    (animals / ".ipynb_checkpoints").mkdir()
    (animals / "loose.png").write_bytes(b"x")
    tree = read_tree(animals)
    assert list(tree) == ["all"] and list(tree["all"]) == ["cat", "dog", "emu"]
    names = [str(Path(path).relative_to(animals / "dog")) for path in tree["all"]["dog"]]
    assert names == [*(f"{i:02}.png" for i in range(6)), "notes.txt", "young/small/A.JPG"]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_read_tree_of_splits(tmp_path, val):
    make_folder(tmp_path, {"train/a": 3, "train/b": 2, f"{val}/a": 1, "test/b": 1, "other/c": 1})
    tree = read_tree(tmp_path)
    assert list(tree) == ["train", "val", "test"]
    assert {split: {c: len(f) for c, f in classes.items()} for split, classes in tree.items()} == {
        "train": {"a": 3, "b": 2},
        "val": {"a": 1},
        "test": {"b": 1},
    }


def test_a_class_called_train_is_no_split(tmp_path):
    make_folder(tmp_path, {"train": 2, "tram": 2})
    assert list(read_tree(tmp_path)["all"]) == ["train", "tram"]


def test_a_link_back_to_its_own_folder_ends(animals):
    (animals / "cat" / "again").symlink_to(animals / "cat")
    assert len(read_tree(animals)["all"]["cat"]) == 10


@pytest.mark.parametrize("above", [".", ".."])
def test_a_link_to_a_folder_above_brings_no_other_classes(animals, above):
    link = animals / "cat" / "up"
    link.symlink_to(animals / above)
    data = from_directory(animals, progress=False)
    assert sum(counts["cat"] for counts in data.counts.values()) == 10
    assert [(one.path, one.reason) for one in data.skipped] == [
        (str(link), "cannot be read: the link leads to a folder above it")
    ]


def test_read_tree_refuses(tmp_path, animals):
    with raises(f"no such folder: {tmp_path / 'nowhere'}"):
        read_tree(tmp_path / "nowhere")
    with raises("00.png is a file; pass the folder"):
        read_tree(animals / "cat" / "00.png")
    with raises(f"no class folders in {animals / 'cat'}: images lie directly in it"):
        read_tree(animals / "cat")
    (tmp_path / "empty").mkdir()
    with raises("it has no subfolders; put each class's images in"):
        read_tree(tmp_path / "empty")
    with raises("only one class (cat)"):
        read_tree(make_folder(tmp_path / "one", {"cat": 2}))
    with raises(f"val in {tmp_path / 'more'} has classes that train lacks: zebra"):
        read_tree(make_folder(tmp_path / "more", {"train/a": 1, "train/b": 1, "val/zebra": 1}))
    with raises("only one class (a)"):
        read_tree(make_folder(tmp_path / "names", {"training/a": 1, "testing/a": 1}))
    with raises("two folders for val: val and validation"):
        read_tree(make_folder(tmp_path / "two", {"train/a": 1, "val/a": 1, "validation/a": 1}))
    with raises(f"no class folders in {tmp_path / 'flat' / 'val'}"):
        read_tree(make_folder(tmp_path / "flat", {"train/a": 1, "train/b": 1, "val": 1}))


def test_list_images(tmp_path, animals):
    odd = tmp_path / "image.without.extension"
    odd.write_bytes(b"x")
    (animals / "cat" / "notes.txt").write_text("no image")
    (animals / "cat" / "LOUD.JPG").write_bytes(b"x")
    found = list_images([odd, animals / "cat", str(animals / "dog" / "03.png")])
    assert found[0] == str(odd) and found[-1] == str(animals / "dog" / "03.png")
    images = [f"{i:02}.png" for i in range(10)]
    assert [Path(p).name for p in found[1:-1]] == [*images, "LOUD.JPG", "notes.txt"]
    with raises(f"no such file or folder: {tmp_path / 'nowhere'}"):
        list_images([animals, tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with raises(f"no image, clip or text in {tmp_path / 'empty'}"):
        list_images([tmp_path / "empty"])
    with raises("the name of a file or folder is empty"):
        list_images([""])  # not the working directory
    with raises("no examples given"):
        list_images([])


# --- The check --------------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are no images; returns name -> the start of the expected reason."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    jpeg, png = encode(noise, "JPEG"), encode(noise, "PNG")
    contents = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated: image file is truncated"),
        "cut_late.jpg": (jpeg[:-20], "truncated: "),
        "cut.png": (png[: len(png) // 2], "truncated: "),
        "empty.jpg": (b"", "empty file"),
        "notes.txt": (b"hello", "unsupported file type .txt"),
        "noextension": (b"hello", "unsupported file type (no extension)"),
        "scan.pdf": (b"%PDF-1.7", "unsupported file type .pdf"),
        "sound.wav": (b"RIFF\x24\0\0\0WAVEfmt ", "unsupported file type .wav"),
        "text.jpg": (b"<html>not found</html>", "not an image: "),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return {name: reason for name, (_, reason) in contents.items()} | {
        "gone.png": "cannot be read: "
    }


def test_check_images_names_every_bad_file(tmp_path, monkeypatch, capfd):
    expected = bad_files(tmp_path)
    # An image is what its bytes say, not its extension.
    (tmp_path / "really_png.jpg").write_bytes(encode(three_colours(), "PNG"))
    (tmp_path / "fine.webp").write_bytes(encode(three_colours(), "WEBP"))
    (tmp_path / "photo.jfif").write_bytes(encode(three_colours(), "JPEG"))
    (tmp_path / "photo.jpg.download").write_bytes(encode(three_colours(), "JPEG"))
    (tmp_path / "no extension").write_bytes(encode(three_colours(), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 70)
    Image.new("L", (150, 150)).save(tmp_path / "bomb.png")
    Image.new("L", (75, 75)).save(tmp_path / "large.png")  # Pillow only warns
    paths = sorted(map(str, tmp_path.iterdir()), reverse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good, skipped = check_examples(paths)
    images = ["really_png.jpg", "photo.jpg.download", "photo.jfif", "no extension", "fine.webp"]
    assert [Path(path).name for path in good.names] == images
    assert [item.path for item in skipped] == [path for path in paths if path not in good.names]
    reasons = {Path(item.path).name: item.reason for item in skipped}
    assert reasons.keys() == {*expected, "bomb.png", "large.png"}
    assert reasons["bomb.png"].startswith("too large: 22,500 pixels, the limit is 4,900")
    assert reasons["large.png"].startswith("too large: 5,625 pixels, the limit is 4,900")
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), (name, reasons[name])
    assert not any("\n" in reason for reason in reasons.values())
    assert capfd.readouterr() == ("", "")  # neither warnings nor, off a terminal, a bar


def test_check_images_without_permission(animals, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read whatever the mode says
    _, (skipped,) = check_examples([str(animals / "cat" / "00.png")])
    assert skipped.reason == "cannot be read: Permission denied"


# --- ImageData --------------------------------------------------------------------------------


def test_from_directory_splits_and_skips(animals):
    expected = bad_files(animals / "cat")
    data = from_directory(animals, seed=1)
    assert data.class_names == ("cat", "dog", "emu")
    assert data.counts == {
        "train": {"cat": 8, "dog": 5, "emu": 3},
        "val": {"cat": 2, "dog": 1, "emu": 1},
    }
    assert {Path(item.path).name for item in data.skipped} == expected.keys()
    for part in data.examples.values():
        assert part.labels.dtype == np.int32 and len(part) == len(part.labels)
        folders = [Path(path).parent.name for path in part.names]
        assert folders == [data.class_names[label] for label in part.labels]
        assert part.names == sorted(part.names)
    assert not set(data.examples["train"].names) & set(data.examples["val"].names)
    assert data.steps("train", 5) == 4 and data.steps("val", 4) == 1
    assert from_directory(animals, seed=1).examples["val"].names == data.examples["val"].names
    assert from_directory(animals, seed=2).examples["val"].names != data.examples["val"].names
    assert repr(data) == f"ImageData({str(animals)!r}, classes=3, train=16, val=4, skipped=10)"
    assert "train: 16 images (cat 8, dog 5, emu 3)\nval: 4 images" in data.describe()
    assert data.describe().endswith("skipped: 10 files")


def test_from_directory_with_given_splits(tmp_path):
    make_folder(tmp_path, {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 1, "test/b": 1})
    data = from_directory(tmp_path)
    assert {split: len(part) for split, part in data.examples.items()} == {
        "train": 10,
        "val": 3,
        "test": 1,
    }
    assert data.examples["test"].labels.tolist() == [1]  # the class that test lacks keeps its label


def test_from_directory_with_test_but_no_val(tmp_path):
    make_folder(tmp_path, {"train/a": 5, "train/b": 5, "test/a": 2})
    data = from_directory(tmp_path, val_split=0.4)
    assert list(data.examples) == ["train", "val", "test"]
    assert [len(part) for part in data.examples.values()] == [6, 4, 2]


def test_from_directory_with_another_val_folder(tmp_path, animals):
    val = make_folder(tmp_path / "val", {"cat": 1, "dog": 2, "emu": 1})
    data = from_directory(animals, val=val)
    assert [len(part) for part in data.examples.values()] == [20, 4]
    other = make_folder(tmp_path / "other", {"cat": 1, "yak": 1})
    with raises("it lacks dog, emu and train lacks yak; both need the same class folders"):
        from_directory(animals, val=other)
    with raises("contains splits"):
        from_directory(animals, val=make_folder(tmp_path / "s", {"train/cat": 1, "train/dog": 1}))


def test_from_directory_refuses(tmp_path, animals):
    with raises("must be between 0 and 1"):
        from_directory(animals, val_split=1)
    (animals / "fox").mkdir()
    with raises(
        f"class fox has no readable example in {animals}; add some, or leave the class out"
    ):
        from_directory(animals)
    (animals / "fox" / "a.jpg").write_bytes(b"")
    with raises(f"({animals / 'fox' / 'a.jpg'}: empty file); add some, or leave the class out"):
        from_directory(animals)
    (animals / "fox" / "b.png").write_bytes(encode(three_colours(), "PNG"))
    with raises("class fox has 1 readable example"):
        from_directory(animals)
    make_folder(tmp_path / "t", {"train/a": 2, "train/b": 2})
    (tmp_path / "t" / "val" / "a").mkdir(parents=True)
    with raises("no readable image, clip or text in the val folder"):
        from_directory(tmp_path / "t")
    with raises("has no test images; it has train, val"):
        from_directory(make_folder(tmp_path / "u", {"a": 2, "b": 2})).batches(
            "test", image_size=8, batch_size=2
        )


def test_labelled_images(tmp_path, animals):
    data = labeled_images(animals, ("ape", "cat", "dog", "emu"))
    assert data.counts == {"all": {"ape": 0, "cat": 10, "dog": 6, "emu": 4}}
    make_folder(tmp_path / "s", {"train/a": 1, "val/a": 2, "test/b": 3})
    assert labeled_images(tmp_path / "s", "ab").counts == {"test": {"a": 0, "b": 3}}
    assert labeled_images(tmp_path / "s", "ab", split="val").counts == {"val": {"a": 2, "b": 0}}
    with raises("has classes that the model does not know: dog, emu; it knows cat, cow"):
        labeled_images(animals, ("cat", "cow"))
    with raises("has no split test; it has all"):
        labeled_images(animals, ("cat", "dog", "emu"), split="test")


def test_tensorflow_is_not_imported_for_folders(animals):
    code = (
        "import sys, keras_transfer.data as d; "
        "d.list_images([sys.argv[1]]); print(d.from_directory(sys.argv[1]).describe()); "
        "print(sorted({'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code, animals], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[0] == f"{animals}: 3 classes" and lines[-1] == "[]"


def test_bytes_between_the_parts_of_a_jpeg_hide_no_orientation():
    """Pillow skips them, and so does the graph: or one of the two would turn the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (37, 23), "red").save(buffer, "JPEG", exif=exif)
    whole = buffer.getvalue()
    start = whole.index(b"\xff\xe1")
    damaged = whole[:start] + b"\x01\x00\x00" + whole[start:]
    pixels = decode(damaged)
    assert pixels.shape == (37, 23, 3)
    np.testing.assert_allclose(decode_in_graph(tf.constant(damaged)).numpy(), pixels, atol=1)
