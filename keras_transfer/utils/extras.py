"""Optional packages, and the extras of keras_transfer that install them."""

import importlib.util

from keras_transfer.errors import InputError

# Module → extra, as in setup.cfg.
EXTRAS = {
    "albumentations": "albumentations",
    "apache_beam": "beam",
    "cv2": "opencv",
    "datasets": "hf",
    "datasketch": "diagnosis",
    "grpc": "client",
    "huggingface_hub": "hf",
    "imagehash": "diagnosis",
    "keras_hub": "hub",
    "mlflow": "mlflow",
    "nncf": "int8",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "optuna": "tune",
    "pillow_heif": "heif",
    "pyarrow": "parquet",
    "safetensors": "hub",
    "soundfile": "audio",
    "soxr": "audio",
    "tensorflow_datasets": "tfds",
    "tensorflow_text": "text",
    "tensorflow_serving": "client",
    "tifffile": "bands",
    "tf2onnx": "onnx",
}
# Module → what pip installs without its dependencies, because those exclude today's TensorFlow.
ALONE = {"tensorflowjs": "tensorflowjs>=4.22,<5"}


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # an import hook that hides it
        return False


def require(module: str, purpose: str) -> None:
    """Raise InputError, which names the extra, if an optional module is not installed.

    Args:
        module: a name in `EXTRAS` or `ALONE`.
        purpose: what needs it; starts the message, such as `"Reading Parquet"`.
    """
    if not is_installed(module):
        raise InputError(f"{purpose} needs {missing_extra(module)}.")


def missing_extra(module: str) -> str:
    """Return the words that say that an optional module is not installed, and how to install it."""
    if module in ALONE:
        installed = f'--no-deps "{ALONE[module]}"'
    else:
        installed = f'"keras_transfer[{EXTRAS[module]}]"'
    return f"{module}, which is not installed: pip install {installed}"
