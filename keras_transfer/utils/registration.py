"""The package's classes in Keras's registry, by name, so that `keras.saving.load_model` finds them.

Importing the package must not import Keras, and Keras calls nothing when it looks for a class. The
names are therefore entered when Keras has been imported, whoever imports it; the module of a class is
imported when a saved model needs the class.
"""

import importlib
import sys
from importlib.abc import MetaPathFinder

# Registered class → its module.
REGISTERED = {
    "Backbone": "models.stages",
    "Taps": "models.taps",
    **dict.fromkeys(
        (
            *("SparseCrossentropy", "LabelCrossentropy", "StandardisedError", "LabelRanking"),
            *("LabelF1", "R2", "Accuracy", "TopAccuracy", "TaskOutput"),
        ),
        "models.heads",
    ),
    **dict.fromkeys(("AttentionPooling", "Block"), "models.transformers"),
    **dict.fromkeys(("Patches", "TextEmbedding", "TokenPooling"), "models.tokens"),
    "TfIdf": "models.tfidf",
    "LogMel": "modalities.audio.layer",
    "RateShape": "schedules.rates",
}
_OPTIMIZERS = "schedules.plans"  # registers PerWeightAdamW and so on, one for each of Keras's


class Later:
    """Stands for a class of the package in Keras's registry until a saved model needs it."""

    def __init__(self, name: str, module: str):
        self.name, self.module = name, module

    def from_config(self, config):
        """Import the class, which takes this object's place in the registry, and build it."""
        import keras

        importlib.import_module(f"keras_transfer.{self.module}")
        return keras.saving.get_custom_objects()[self.name].from_config(config)


def register_with(keras) -> None:
    """Enter the names that are not in Keras's registry yet."""
    known = keras.saving.get_custom_objects()
    optimizers = {
        f"PerWeight{name}": _OPTIMIZERS
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    for name, module in (REGISTERED | optimizers).items():
        name = f"keras_transfer>{name}"
        known.setdefault(name, Later(name, module))


class _AfterKeras(MetaPathFinder):
    """Calls `register_with` as soon as Keras has been imported, then removes itself."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (f.find_spec(name, path, target) for f in others)), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            sys.meta_path.remove(self)
            register_with(module)

        spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Register the classes now if Keras is imported, otherwise as soon as it is."""
    keras = sys.modules.get("keras")
    if hasattr(keras, "saving"):
        register_with(keras)
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())
