"""Models: backbones and their stages, heads, freezing, and what makes training fast.

`sources` builds backbones. This package itself imports neither Keras nor TensorFlow, so that names
can be checked first. Modules here may import `data`, `modalities`, `utils` and `errors`.
"""

from keras_transfer.utils.names import lazy_names

BATCH_NORM_POLICIES = ("frozen", "train")
TRAINED = ("all", "bias", "norm", "bias+norm", "lora")  # weights that move in the trained stages
LOW_RANK = ("attention", "dense", "conv", "embedding")  # kinds of layers with low-rank updates
WITH_TFIDF = "all+tfidf"
# What a head reads: the last stage, every stage, or these and TF-IDF features of the texts.
TAPS = ("last", "all", WITH_TFIDF)
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")

_NAMES = {
    "Backbone": "stages",
    "BackboneSpec": "sources.applications",
    "backbone_from_model": "sources.own",
    "backbone_of": "stages",
    "build_backbone": "sources.backbones",
    "compile_arguments": "builders",
    "framing_of": "framing",
    "head_for": "builders",
    "head_of": "builders",
    "heads_of": "builders",
    "set_precision": "acceleration",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
