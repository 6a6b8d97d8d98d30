"""A gallery of bad and odd files: checking, training, prediction and the served model agree."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image
from gallery import encode, gallery, image
from PIL import Image

from keras_transfer.data import check_examples, check_files, from_directory
from keras_transfer.modalities.image.decode import Budget, examine, orientation_of, upright

pytestmark = pytest.mark.usefixtures("cache")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """DATA/{odd,plain}: (DATA, name → what is expected of the files of class odd)."""
    data = tmp_path_factory.mktemp("gallery")
    items = gallery(data / "odd")
    for i in range(4):
        write_image(data / "plain" / f"{i}.png", (90, 90, 90), seed=i)
    return data, items


@pytest.fixture(scope="module")
def served():
    import tensorflow as tf

    from keras_transfer.modalities.image.serving import decode_in_graph

    spec = tf.TensorSpec([], tf.string)
    return tf.function(decode_in_graph, input_signature=[spec], autograph=False)


# --- The gallery -----------------------------------------------------------------------------


def test_each_file_is_taken_or_left_out_with_its_reason(odd):
    data, items = odd
    assert len(items) > 100
    paths = [str(data / "odd" / name) for name in items]
    checked = check_files(paths)
    for row, (name, item) in enumerate(items.items()):
        fault = checked.faults.get(row)
        size = (int(checked.columns["width"][row]), int(checked.columns["height"][row]))
        upright_size = size[::-1] if checked.columns["orientation"][row] >= 5 else size
        if item.size is None:
            assert fault is not None and fault.startswith(item.reason), (name, fault)
            assert "\n" not in fault
        else:
            assert fault is None and upright_size == item.size, (name, fault, upright_size)
            assert checked.columns["served"][row] == item.served, name
    good, skipped = check_examples(paths)
    assert good.names == [p for p, item in zip(paths, items.values()) if item.size]
    assert [item.path for item in skipped] == [p for p in paths if p not in set(good.names)]


def test_what_is_taken_is_decoded_rightly_and_served_alike(odd, served):
    import tensorflow as tf

    from keras_transfer.modalities.image.decode import decode

    data, items = odd
    for name, item in items.items():
        if item.size is None:
            continue
        contents = (data / "odd" / name).read_bytes()
        pixels = decode(contents)
        assert pixels.dtype == np.uint8 and pixels.shape == (*item.size[::-1], 3), name
        if item.pixels is not None:
            difference = np.abs(pixels.astype(int) - item.pixels).max()
            assert difference <= item.tolerance, (name, difference)
        if item.served:
            np.testing.assert_array_equal(served(contents), pixels, name)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError):
                served(contents)


def test_what_is_left_out_for_its_size_is_not_served(odd, served):
    """TensorFlow's own decoder would allocate whatever the header asks for."""
    import tensorflow as tf

    data, items = odd
    bombs = [n for n, i in items.items() if i.reason.startswith("too large") and n != "huge.bmp"]
    assert len(bombs) == 7
    for name in bombs:
        with pytest.raises(tf.errors.InvalidArgumentError):
            served((data / "odd" / name).read_bytes())


def test_training_prediction_and_export_agree(odd, tmp_path):
    import keras
    import tensorflow as tf

    from keras_transfer import evaluation, export
    from keras_transfer.cli.demo import small_backbone
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification

    data, items = odd
    usable = {str(data / "odd" / n) for n, item in items.items() if item.size}
    images = from_directory(data, val_split=0.1)
    trained_on = {name for part in images.examples.values() for name in part.names}
    assert {name for name in trained_on if "/odd/" in name} == usable
    assert {s.path for s in images.skipped} == {
        str(data / "odd" / n) for n, item in items.items() if not item.size
    }
    batches = images.batches("train", image_size=32, batch_size=16, training=True)
    steps = images.steps("train", 16)
    assert sum(len(labels) for _, labels in batches.take(steps)) == len(images.examples["train"])

    keras.utils.set_random_seed(0)
    model = build_model(small_backbone(), Classification(["ant", "bee"]), image_size=32)
    predictions, skipped = evaluation.predict(model, [data / "odd"])
    assert {p.path for p in predictions} == usable
    faults = {s.path: s.reason for s in images.skipped}
    assert all(faults[s.path] == s.reason for s in skipped)

    folder = export.saved_model(model, tmp_path / "1")
    serve = tf.saved_model.load(str(folder)).signatures["serve_bytes"]
    refused = []
    for prediction in predictions:
        contents = Path(prediction.path).read_bytes()
        answer = serve(bytes=tf.constant([contents]))
        if answer["error"].numpy()[0]:
            refused.append(os.path.relpath(prediction.path, data / "odd"))
        else:
            # The two resample in different ways, to within a level or two.
            np.testing.assert_allclose(answer["score"], [prediction.score], atol=2e-3)
    assert sorted(refused) == sorted(n for n, i in items.items() if i.size and not i.served)


