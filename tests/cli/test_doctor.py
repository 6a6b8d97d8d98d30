"""`doctor` on this machine and on machines that we do not have."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from keras_transfer.cli.doctor import OK, PROBLEM, WARNING, as_text, diagnose_machine
from keras_transfer.utils.machine import Gpu, Machine, parse_gpus

HEALTHY = Machine(
    python="3.13.0",
    system="Linux",
    release="6.8.0",
    packages={"tensorflow": "2.20.0", "keras": "3.13.2", "numpy": "2.0.2"},
    requirements={"tensorflow": ["numpy>=1.26.0", "keras>=3.10.0"]},
    capabilities=("sm_60", "sm_70", "sm_80", "sm_89", "compute_90"),
    cache="/home/user/.cache/keras_transfer",
    free_bytes=50 << 30,
    weights=("mobilenet_0.25",),
)
H100 = Gpu("NVIDIA H100", (9, 0), "570.86")


def levels(machine):
    return {finding.level for finding in diagnose_machine(machine)}


def only(machine, level):
    """Return the one finding of a level."""
    (finding,) = [f for f in diagnose_machine(machine) if f.level == level]
    return finding


def test_a_healthy_machine_without_a_gpu():
    assert levels(HEALTHY) == {OK}
    text = as_text(diagnose_machine(HEALTHY))
    for words in ("3.13.0 on Linux", "keras 3.13.2", "training runs on the CPU", "mobilenet_0.25"):
        assert words in text


def test_a_gpu_that_tensorflow_sees():
    machine = replace(HEALTHY, gpus=(H100,), visible=("/physical_device:GPU:0",))
    assert levels(machine) == {OK}
    assert "takes memory all of it at the start" in as_text(diagnose_machine(machine))
    machine = replace(machine, memory_growth=True)
    assert "takes memory as needed" in as_text(diagnose_machine(machine))


def test_a_gpu_whose_libraries_are_missing():
    finding = only(replace(HEALTHY, gpus=(H100,), missing_libraries=("libcudnn.so.9",)), PROBLEM)
    assert "TensorFlow sees no GPU: libcudnn.so.9 is missing" in finding.message
    assert "tensorflow[and-cuda]" in finding.remedy
    assert "nvidia-cudnn-cu12" in finding.remedy


def test_a_tensorflow_without_cuda():
    finding = only(replace(HEALTHY, gpus=(H100,), capabilities=()), PROBLEM)
    assert "built without CUDA" in finding.message
    assert "tensorflow[and-cuda]" in finding.remedy


def test_a_gpu_that_the_environment_hides():
    machine = replace(HEALTHY, gpus=(H100,), environment={"CUDA_VISIBLE_DEVICES": "-1"})
    assert "CUDA_VISIBLE_DEVICES='-1' hides it" in only(machine, PROBLEM).message


@pytest.mark.parametrize(
    ("capability", "known"),
    [((12, 0), False), ((10, 0), False), ((9, 0), True), ((8, 6), True), ((5, 0), False)],
)
def test_a_gpu_for_which_tensorflow_has_no_kernels(capability, known):
    gpu = Gpu("NVIDIA GPU", capability, "570.86")
    machine = replace(HEALTHY, gpus=(gpu,), visible=("/physical_device:GPU:0",))
    assert (levels(machine) == {OK}) == known
    if not known:
        finding = only(machine, WARNING)
        assert f"compute capability {capability[0]}.{capability[1]}" in finding.message
        assert "newer TensorFlow" in finding.remedy


def test_native_windows():
    machine = replace(HEALTHY, system="Windows", release="11")
    assert "WSL2" in only(machine, WARNING).remedy
    assert "WSL2" in only(replace(machine, gpus=(H100,)), PROBLEM).remedy


def test_versions_that_do_not_fit():
    packages = {"tensorflow": "2.21.0", "tensorflow-text": "2.20.1"}
    needs = {
        "tensorflow-text": ["tensorflow<2.21,>=2.20.0", "pytest>=100; extra == 'tests'"],
        "tensorflow": ["numpy>=1.26", "keras>=3; python_version < '3'"],
    }
    machine = replace(HEALTHY, packages={**packages, "keras": "3.13.2"}, requirements=needs)
    finding = only(machine, PROBLEM)
    assert finding.subject == "tensorflow-text"
    assert finding.message.startswith("2.20.1 needs tensorflow")
    assert "tensorflow 2.21.0 is installed" in finding.remedy


def test_a_broken_installation():
    machine = replace(HEALTHY, backend=None, import_error="ImportError: DLL load failed")
    assert "DLL load failed" in only(machine, PROBLEM).message
    machine = replace(HEALTHY, packages={"tensorflow": "2.20.0"}, requirements={})
    assert only(machine, PROBLEM).subject == "keras"
    assert only(replace(HEALTHY, python="3.10.4"), PROBLEM).subject == "Python"


def test_a_full_disk_and_legacy_keras():
    assert "cache --clear" in only(replace(HEALTHY, free_bytes=1 << 20), WARNING).remedy
    machine = replace(HEALTHY, environment={"TF_USE_LEGACY_KERAS": "1"})
    assert "Keras 2" in only(machine, WARNING).message


def test_lines_of_the_driver():
    output = "NVIDIA GeForce RTX 5090, 12.0, 570.86\nTesla T4, 7.5, 550.54\n[N/A]\nX, [N/A], 1\n"
    assert parse_gpus(output) == [
        Gpu("NVIDIA GeForce RTX 5090", (12, 0), "570.86"),
        Gpu("Tesla T4", (7, 5), "550.54"),
    ]


def test_this_machine():
    """The exit code follows the findings, and stdout holds one JSON document."""
    done = subprocess.run(
        [sys.executable, "-m", "keras_transfer.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
    )
    document = json.loads(done.stdout)
    assert done.returncode == (0 if document["healthy"] else 1), done.stderr
    assert document["machine"]["packages"]["keras_transfer"]
    assert {finding["subject"] for finding in document["findings"]} >= {
        "Python",
        "packages",
        "cache",
    }
