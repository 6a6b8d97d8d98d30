"""What all tests share: real material where it is at hand, and a clean Keras between tests."""

import functools
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow turns it on by itself on CPUs with AVX-512; without it, grouped convolutions are missing.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Tests run beside each other, a core each: more threads would wait for one another, spinning.
for _name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


def large_tests() -> list[str]:
    """Return the names in `large.txt`."""
    lines = Path(__file__).with_name("large.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    large = set(large_tests())
    for item in items:
        if item.nodeid in large:
            item.add_marker(pytest.mark.large)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing that earlier runs of this machine left behind; workers side by side share theirs."""
    base = tmp_path_factory.getbasetemp()
    worker = "PYTEST_XDIST_WORKER" in os.environ
    os.environ["KERAS_TRANSFER_CACHE"] = str((base.parent if worker else base) / "cache")


@pytest.fixture(scope="session", autouse=True)
def fine_tuned_once():
    """Small sets would be trained twice in most tests; `as_shipped` puts the default back."""
    from keras_transfer.schedules import defaults

    shipped = defaults.MOST_REFITTED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "MOST_REFITTED", 0)
        yield shipped


@pytest.fixture
def as_shipped(fine_tuned_once, monkeypatch):
    """Fine-tunings of small sets are followed by a second training, as for users."""
    from keras_transfer.schedules import defaults

    monkeypatch.setattr(defaults, "MOST_REFITTED", fine_tuned_once)


@pytest.fixture(autouse=True)
def clean_keras():
    """Keras keeps every layer of every model in a global state until told otherwise."""
    yield
    if "keras" in sys.modules:
        import keras
        from keras.src.backend.common import global_state  # no public name

        keras.config.set_dtype_policy("float32")
        # Where no layer was made, half a second is saved: most tests are such.
        if global_state.get_global_attribute("object_name_uids") is None:
            return
        keras.backend.clear_session(free_memory=True)
        # What is still there stays, libraries and what TensorFlow keeps of each graph: half a million
        # objects and more, which looking through costs 0.3 s each time.
        gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with hymenoptera/ and sign_digits/."""
    folder = os.environ.get("KERAS_TRANSFER_DATA")
    if not folder or not (Path(folder) / "hymenoptera").is_dir():
        pytest.skip("KERAS_TRANSFER_DATA names no folder with hymenoptera/: no real images")
    return Path(folder)


@pytest.fixture(scope="session")
def real_texts() -> Path:
    """The folder with banking77.csv and sms_spam.csv."""
    folder = Path(os.environ.get("KERAS_TRANSFER_DATA", "")) / "text"
    if not (folder / "banking77.csv").is_file():
        pytest.skip("KERAS_TRANSFER_DATA names no folder with text/banking77.csv: no real texts")
    return folder


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """KERAS_HOME with the ImageNet weights of mobilenet_0.25 and mobilenet_v2_0.35."""
    home = os.environ.get("KERAS_HOME")
    if not home or not (Path(home) / "models" / "mobilenet_2_5_224_tf_no_top.h5").is_file():
        pytest.skip("KERAS_HOME has no models/mobilenet_2_5_224_tf_no_top.h5: no real weights")
    return Path(home)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(folder))
    return folder


def raises(part) -> pytest.RaisesExc:
    """Expect an InputError of one line that contains `part`."""
    from keras_transfer.errors import InputError

    return pytest.raises(InputError, match=r"\A[^\n]*" + re.escape(str(part)) + r"[^\n]*\Z")


