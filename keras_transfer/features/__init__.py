"""Features: the frozen part of a network, computed once and stored.

`prefix` defines the part and runs it, `store` holds the results, `extraction` connects the two,
`caching` decides which phases use it, and `closed_form` fits linear models. This package itself
imports neither Keras nor TensorFlow. Modules here may import `schedules`, `runs`, `models`, `data`,
`modalities`, `utils` and `errors`.
"""

CACHES = ("auto", "off", "memory", "disk")
ENGINE_NAMES = ("auto", "keras", "openvino")