MEMORY = """
import resource, sys
from pathlib import Path
import keras_transfer as kt
from keras_transfer.cli.demo import small_backbone

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def work(folder, out):
    data = kt.data.from_directory(folder, val_split=0.1, progress=False)
    for _ in data.batches("train", image_size=32, batch_size=16, training=True).take(4):
        pass
    model = kt.build_model(small_backbone(), kt.Classification(data.class_names), image_size=32)
    kt.predict(model, [folder])

work(sys.argv[1], "a")
normal = peak()
work(sys.argv[2], "b")
print(normal, peak())
"""


def test_bombs_cost_no_memory(odd, tmp_path):
    data, _ = odd
    for name in "ab":
        for i in range(4):
            write_image(tmp_path / "plain" / name / f"{i}.png", (90, 90, 90), seed=i)
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "plain", data], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    normal, peak = map(int, result.stdout.split())
    assert peak - normal < 1024  # MiB


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path):
    write_image(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "a.png").chmod(0)
    assert check_files([str(tmp_path / "a.png")]).faults == {0: "cannot be read: Permission denied"}


def test_room_lets_in_what_fits(monkeypatch):
    budget, inside, most = Budget(10), [], []

    def work(amount):
        with budget.use(amount):
            inside.append(amount)
            most.append(sum(inside))
            time.sleep(0.005)
            inside.remove(amount)

    from keras_transfer.data.readers import in_threads

    list(in_threads(work, [4, 3, 5, 10, 2, 25, 1, 9]))
    assert max(most) == 25 and sorted(most)[-2] <= 10


# --- Orientation -----------------------------------------------------------------------------


def _block(rng) -> bytes:
    """A TIFF header and directory, right or nearly so."""
    order = rng.choice(["<", ">"])
    entries = [(0x0112, int(rng.choice([1, 3, 4, 2, 7])), int(rng.choice([1, 1, 1, 2])))]
    for tag in rng.choice([0x010F, 0x0110, 0x0131], rng.integers(0, 3), replace=False):
        entries.append((int(tag), 3, 1))
    entries.sort()
    count = len(entries) + int(rng.choice([0, 0, 0, 1, 200]))
    packed = struct.pack(f"{order}H", count)
    for tag, kind, values in entries:
        value = int(rng.integers(0, 10)) if tag == 0x0112 else 7
        letter = {1: "B3x", 3: "H2x", 4: "I"}.get(kind, "I")
        packed += struct.pack(f"{order}HHI{letter}", tag, kind, values, value)
    start = int(rng.choice([8, 8, 8, 10, 5000]))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    block = head + bytes(max(0, min(start, 10) - 8)) + packed + bytes(4)
    return b"Exif\0\0" + (block if rng.random() < 0.8 else block[: rng.integers(len(block))])


def test_orientation_is_found_alike_in_python_and_in_the_graph(served, rng):
    from keras_transfer.modalities.image.decode import decode

    pixels = image(5, 7)
    seen = []
    for number in range(200):
        block = _block(rng)
        # JPEG files in which other segments come first, and PNG files in which the chunk comes last.
        if number % 2:
            data = encode(pixels, "JPEG", exif=block, comment=b"before")
            data = data[:2] + b"\xff\xff\xff\xfe\0\x04hi" + data[2:]
        else:
            data = encode(pixels, "PNG")
            chunk = struct.pack(">I", len(block) - 6) + b"eXIf" + block[6:]
            data = data[:-12] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[-12:]
        np.testing.assert_array_equal(served(data), decode(data))
        seen.append(orientation_of(Image.open(io.BytesIO(data)), data))
    assert set(seen) == set(range(1, 9)) and seen.count(1) < 170


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_pillows(kind):
    from PIL import ImageOps

    for value in range(10):
        exif = Image.Exif()
        exif[0x0112] = value
        data = encode(image(5, 7), kind, exif=exif)
        stored = Image.open(io.BytesIO(data))
        expected = np.asarray(ImageOps.exif_transpose(stored))
        np.testing.assert_array_equal(
            upright(np.asarray(stored), orientation_of(stored, data)), expected
        )


def test_a_long_file_of_nothing_ends(served):
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError):
        served(b"\xff\xd8" + b"\xff" * 2_000_000)
    assert examine(b"\xff\xd8" + b"\xff" * 2_000_000).fault


# --- Fuzzing ---------------------------------------------------------------------------------


def test_mutated_files_crash_nothing(tmp_path):
    script = ROOT / "scripts" / "fuzz_images.py"
    result = subprocess.run(
        [sys.executable, script, "--count", "400", "--seed", "1", "--keep", tmp_path / "bad"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not right: 0" in result.stdout
