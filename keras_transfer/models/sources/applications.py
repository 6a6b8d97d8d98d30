"""Backbones from `keras.applications`: a table of all that have ImageNet weights, and building them.

The table is plain data, so that names and sizes can be checked before Keras is imported. Contract
tests compare the columns that could drift from Keras (parameters, stages, file names).
"""

import difflib
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.models.sources.presets import PRESETS, is_preset
from keras_transfer.utils.image_sizes import checked_size, sides

POOLINGS = ("auto", "avg", "max", None)  # "auto" is "avg"
# How RGB 0–255 becomes the input a family was trained on: channel order, then x * scale + offset.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
PREPROCESSING: dict[str, dict | None] = {
    "tf": dict(scale=1 / 127.5, offset=-1.0),  # to [-1, 1]
    "128": dict(scale=1 / 128.0, offset=-1.0),  # EfficientNetV2 S, M, L
    "torch": dict(  # zero mean and unit variance per channel over ImageNet
        scale=[1 / (255 * s) for s in _IMAGENET_STD],
        offset=[-m / s for m, s in zip(_IMAGENET_MEAN, _IMAGENET_STD)],
    ),
    "caffe": dict(bgr=True, scale=1.0, offset=[-103.939, -116.779, -123.68]),
    "unit": dict(scale=1 / 255.0, offset=0.0),  # to [0, 1], for your own models
    "none": None,  # the model takes 0–255
}


@dataclass(frozen=True)
class BackboneSpec:
    """One row of the table.

    The table is open: `BACKBONES["name"] = BackboneSpec("name", …)` adds one for this process.

    Attributes:
        name: the name used everywhere, e.g. `"mobilenet_v2_0.35"`.
        function: the function of `keras.applications`, or your own that takes `include_top=False`,
            `weights=None`, `input_shape`, `pooling` and `arguments` in the same way.
        module: the module of `keras.applications` with the family's `preprocess_input`; any name
            for your own.
        preprocessing: a key of `PREPROCESSING`.
        size: the image size (height = width) of the ImageNet training.
        min_size: the smallest image size that the family allows.
        parameters: number of parameters without the ImageNet classifier.
        stages: number of stages.
        weights_file: the file without classifier that Keras downloads to `KERAS_HOME/models`.
        arguments: passed to the function in addition to weights and pooling.
    """

    name: str
    function: str | Callable
    module: str
    preprocessing: str
    size: int
    min_size: int
    parameters: int
    stages: int
    weights_file: str
    arguments: dict = field(default_factory=dict)

    @property
    def batch_norm(self) -> bool:
        """Whether the family has BatchNorm."""
        return self.module not in ("convnext", "vgg16", "vgg19")

    @property
    def constructor(self) -> Callable:
        """The function itself. Imports Keras."""
        if callable(self.function):
            return self.function
        import keras

        return getattr(keras.applications, self.function)


def _row(name, function, module, preprocessing, size, min_size, params, stages, file, **arguments):
    return BackboneSpec(
        name, function, module, preprocessing, size, min_size, params, stages, file, arguments
    )


_TF = "_weights_tf_dim_ordering_tf_kernels_notop.h5"
_V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_"
_V3 = "weights_mobilenet_v3_"

