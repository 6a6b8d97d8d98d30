"""The model and training side is Keras alone: it runs on JAX. (`test_imports` reads the imports.)"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def _path():
    return os.pathsep.join([str(Path(__file__).parent), *sys.path])


def python(code, *args, **env):
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": _path(), **env},
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
from keras_transfer.builders import build_model
from keras_transfer.data import Examples, ImageData
from keras_transfer.data.pictures import Arrays
from keras_transfer.heads import Classification
from keras_transfer.training import Trainer

labels = np.arange(16) % 2
pictures = np.random.default_rng(0).integers(0, 100, (16, 32, 32, 3))
pictures = (pictures + 100 * labels[:, None, None, None]).astype("uint8")

class Batch(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return pictures, labels

class WithoutStreams(ImageData):
    def batches(self, split, *, training=False, **_):
        return (Batch()[0] for _ in itertools.count()) if training else Batch()

parts = {split: Examples(Arrays(pictures), labels) for split in ("train", "val")}
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
import json, sys, keras
from pathlib import Path
from conftest import tiny_backbone
from keras_transfer.builders import build_model
from keras_transfer.data import from_directory
from keras_transfer.heads import Classification
from keras_transfer.runs import Run
from keras_transfer.schedules import Phase, Schedule
from keras_transfer.training import Trainer

assert keras.backend.backend() == "jax"
data = from_directory(sys.argv[1], progress=False)
schedule = Schedule("s", (
    Phase("head", "all", 1, 1e-2),
    Phase("all", "stage:1", 2, 1e-3, ema=0.9, accumulate=2, l2_sp=0.1, lowest_rate=0.1),
))

def trainer():
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(data.class_names), image_size=32)
    return Trainer(model, schedule, batch_size=8)

whole = trainer().fit(data, sys.argv[2] + "/whole")
save_state = Run.save_state
class Stop(Exception): pass
def stop(self, state, *args):
    save_state(self, state, *args)
    if state["epoch"] == 2: raise Stop
Run.save_state = stop
try: trainer().fit(data, sys.argv[2] + "/cut")
except Stop: pass
Run.save_state = save_state
resumed = trainer().fit(data, sys.argv[2] + "/cut", resume=True)
worst = max(float(abs(a - b).max()) for a, b in zip(whole.model.get_weights(), resumed.model.get_weights()))
print(json.dumps({"worst": worst, "epochs": [p["epochs"] for p in resumed.metrics["phases"]]}))
"""


def test_it_trains_and_resumes_on_jax(colours, tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed")
    result = json.loads(python(ON_JAX, colours, tmp_path))
    assert result == {"worst": 0.0, "epochs": [1, 2]}
