"""Transfer learning on Keras 3 and TensorFlow: from labelled examples to a served model.

The public names are loaded on first use: importing this package loads neither Keras nor TensorFlow.
After `import keras_transfer`, `keras.saving.load_model` loads the package's models, in safe mode.
"""

from keras_transfer.utils.names import lazy_names
from keras_transfer.utils.registration import register

__version__ = "0.2.0"

# Public name → module that defines it; the rooms are public too.
_NAMES = {
    "BACKBONES": "models.sources.applications",
    "Classification": "models.heads",
    "InputError": "errors",
    "MultiLabel": "models.heads",
    "Phase": "schedules.phases",
    "RECIPES": "schedules.recipes",
    "Regression": "models.heads",
    "Run": "runs",
    "Schedule": "schedules.phases",
    "Trainer": "training.trainer",
    "adapt": "adaptation.api",
    "advise": "advisor.api",
    "build_model": "models.builders",
    "calibrate": "evaluation.calibration",
    "compare": "experiments.compare",
    "diagnose": "diagnosis.api",
    "evaluate": "evaluation.api",
    "freeze": "models.stages",
    "load_model": "models.sources.own",
    "predict": "evaluation.prediction",
    "select": "diagnosis.selection",
    "summary": "models.builders",
    "tune": "experiments.tune",
    "write_report": "reporting.run_report",
}
_ROOMS = (
    *(
        "adaptation",
        "advisor",
        "data",
        "diagnosis",
        "evaluation",
        "experiments",
        "export",
        "features",
    ),
    *("modalities", "models", "reporting", "schedules", "training"),
)

# Names of 0.1 that moved to their rooms.
_MOVED = {
    name: f"keras_transfer.{room}.{name}"
    for room, names in {
        "adaptation": ("Adapter",),
        "advisor": (
            *("activation_shift", "domain_distance", "probe_stages", "rank_scores"),
            *("score_backbone", "score_features"),
        ),
        "data": ("Augmentation",),
        "evaluation": ("Calibration", "Evaluation", "assess", "grad_cam"),
        "export": ("Client",),
        "models": (
            *("Backbone", "BackboneSpec", "backbone_from_model", "backbone_of"),
            *("build_backbone", "compile_arguments", "head_for", "head_of", "heads_of"),
            "set_precision",
        ),
        "reporting": ("compare_runs", "show_batch"),
        "schedules": ("WeightRule", "per_weight", "resolve_schedule"),
        "training": ("find_rate", "start_workers"),
    }.items()
    for name in names
}

__all__ = [*_NAMES, *_ROOMS, "__version__"]

__getattr__, __dir__ = lazy_names(__name__, {**_NAMES, **dict.fromkeys(_ROOMS, "")}, _MOVED)

register()  # with Keras, now or when it is imported
