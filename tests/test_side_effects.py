"""A training leaves the process as it was: filters, random states, settings of other libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("albumentations")

SCRIPT = """
import json, locale, logging, os, random, signal, sys, threading, warnings
os.environ["MPLBACKEND"] = "svg"
import absl.logging, albumentations as A, cv2, keras, matplotlib, matplotlib.figure, matplotlib.pyplot as plt
import numpy as np, sklearn.linear_model, tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context

def loggers():
    named = [logging.getLogger(), tf.get_logger(), *map(logging.getLogger, ("PIL", "optuna"))]
    found = [(x.level, [repr(h) for h in x.handlers], x.disabled, x.propagate) for x in named]
    return [absl.logging.get_verbosity(), *found]

def state():
    eager, generator = context.context(), global_state.get_global_attribute("global_seed_generator")
    return {
        "filters": list(map(str, warnings.filters)),
        "showwarning": repr(warnings.showwarning),
        "random": str(random.getstate()),
        "numpy": str(np.random.get_state()),
        "tensorflow": [eager._seed, str(eager._rng.getstate()) if hasattr(eager, "_rng") else None],
        "keras": [id(generator), str(generator and generator.state.numpy())],
        "keras seed": str(global_state.get_global_attribute("global_random_seed")),
        "policy": [keras.config.dtype_policy().name, keras.config.floatx()],
        "eagerly": tf.config.functions_run_eagerly(),
        "environ": dict(os.environ),
        "backend": matplotlib.get_backend(),
        "rc": {k: str(v) for k, v in dict(matplotlib.rcParams).items()},
        "figures": plt.get_fignums(),
        "loggers": loggers(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "opencv": cv2.getNumThreads(),
        "hooks": [id(sys.excepthook), id(sys.unraisablehook), id(threading.excepthook)],
        "streams": [id(sys.stdout), id(sys.stderr), os.readlink("/proc/self/fd/2")],
        "directory": os.getcwd(),
        "print": str(np.get_printoptions()),
        "errors": np.geterr(),
        "hooked": [str(x) for x in sys.meta_path],
    }

seed, data, out = sys.argv[1:]
if seed == "seeded":
    keras.utils.set_random_seed(5)
    keras.random.normal([2])
    np.random.random(), random.random(), tf.random.uniform([2])
else:
    keras.config.set_dtype_policy("float32")
    signal.signal(signal.SIGTERM, lambda *_: None)
    cv2.setNumThreads(3)
    plt.figure()
before = state()
sys.path[:0] = os.environ["TESTS"].split(os.pathsep)
from conftest import tiny_backbone

import keras_transfer as kt
from keras_transfer.reporting import compare_runs, show_batch

found = kt.data.from_directory(data, progress=False)
python, numpy = random.getstate(), np.random.get_state()
model = kt.build_model(tiny_backbone(), kt.Classification(found.class_names), image_size=32)
if seed == "seeded":  # drawing weights is what a user expects of building a model
    keras.utils.set_random_seed(5)
    keras.random.normal([2])
    np.random.random(), random.random(), tf.random.uniform([2])
    before = state()
else:
    random.setstate(python)
augment = A.Compose([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast()])
trainer = kt.Trainer(model, "from_scratch", epochs=2, augment=augment, batch_size=8, seed=3)
run = trainer.fit(found, out)
python = random.getstate()
layer = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandAugment((0, 255))])
random.setstate(python)
for _ in found.batches("train", image_size=32, batch_size=8, training=True, augment=layer):
    break
kt.evaluate(run.model, found)
kt.predict(run.model, [found.examples["val"].names[0]])
kt.calibrate(run.model, found)
kt.write_report(run, found)
trainer.plan(found).draw(out + "/plan.png")
show_batch(found)
kt.training.find_rate(model, found, steps=10, progress=False)
kt.advisor.probe_stages(model, found)
if seed == "export":
    kt.export.saved_model(run.model, out + "/export/1")
after = state()
print("RESULT" + json.dumps({k: [before[k], after[k]] for k in before if before[k] != after[k]}))
"""


@pytest.mark.parametrize("kind", ["seeded", "export"])
def test_everything_global_is_as_it_was(tmp_path, kind):
    from conftest import write_colours

    here = Path(__file__).parent
    environment = {**os.environ, "TESTS": str(here), "KERAS_TRANSFER_CACHE": str(tmp_path / "c")}
    data, out = write_colours(tmp_path / "data"), tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, data, out],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout.partition("RESULT")[2])
    changed = {name: [str(value)[:1500] for value in values] for name, values in changed.items()}
    assert not changed
