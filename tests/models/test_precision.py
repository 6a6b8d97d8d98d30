"""Which number format is taken, why, and that training in it is sound."""

import csv
import subprocess

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models import acceleration as precision
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the hardware that is asked for, and an empty cache."""

    def make(gpu=False, tpu=False, capability=None, flags="", gain=None):
        devices = {"gpu": ["gpu:0"] * gpu, "tpu": ["tpu:0"] * tpu}
        monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: devices[kind])
        monkeypatch.setattr(precision, "cpu_flags", lambda: set(flags.split()))

        def driver(command, **_):
            if capability is None:
                raise FileNotFoundError("nvidia-smi")
            rows = "".join(f"NVIDIA GPU, {c}, 570.86\n" for c in capability.split())
            return subprocess.CompletedProcess(command, 0, stdout=rows, stderr="")

        monkeypatch.setattr("keras_transfer.utils.machine.subprocess.run", driver)
        measured = []
        monkeypatch.setattr(precision, "bfloat16_gain", lambda *what: measured.append(what) or gain)
        return measured

    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path))
    return make


@pytest.mark.parametrize(
    "hardware, expected, reason",
    [
        ({"tpu": True}, "mixed_bfloat16", "TPU"),
        ({"gpu": True, "capability": "9.0\n8.0\n"}, "mixed_bfloat16", "capability 8.0"),
        ({"gpu": True, "capability": "7.5\n"}, "mixed_float16", "tensor cores"),
        ({"gpu": True, "capability": "6.1\n"}, "float32", "gains nothing"),
        ({"gpu": True, "capability": "[N/A]", "gain": 1.6}, "mixed_bfloat16", "1.60 times as fast"),
        ({"gpu": True, "gain": 1.6}, "mixed_bfloat16", "1.60 times as fast"),
        ({"gpu": True, "gain": 1.01}, "float32", "1.01 times as fast"),
        ({"flags": "avx2 avx512f"}, "float32", "no bfloat16 matrix unit"),
        ({"flags": "avx2 amx_bf16", "gain": 1.9}, "mixed_bfloat16", "1.90 times as fast"),
        ({"flags": "avx2 amx_bf16", "gain": 0.6}, "float32", "0.60 times as fast"),
    ],
)
def test_auto_follows_the_hardware(machine, hardware, expected, reason):
    machine(**hardware)
    chosen = precision.set_precision("auto", "resnet50", 224)
    assert chosen.name == keras.config.dtype_policy().name == expected
    assert reason in str(chosen)


def test_a_measurement_is_made_once_and_never_stops_a_training(machine, monkeypatch):
    measured = machine(flags="amx_bf16", gain=2.0)
    for _ in range(2):
        assert precision.set_precision("auto", "resnet50", 224).name == "mixed_bfloat16"
    assert measured == [("resnet50", 224)]
    precision.set_precision("auto", "resnet50", 96)
    assert len(measured) == 2
    assert precision.set_precision("auto").name == "float32"  # nothing to measure
    monkeypatch.setattr(precision, "bfloat16_gain", lambda *what: 1 / 0)
    assert "measurement failed" in precision.set_precision("auto", "vgg16", 224).reason


def test_asked_for_is_given_and_nonsense_refused(machine):
    machine()
    assert precision.set_precision("mixed_float16").name == "mixed_float16"
    with pytest.raises(InputError, match="Unknown precision 'half'"):
        precision.set_precision("half")


def test_the_gain_is_measured_on_the_real_backbone():
    gain = precision.bfloat16_gain("mobilenet_0.25", 32, batch_size=2)
    assert 0.01 < gain < 100
    assert keras.config.dtype_policy().name == "float32"  # as it was


# Nearly every other test trains in float32.
@pytest.mark.parametrize(
    "policy", [pytest.param("float32", marks=pytest.mark.large), "mixed_bfloat16", "mixed_float16"]
)
def test_training_in_each_precision(colours, tmp_path, policy):
    """Head, losses and weights are float32; under float16 the loss scale is at work."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_backbone(), Classification(("blue", "green", "red")), image_size=32)
    half = policy.removeprefix("mixed_")
    assert model.layers[1].compute_dtype == half
    assert model.layers[-1].compute_dtype == "float32"
    assert {str(w.dtype) for w in model.weights} == {"float32"}
    assert model(np.zeros((1, 32, 32, 3))).dtype == "float32"

    phases = (Phase("head", "all", 30, 1e-2), Phase("all", "none", 4, 1e-3, ema=0.8))
    run = Trainer(model, Schedule("s", phases), batch_size=8, keep="last").fit(
        from_directory(colours), tmp_path / "run"
    )
    assert run.metrics["val"]["accuracy"] == 1.0
    assert run.config["precision"] == policy
    assert run.model.layers[1].compute_dtype == half
    with (run.path / "history.csv").open() as file:
        scales = [row.get("loss_scale") for row in csv.DictReader(file)]
    if policy == "mixed_float16":
        # 100 steps without an overflow double it; the phase had 120.
        assert len({float(s) for s in scales[:30]}) > 1, scales
    else:
        assert set(scales) == {None}
