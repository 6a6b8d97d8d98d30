"""Models: stages and backbones, heads, freezing, folding, precision; `sources` builds backbones.

This package itself imports neither Keras nor TensorFlow, so that names can be checked before them.
Modules here may import `data`, `modalities`, `utils` and `errors`.
"""

BATCH_NORM_POLICIES = ("frozen", "train")