# name, function, module, preprocessing, size, smallest size, parameters, stages, weights file
# fmt: off
_ROWS = (
    _row("convnext_tiny", "ConvNeXtTiny", "convnext", "torch", 224, 32, 27_820_128, 22, "convnext_tiny_notop.h5"),
    _row("convnext_small", "ConvNeXtSmall", "convnext", "torch", 224, 32, 49_454_688, 40, "convnext_small_notop.h5"),
    _row("convnext_base", "ConvNeXtBase", "convnext", "torch", 224, 32, 87_566_464, 40, "convnext_base_notop.h5"),
    _row("convnext_large", "ConvNeXtLarge", "convnext", "torch", 224, 32, 196_230_336, 40, "convnext_large_notop.h5"),
    _row("convnext_xlarge", "ConvNeXtXLarge", "convnext", "torch", 224, 32, 348_147_968, 40, "convnext_xlarge_notop.h5"),
    _row("densenet121", "DenseNet121", "densenet", "torch", 224, 32, 7_037_504, 34, "densenet121" + _TF),
    _row("densenet169", "DenseNet169", "densenet", "torch", 224, 32, 12_642_880, 54, "densenet169" + _TF),
    _row("densenet201", "DenseNet201", "densenet", "torch", 224, 32, 18_321_984, 62, "densenet201" + _TF),
    _row("efficientnet_b0", "EfficientNetB0", "efficientnet", "torch", 224, 32, 4_049_564, 17, "efficientnetb0_notop.h5"),
    _row("efficientnet_b1", "EfficientNetB1", "efficientnet", "torch", 240, 32, 6_575_232, 24, "efficientnetb1_notop.h5"),
    _row("efficientnet_b2", "EfficientNetB2", "efficientnet", "torch", 260, 32, 7_768_562, 24, "efficientnetb2_notop.h5"),
    _row("efficientnet_b3", "EfficientNetB3", "efficientnet", "torch", 300, 32, 10_783_528, 27, "efficientnetb3_notop.h5"),
    _row("efficientnet_b4", "EfficientNetB4", "efficientnet", "torch", 380, 32, 17_673_816, 33, "efficientnetb4_notop.h5"),
    _row("efficientnet_b5", "EfficientNetB5", "efficientnet", "torch", 456, 32, 28_513_520, 40, "efficientnetb5_notop.h5"),
    _row("efficientnet_b6", "EfficientNetB6", "efficientnet", "torch", 528, 32, 40_960_136, 46, "efficientnetb6_notop.h5"),
    _row("efficientnet_b7", "EfficientNetB7", "efficientnet", "torch", 600, 32, 64_097_680, 56, "efficientnetb7_notop.h5"),
    _row("efficientnet_v2_b0", "EfficientNetV2B0", "efficientnet_v2", "torch", 224, 32, 5_919_312, 22, "efficientnetv2-b0_notop.h5"),
    _row("efficientnet_v2_b1", "EfficientNetV2B1", "efficientnet_v2", "torch", 240, 32, 6_931_124, 28, "efficientnetv2-b1_notop.h5"),
    _row("efficientnet_v2_b2", "EfficientNetV2B2", "efficientnet_v2", "torch", 260, 32, 8_769_374, 29, "efficientnetv2-b2_notop.h5"),
    _row("efficientnet_v2_b3", "EfficientNetV2B3", "efficientnet_v2", "torch", 300, 32, 12_930_622, 33, "efficientnetv2-b3_notop.h5"),
    _row("efficientnet_v2_s", "EfficientNetV2S", "efficientnet_v2", "128", 384, 32, 20_331_360, 42, "efficientnetv2-s_notop.h5"),
    _row("efficientnet_v2_m", "EfficientNetV2M", "efficientnet_v2", "128", 480, 32, 53_150_388, 59, "efficientnetv2-m_notop.h5"),
    _row("efficientnet_v2_l", "EfficientNetV2L", "efficientnet_v2", "128", 480, 32, 117_746_848, 81, "efficientnetv2-l_notop.h5"),
    _row("inception_resnet_v2", "InceptionResNetV2", "inception_resnet_v2", "tf", 299, 75, 54_336_736, 38, "inception_resnet_v2" + _TF),
    _row("inception_v3", "InceptionV3", "inception_v3", "tf", 299, 75, 21_802_784, 16, "inception_v3" + _TF),
    _row("mobilenet_0.25", "MobileNet", "mobilenet", "tf", 224, 32, 218_544, 14, "mobilenet_2_5_224_tf_no_top.h5", alpha=0.25),
    _row("mobilenet_0.5", "MobileNet", "mobilenet", "tf", 224, 32, 829_536, 14, "mobilenet_5_0_224_tf_no_top.h5", alpha=0.5),
    _row("mobilenet_0.75", "MobileNet", "mobilenet", "tf", 224, 32, 1_832_976, 14, "mobilenet_7_5_224_tf_no_top.h5", alpha=0.75),
    _row("mobilenet", "MobileNet", "mobilenet", "tf", 224, 32, 3_228_864, 14, "mobilenet_1_0_224_tf_no_top.h5", alpha=1.0),
    _row("mobilenet_v2_0.35", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 410_208, 18, _V2 + "0.35_224_no_top.h5", alpha=0.35),
    _row("mobilenet_v2_0.5", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 706_224, 18, _V2 + "0.5_224_no_top.h5", alpha=0.5),
    _row("mobilenet_v2_0.75", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 1_382_064, 18, _V2 + "0.75_224_no_top.h5", alpha=0.75),
    _row("mobilenet_v2", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 2_257_984, 18, _V2 + "1.0_224_no_top.h5", alpha=1.0),
    _row("mobilenet_v2_1.3", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 3_766_048, 18, _V2 + "1.3_224_no_top.h5", alpha=1.3),
    _row("mobilenet_v2_1.4", "MobileNetV2", "mobilenet_v2", "tf", 224, 32, 4_363_712, 18, _V2 + "1.4_224_no_top.h5", alpha=1.4),
    _row("mobilenet_v3_large_0.75", "MobileNetV3Large", "mobilenet_v3", "tf", 224, 32, 1_808_736, 17, _V3 + "large_224_0.75_float_no_top_v2.h5", alpha=0.75),
    _row("mobilenet_v3_large", "MobileNetV3Large", "mobilenet_v3", "tf", 224, 32, 2_996_352, 17, _V3 + "large_224_1.0_float_no_top_v2.h5", alpha=1.0),
    _row("mobilenet_v3_large_minimalistic", "MobileNetV3Large", "mobilenet_v3", "tf", 224, 32, 1_437_608, 17, _V3 + "large_minimalistic_224_1.0_float_no_top_v2.h5", minimalistic=True),
    _row("mobilenet_v3_small_0.75", "MobileNetV3Small", "mobilenet_v3", "tf", 224, 32, 583_160, 14, _V3 + "small_224_0.75_float_no_top_v2.h5", alpha=0.75),
    _row("mobilenet_v3_small", "MobileNetV3Small", "mobilenet_v3", "tf", 224, 32, 939_120, 14, _V3 + "small_224_1.0_float_no_top_v2.h5", alpha=1.0),
    _row("mobilenet_v3_small_minimalistic", "MobileNetV3Small", "mobilenet_v3", "tf", 224, 32, 441_000, 13, _V3 + "small_minimalistic_224_1.0_float_no_top_v2.h5", minimalistic=True),
    _row("nasnet_large", "NASNetLarge", "nasnet", "tf", 331, 32, 84_916_818, 2, "nasnet_large_no_top.h5"),
    _row("nasnet_mobile", "NASNetMobile", "nasnet", "tf", 224, 32, 4_269_716, 2, "nasnet_mobile_no_top.h5"),
    _row("resnet50", "ResNet50", "resnet", "caffe", 224, 32, 23_587_712, 17, "resnet50" + _TF),
    _row("resnet101", "ResNet101", "resnet", "caffe", 224, 32, 42_658_176, 34, "resnet101" + _TF),
    _row("resnet152", "ResNet152", "resnet", "caffe", 224, 32, 58_370_944, 51, "resnet152" + _TF),
    _row("resnet50_v2", "ResNet50V2", "resnet_v2", "tf", 224, 32, 23_564_800, 17, "resnet50v2" + _TF),
    _row("resnet101_v2", "ResNet101V2", "resnet_v2", "tf", 224, 32, 42_626_560, 34, "resnet101v2" + _TF),
    _row("resnet152_v2", "ResNet152V2", "resnet_v2", "tf", 224, 32, 58_331_648, 51, "resnet152v2" + _TF),
    _row("vgg16", "VGG16", "vgg16", "caffe", 224, 32, 14_714_688, 13, "vgg16" + _TF),
    _row("vgg19", "VGG19", "vgg19", "caffe", 224, 32, 20_024_384, 16, "vgg19" + _TF),
    _row("xception", "Xception", "xception", "tf", 299, 71, 20_861_480, 16, "xception" + _TF),
)
# fmt: on

