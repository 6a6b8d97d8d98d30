"""Networks: stages and backbones, heads, freezing, folding and number formats; `sources` builds backbones.

This package itself imports neither Keras nor TensorFlow, so that names can be checked before them.
Modules here may import `data`, `modalities`, `utils` and `errors`.
"""

from keras_transfer.utils.lazy import lazy_names

BATCH_NORM_POLICIES = ("frozen", "train")

_NAMES = {
    "Backbone": "stages",
    "BackboneSpec": "sources.applications",
    "backbone_from_model": "sources.build",
    "backbone_of": "builders",
    "build_backbone": "sources.build",
    "compile_arguments": "heads",
    "head_for": "heads",
    "head_of": "heads",
    "heads_of": "heads",
    "set_precision": "precision",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