@functools.cache
def npm_has(package: str) -> bool:
    """Return whether npm is here and its registry answers for a package."""
    npm = shutil.which("npm")
    if npm is None:
        return False
    try:
        asked = [npm, "view", package, "version"]
        return subprocess.run(asked, capture_output=True, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def require_format(format: str, int8: bool = False) -> None:
    """Skip the test where an export format cannot be written."""
    from keras_transfer.errors import InputError
    from keras_transfer.export import check_format

    try:
        check_format(format, int8)
    except InputError as error:
        pytest.skip(str(error))
    if format == "tfjs" and not npm_has("@tensorflow/tfjs"):
        pytest.skip("npm, which downloads TensorFlow.js, cannot")


# What stands in the folder of a finished run.
RUN_FILES = {
    "config.yaml",
    "metrics.json",
    "history.csv",
    "skipped.csv",
    "split.csv",
    "model.keras",
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_image(path: Path, colour, size=(40, 48), noise: int = 20, seed: int = 0) -> None:
    """Writes a noisy image of one colour, so that classes can be told apart."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise_values = np.random.default_rng(seed).integers(-noise, noise + 1, (*size, 3))
    pixels = np.clip(np.array(colour) + noise_values, 0, 255).astype("uint8")
    Image.fromarray(pixels).save(path)


def ramp(height: int, width: int) -> np.ndarray:
    """Red is the column and green the row, in 0-255 from edge to edge."""
    pixels = np.zeros((height, width, 3), np.float32)
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    return pixels


def variants(image, size: int, augmentation, seeds, crop: float = 0.875) -> np.ndarray:
    """Variants of one image, uint8 [N, size, size, 3], one a seed (two numbers), as batches show them."""
    import tensorflow as tf

    from keras_transfer.data.arrays import Arrays
    from keras_transfer.data.batches import prepared
    from keras_transfer.modalities.image.augment import View, resolve_augmentation
    from keras_transfer.modalities.image.framing import Framing
    from keras_transfer.modalities.image.preparation import Preparation

    image = np.clip(np.rint(image), 0, 255).astype("uint8")
    views = [View("augmented", 0, resolve_augmentation(augmentation))]
    preparation = Preparation(Arrays([image] * len(seeds)), views, Framing(size, crop))
    rows = np.arange(len(seeds), dtype="int32"), np.array(seeds, "int64")[None]
    (made,) = prepared(tf.data.Dataset.from_tensors(rows), preparation, lambda images: images[0])
    return made.numpy()


def tiny_backbone():
    """Three convolutions with BatchNorm for 32×32 images, three stages: where what is tested is
    around the network, most of the time would be the compilation of a larger one."""
    import keras

    from keras_transfer.models.stages import Backbone

    inputs = keras.Input((32, 32, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (8, 16, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return Backbone(inputs, keras.layers.GlobalAveragePooling2D()(x), name="tiny")


def tiny_transformer():
    """Two blocks of attention and a feed-forward network on patches of 32×32 images, three stages."""
    import keras

    from keras_transfer.models.stages import Backbone

    layers = keras.layers
    inputs = keras.Input((32, 32, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Reshape((16, 12))(layers.Conv2D(12, 8, strides=8, name="patches")(x))
    for i in range(2):
        y = layers.LayerNormalization(name=f"norm{i}a")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 6, name=f"attention{i}")(y, y)])
        y = layers.LayerNormalization(name=f"norm{i}b")(x)
        y = layers.Dense(24, activation="gelu", name=f"wide{i}")(y)
        narrow = layers.EinsumDense("abc,cd->abd", (16, 12), bias_axes="d", name=f"narrow{i}")
        x = layers.Add()([x, narrow(y)])
    return Backbone(inputs, layers.GlobalAveragePooling1D()(x), name="tiny_transformer")


@pytest.fixture
def colours(tmp_path) -> Path:
    """DATA/{red,green,blue}/*.png: a task that a few steps can learn."""
    return write_colours(tmp_path / "colours")


@pytest.fixture
def data(colours):
    """`colours`, indexed and split."""
    from keras_transfer.data import from_directory

    return from_directory(colours, progress=False)


@pytest.fixture
def store(tmp_path):
    """A feature store of the test's own."""
    from keras_transfer.features.store import Store

    return Store(tmp_path / "store")


def write_colours(folder: Path) -> Path:
    """What `colours` is, for a fixture that several tests share."""
    for name, colour in {
        "red": (200, 40, 40),
        "green": (40, 200, 40),
        "blue": (40, 40, 200),
    }.items():
        for i in range(12):
            write_image(folder / name / f"{i}.png", colour, seed=i)
    return folder


_FILLER = ("one", "of", "the", "walls", "is", "in", "a", "room", "!")


def write_words(folder: Path) -> Path:
    """FOLDER/{red,green,blue}/*.txt: texts of 2 to 21 words, of which one names the class."""
    rng = np.random.default_rng(0)
    for name in ("red", "green", "blue"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            words = list(rng.choice(_FILLER, rng.integers(1, 21)))
            words.insert(int(rng.integers(0, len(words) + 1)), name)
            (folder / name / f"{i}.txt").write_text(" ".join(words))
    return folder


def tiny_bert(dropout: float = 0.0):
    """Two blocks of BERT on the words of `write_words`, three stages."""
    import keras

    from keras_transfer.modalities.text.framing import TextFraming, WordPiece
    from keras_transfer.models.stages import Backbone
    from keras_transfer.models.tokens import TextEmbedding, TokenPooling
    from keras_transfer.models.transformers import Block, Form

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = (*special, *_FILLER, "red", "green", "blue")
    form = Form(
        16, 2, 24, norm_first=False, masked=True, dropout=dropout, attention_dropout=dropout
    )
    inputs = keras.Input((None,), dtype="int32", name="token_ids")
    x = TextEmbedding(len(words), 16, 24, segments=2, separator=3, dropout=dropout)(inputs)
    for number in (1, 2):
        x = Block(form, name=f"block_{number}")(x)
    x = TokenPooling("avg", name="pooling")(x)
    framing = TextFraming(16, WordPiece("\n".join(words)))
    return Backbone(inputs, x, name="tiny_bert", framing=framing)


# Modality → (writes a folder of the classes blue, green and red, makes a tiny backbone of three stages,
# what `build_model` needs besides).
MODALITIES = {
    "image": (write_colours, tiny_backbone, {"image_size": 32}),
    "text": (write_words, tiny_bert, {}),
}


@pytest.fixture(params=MODALITIES)
def kind(request):
    """A row of `MODALITIES` after the other."""
    if request.param == "text":
        pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")
    return MODALITIES[request.param]


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """root/<class>/<i>.png, where a class may be "train/cat"."""
    for at, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:02}.png", (40 * at + 30, 90, 150), seed=100 * at + i)
    return root


@pytest.fixture
def animals(tmp_path) -> Path:
    """20 images of three classes of unequal size."""
    return make_folder(tmp_path / "animals", {"cat": 10, "dog": 6, "emu": 4})


@pytest.fixture
def folder(tmp_path):
    """train and val of three classes, JPEG and PNG, of several sizes; one file is broken."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 3)):
        for label, colour in (
            ("red", (200, 30, 30)),
            ("green", (30, 180, 40)),
            ("sky", (90, 150, 240)),
        ):
            for i in range(count):
                size = tuple(int(x) for x in rng.integers(30, 70, 2))
                kind = "jpg" if i % 2 else "png"
                path = tmp_path / "images" / split / label / f"{i}.{kind}"
                write_image(path, colour, size=size, seed=i)
    (tmp_path / "images/train/green/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return tmp_path / "images"