BACKBONES = {row.name: row for row in _ROWS}

# The host from which Keras downloads the weights; contacted only to check early that it is reachable.
_WEIGHTS_HOST = "https://storage.googleapis.com/tensorflow/keras-applications/"


# -- checks without Keras -------------------------------------------------------------------------


def find_spec(name: str) -> BackboneSpec:
    """Return the row of the table with this name.

    Raises:
        InputError: unknown name; the message suggests similar ones.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    known = [*BACKBONES, *PRESETS]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else "it is neither in the table nor a file."
    )
    raise InputError(
        f"Unknown backbone '{name}': {hint} `keras-transfer backbones` lists all, with --source hub those of KerasHub."
    )


def is_source_model(backbone: str) -> bool:
    """Return whether `backbone` means your own model: a `.keras` or `.h5` file, or a run directory."""
    name = str(backbone)
    return (
        backbone not in BACKBONES
        and not is_preset(name)
        and (name.endswith((".keras", ".h5")) or os.sep in name or Path(name).exists())
    )


def weights_path(spec: BackboneSpec) -> Path:
    """Return where Keras stores the ImageNet weights: in `$KERAS_HOME/models` or `~/.keras/models`."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home) / "models" / spec.weights_file


def check_image_size(spec: BackboneSpec, image_size: int | str | None) -> None:
    """Raise InputError if the family does not allow the image size."""
    image_size = checked_size(image_size)
    if image_size is not None and min(sides(image_size)) < spec.min_size:
        raise InputError(
            f"Image size {image_size} is too small for {spec.name}: use {spec.min_size} or more "
            f"(its ImageNet weights were trained at {spec.size})."
        )


