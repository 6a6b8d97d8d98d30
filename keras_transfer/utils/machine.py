"""Facts about this machine and its Python environment, as one object."""

import csv
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keras_transfer import __version__
from keras_transfer.utils.files import cache_folder

# The packages that a bug report needs, in the order in which they are printed.
PACKAGES = (
    *("keras_transfer", "tensorflow", "keras", "keras-hub", "tensorflow-text", "tf_keras"),
    *("numpy", "jax", "torch", "albumentations", "tensorflow-datasets"),
)
_NIGHTLY = {"tensorflow": "tf-nightly", "keras": "keras-nightly"}  # what a night's build is called
# The variables that change Keras or TensorFlow.
ENVIRONMENT = (
    *("KERAS_BACKEND", "KERAS_HOME", "TF_USE_LEGACY_KERAS"),
    *("CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH"),
)
# The file that TensorFlow loads from each library of CUDA, and the package that contains it.
CUDA_LIBRARIES = {
    "libcudart.so.12": "nvidia-cuda-runtime-cu12",
    "libcublas.so.12": "nvidia-cublas-cu12",
    "libcufft.so.11": "nvidia-cufft-cu12",
    "libcusolver.so.11": "nvidia-cusolver-cu12",
    "libcusparse.so.12": "nvidia-cusparse-cu12",
    "libcudnn.so.9": "nvidia-cudnn-cu12",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver reports.

    Attributes:
        capability: CUDA's compute capability, (major, minor).
    """

    name: str
    capability: tuple[int, int]
    driver: str


@dataclass(frozen=True)
class Machine:
    """What `keras-transfer doctor` examines; tests make machines that they do not have.

    Attributes:
        python: version as text, e.g. `"3.13.0"`.
        system: `"Linux"`, `"Darwin"` or `"Windows"`.
        release: release of the system's kernel; Windows's own Linux has `microsoft` in it.
        packages: distribution → installed version; missing ones are left out.
        requirements: distribution → its requirements, as `importlib.metadata` states them.
        backend: Keras's backend, or None if Keras cannot be imported.
        import_error: why TensorFlow or Keras cannot be imported, or None.
        gpus: GPUs that the driver reports.
        visible: names of the GPUs that TensorFlow sees.
        capabilities: architectures for which TensorFlow has kernels, e.g. `("sm_80", "compute_90")`;
            empty if it was built without CUDA.
        missing_libraries: names in `CUDA_LIBRARIES` that cannot be loaded.
        memory_growth: whether TensorFlow takes GPU memory as needed rather than all at once.
        cache: folder of the activation cache.
        free_bytes: free space there.
        weights: names of the backbones and presets whose weights are on this machine.
        environment: values of the variables in `ENVIRONMENT` that are set.
    """

    python: str
    system: str
    release: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    requirements: Mapping[str, Sequence[str]] = field(default_factory=dict)
    backend: str | None = "tensorflow"
    import_error: str | None = None
    gpus: Sequence[Gpu] = ()
    visible: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    missing_libraries: Sequence[str] = ()
    memory_growth: bool = False
    cache: str = ""
    free_bytes: int = 0
    weights: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def read_machine(weights: Sequence[str] = ()) -> Machine:
    """Return the facts of this machine; this imports TensorFlow and Keras.

    Args:
        weights: names of the backbones whose weights are on this machine.
    """
    packages, requirements = {}, {}
    for name in PACKAGES:
        distribution = _distribution(name) or _distribution(_NIGHTLY.get(name))
        if distribution is None:
            continue
        # An editable installation records the version of the day on which it was installed.
        packages[name] = __version__ if name == "keras_transfer" else distribution.version
        requirements[name] = distribution.requires or []
    cache = cache_folder()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    gpus = driver_gpus()
    return Machine(
        python=platform.python_version(),
        system=platform.system(),
        release=platform.release(),
        packages=packages,
        requirements=requirements,
        gpus=gpus,
        missing_libraries=_missing_libraries() if gpus else (),
        cache=str(cache),
        free_bytes=shutil.disk_usage(existing).free,
        weights=(*weights, *_presets()),
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        **_frameworks(),
    )


def _distribution(name):
    """Return an installed distribution, or None."""
    try:
        return importlib.metadata.distribution(name) if name else None
    except importlib.metadata.PackageNotFoundError:
        return None


def _frameworks():
    try:
        import keras
        import tensorflow as tf

        visible = tf.config.list_physical_devices("GPU")
        build = tf.sysconfig.get_build_info()
        growth = [tf.config.experimental.get_memory_growth(device) for device in visible]
    except Exception as error:  # whatever a broken installation raises is what we report
        return {"backend": None, "import_error": f"{type(error).__name__}: {error}"}
    return {
        "backend": keras.backend.backend(),
        "visible": [device.name for device in visible],
        "capabilities": tuple(build.get("cuda_compute_capabilities", ())),
        "memory_growth": bool(growth) and all(growth),
    }


def driver_gpus() -> list[Gpu]:
    """Return the GPUs that NVIDIA's driver reports; no framework is imported."""
    query = "--query-gpu=name,compute_cap,driver_version"
    try:
        output = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # no driver, or one that does not answer
    return parse_gpus(output)


def parse_gpus(output: str) -> list[Gpu]:
    """Read the lines `name, capability, driver` that `nvidia-smi` prints; others are skipped."""
    gpus = []
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        if len(row) == 3 and row[1].count(".") == 1:
            major, minor = row[1].split(".")
            if major.isdigit() and minor.isdigit():
                gpus.append(Gpu(row[0], (int(major), int(minor)), row[2]))
    return gpus


def _missing_libraries():
    """Return the libraries of CUDA that neither the system nor NVIDIA's packages provide."""
    import ctypes

    missing = []
    folders = [Path(entry) / "nvidia" for entry in sys.path if entry]
    for library in CUDA_LIBRARIES:
        if any(next(folder.glob(f"*/lib/{library}"), None) for folder in folders):
            continue
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(library)
    return missing


def _presets():
    """Return the presets that KerasHub has downloaded, from Kaggle's and Hugging Face's caches."""
    kaggle = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    found = [folder.name for folder in sorted(kaggle.glob("models/keras/*/keras/*"))]
    return found + [
        f"hf://keras/{p.name.split('--')[-1]}" for p in sorted(hub.glob("models--keras--*"))
    ]
