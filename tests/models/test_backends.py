"""The model and training side is Keras alone: it runs on JAX. (`test_imports` reads the imports.)"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_colours

from keras_transfer.evaluation.gradcam import grad_cam
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification


def _path():
    return os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])


def python(code, *args):
    # JAX compiles each operation by itself, and again for each training: most of the time here.
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(Path(os.environ["KERAS_TRANSFER_CACHE"]) / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": _path(), **compiled},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


WITHOUT_TENSORFLOW = """
import itertools, sys

class NotInstalled:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "tensorflow":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import keras, numpy as np
from conftest import tiny_backbone
from keras_transfer.models.builders import build_model
from keras_transfer.data import Examples, ImageData
from keras_transfer.data.arrays import Arrays
from keras_transfer.models.heads import Classification
from keras_transfer.training.trainer import Trainer

labels = np.arange(16) % 2
images = np.random.default_rng(0).integers(0, 100, (16, 32, 32, 3))
images = (images + 100 * labels[:, None, None, None]).astype("uint8")

class Batch(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return images, labels

class WithoutStreams(ImageData):
    def batches(self, split, *, training=False, **_):
        return (Batch()[0] for _ in itertools.count()) if training else Batch()

parts = {split: Examples(Arrays(images), labels) for split in ("train", "val")}
data = WithoutStreams(("a", "b"), parts, [], "")
assert keras.backend.backend() == "jax"
keras.utils.set_random_seed(0)
model = build_model(tiny_backbone(), Classification(("a", "b")), image_size=32)
run = Trainer(model, "lp_ft", epochs=3, batch_size=16, cache="off").fit(data, sys.argv[1])
print(run.metrics["val"]["accuracy"])
"""


def test_it_trains_where_there_is_no_tensorflow(tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed")
    assert 0 <= float(python(WITHOUT_TENSORFLOW, tmp_path / "run")) <= 1


ON_JAX = """
import json, shutil, sys, keras, numpy as np
from conftest import tiny_backbone
from keras_transfer.adaptation import Adapter
from keras_transfer.adaptation.methods import DANN
from keras_transfer.models.sources.own import load_model
from keras_transfer.models.builders import build_model
from keras_transfer.data import from_directory
from keras_transfer.evaluation.gradcam import grad_cam
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.models.stages import Backbone
from keras_transfer.utils.checkpoint import Checkpoint
from keras_transfer.training.trainer import Trainer

assert keras.backend.backend() == "jax"
images_folder, folder = sys.argv[1:]
found = {}

def worst(one, other):
    return max(float(abs(a - b).max()) for a, b in zip(one, other, strict=True))

# The trainer. What a run has on disk after its second epoch is what a killed one would leave.
data = from_directory(images_folder, progress=False)
schedule = Schedule("s", (
    Phase("head", "all", 1, 1e-2),
    Phase("all", "stage:1", 2, 1e-3, ema=0.9, accumulate=2, l2_sp=0.1, lowest_rate=0.1),
))

def trainer():
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    return Trainer(model, schedule, batch_size=8, refit="never")

save = Checkpoint.save
def save_and_copy(self, state, *args):
    save(self, state, *args)
    if state["epoch"] == 2: shutil.copytree(self.folder.parent, folder + "/cut")
Checkpoint.save = save_and_copy
whole = trainer().fit(data, folder + "/whole")
Checkpoint.save = save
assert not (whole.path.parent / "cut" / "model.keras").exists()
resumed = trainer().fit(data, folder + "/cut", resume=True)
found["trainer"] = {
    "worst": worst(whole.model.get_weights(), resumed.model.get_weights()),
    "epochs": [p["epochs"] for p in resumed.metrics["phases"]],
}

# The adapter, likewise.
keras.utils.set_random_seed(0)
inputs = keras.Input((4, 4, 3), name="images")
x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Dense(4)(x)))
model = build_model(Backbone(inputs, x), Classification("ab"), image_size=4)
start = model.get_weights()
images = np.random.default_rng(0).integers(0, 255, (16, 4, 4, 3)).astype("uint8")
source = [(images[:8], np.arange(8) % 2), (images[8:], np.arange(8) % 2)]

def adapted(state, begin):
    model.set_weights(start)
    adapter = Adapter(model, [DANN(hidden=(4,)), "mcc"], batch_norm="per_domain")
    adapter.compile(keras.optimizers.Adam(1e-2))
    done = adapter.fit(source, target=[255 - images[:8]], epochs=3, state=state, verbose=0,
                       callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=begin)])
    return done.history, adapter.get_weights()

def copy(epoch, logs):
    if epoch == 2: shutil.copytree(folder + "/a", folder + "/b")

epochs = []
history, weights = adapted(folder + "/a", copy)
_, again = adapted(folder + "/b", lambda epoch, logs: epochs.append(epoch))
assert epochs == [2]
found["adapter"] = {
    "lambda": history["lambda_dann"], "names": sorted(history), "worst": worst(weights, again)
}

# Grad-CAM, of a model that TensorFlow saved.
model = load_model(folder + "/model.keras")
np.save(folder + "/heat.npy", grad_cam(model, np.load(folder + "/images.npy"), [0, 1]))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    """(folder, what `ON_JAX` found): one process for all, since most of its time is imports."""
    pytest.importorskip("jax", reason="JAX is not installed")
    folder = tmp_path_factory.mktemp("on_jax")
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification("ab"), image_size=32)
    model.save(folder / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    np.save(folder / "images.npy", images)
    np.save(folder / "expected.npy", grad_cam(model, images, [0, 1]))
    said = python(ON_JAX, write_colours(folder / "colours"), folder)
    return folder, json.loads(said.splitlines()[-1])


def test_the_trainer_trains_and_resumes_on_jax(on_jax):
    assert on_jax[1]["trainer"] == {"worst": 0.0, "epochs": [1, 2]}


def test_the_adapter_trains_and_resumes_on_jax(on_jax):
    found = on_jax[1]["adapter"]
    progress = np.arange(6).reshape(3, 2) / 6
    np.testing.assert_allclose(
        found["lambda"], (2 / (1 + np.exp(-10 * progress)) - 1).mean(1), rtol=1e-4
    )
    assert {"class_loss", "align_loss", "domain_accuracy", "target_entropy"} <= set(found["names"])
    assert found["worst"] == 0.0


def test_grad_cam_is_the_same_on_jax(on_jax):
    folder, _ = on_jax
    heat, expected = (np.load(folder / f"{name}.npy") for name in ("heat", "expected"))
    assert np.allclose(heat, expected, atol=1e-4) and expected.max() == 1