def check_pooling(pooling, name: str) -> None:
    """Raise InputError if a pooling does not apply to the feature map of a network."""
    if pooling not in POOLINGS:
        raise InputError(f"Unknown pooling {pooling!r} for {name}. Choose 'avg', 'max' or None.")


def check_weights(spec: BackboneSpec) -> None:
    """Raise InputError if the ImageNet weights are neither on this machine nor downloadable.

    This looks for the file, then requests the host's headers.
    """
    if weights_path(spec).is_file():
        return
    try:
        request = urllib.request.Request(_WEIGHTS_HOST, method="HEAD")
        urllib.request.urlopen(request, timeout=5)
    except urllib.error.HTTPError:
        return  # the host answered, so Keras can try
    except OSError as error:
        raise _no_weights(spec, error) from None


def check_own_weights(name, weights) -> None:
    """Raise InputError if a weights file is given for a model or preset that brings its weights."""
    if weights not in ("imagenet", None):
        raise InputError(f"'{name}' brings its weights: it takes no weights file {weights}.")


def _no_weights(spec, error) -> InputError:
    path = weights_path(spec)
    reason = getattr(error, "reason", error)
    return InputError(
        f"No ImageNet weights for {spec.name}: {path} does not exist and the download failed "
        f"({reason}). Copy {path.name} from a machine that has it into {path.parent}, set "
        f"KERAS_HOME to the folder that contains models/, or choose a backbone that "
        f"`keras-transfer backbones` marks as present."
    )


def damage_of(file: Path) -> str | None:
    """Return how a `.keras` file is damaged, as the end of a message; None if it is not."""
    remedy = "copy it again, or save the model again"
    with file.open("rb") as opened:
        start = opened.read(4)
    if not start:
        return f"is empty: {remedy}."
    if start != b"PK\x03\x04":
        return None  # another kind of file
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError):
        return f"is damaged or incomplete: {remedy}."
    return f"is damaged in {broken}: {remedy}." if broken else None


def check_source_model(path: str) -> Path:
    """Return the model file that `path` (a file or a run directory) means.

    Raises:
        InputError: the file does not exist, or Keras 3 cannot have written it.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        raise InputError(
            f"{path} is a TensorFlow SavedModel (the format of TF Hub, too), whose layers Keras 3 cannot "
            "read: save the Keras model that it was made from with model.save('name.keras')."
        )
    # That of a run which has not seen the validation examples, if there is one.
    files = [path / name for name in ("validated.keras", "model.keras")] if path.is_dir() else []
    file = next((each for each in files if each.is_file()), path)
    if not file.is_file():
        what = "is not a run (it has no model.keras)" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {what}: pass a .keras or .h5 file, the directory of a finished run, or a folder "
            "with a preset of KerasHub or Hugging Face (config.json)."
        )
    if file.suffix == ".h5":
        with file.open("rb") as opened:
            valid = opened.read(8) == b"\x89HDF\r\n\x1a\n"
    else:
        members = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
        valid = {"config.json", "model.weights.h5"} <= set(members)
    if not valid:
        if damage := damage_of(file):
            raise InputError(f"{file} {damage}")
        raise InputError(
            f"{file} is not a Keras 3 model file: save the model with model.save('name.keras')."
        )
    return file


# -- building -------------------------------------------------------------------------------------


def backbone_from_application(backbone: str, *, image_size, weights, pooling):
    """Build the backbone of a row of the table, see `build_backbone`."""
    import keras

    from keras_transfer.models.graph import rebuild
    from keras_transfer.models.stages import Backbone

    check_pooling(pooling, backbone)
    spec = find_spec(backbone)
    check_image_size(spec, image_size)
    size = image_size or spec.size
    application = _application(spec, size, weights, pooling)
    inputs = keras.Input((*sides(size), 3), name="images")
    # Families that normalize inside their network are treated like all others, so that the graph
    # does not depend on `weights` (EfficientNet's does), and images always mean the same.
    own_preprocessing = (keras.layers.Rescaling, keras.layers.Normalization)
    features = rebuild(application, normalized(inputs, spec.preprocessing), skip=own_preprocessing)
    return Backbone(inputs, features, name=spec.name)


def normalized(images, preprocessing: str | dict | None):
    """Apply a row of `PREPROCESSING`, its key, or None, to a symbolic image tensor, in float32."""
    import keras

    rule = PREPROCESSING[preprocessing] if isinstance(preprocessing, str) else preprocessing
    if rule is None:
        return images
    if rule.get("bgr"):
        images = keras.ops.flip(images, axis=-1)
    return keras.layers.Rescaling(rule["scale"], rule["offset"], dtype="float32", name="normalise")(
        images
    )


def pooled(feature_map, pooling):
    """Apply a pooling of `POOLINGS` to a symbolic feature map [N, h, w, D]."""
    import keras

    if pooling is None:
        return feature_map
    pool = "GlobalMaxPooling2D" if pooling == "max" else "GlobalAveragePooling2D"
    return getattr(keras.layers, pool)(name="pooling")(feature_map)


def _application(spec, size, weights, pooling):
    """Return the model of `keras.applications` without classifier, weights loaded.

    It is built for one image size, because several families choose their padding by it.
    """
    from keras_transfer.models.sources.timm import find_timm, is_timm, load_timm

    local = weights_path(spec)
    tensors = find_timm(weights, spec) if is_timm(weights) else None
    if tensors is not None:
        weights = None
    elif weights == "imagenet" and local.is_file():
        weights = str(local)  # Keras itself looks elsewhere if KERAS_HOME is not writable
    elif weights not in ("imagenet", None) and not Path(weights).is_file():
        raise InputError(f"No weights file {weights}: pass a path, 'imagenet' or None.")
    pooling = "avg" if pooling == "auto" else pooling
    arguments = dict(include_top=False, pooling=pooling, **spec.arguments)
    downloaded = _downloaded(spec, arguments) if weights == "imagenet" else None
    try:
        application = spec.constructor(weights=None, input_shape=(*sides(size), 3), **arguments)
    except ValueError as error:  # NASNet's cells fit together at some sizes only
        raise InputError(
            f"{spec.name} cannot be built for image size {size}: try {spec.size} or a multiple of 32."
        ) from error
    if tensors is not None:
        load_timm(application, tensors, spec.name)
    elif downloaded is not None:
        application.set_weights(downloaded)
    elif weights is not None:
        try:
            application.load_weights(str(weights))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{weights} has no weights for {spec.name}: {reason}") from error
    return application


def _downloaded(spec, arguments):
    """Return the ImageNet weights as Keras itself downloads and verifies them.

    They are loaded at the size of the ImageNet training, because NASNetLarge built for any size is
    another network, which the file would not fit.
    """
    try:
        native = (spec.size, spec.size, 3)
        return spec.constructor(weights="imagenet", input_shape=native, **arguments).get_weights()
    except Exception as error:
        raise _no_weights(spec, error) from error
