"""Transfer learning on Keras 3 / TensorFlow: from pictures and labels to a served model.

The public names, loaded when they are first used: importing this package loads neither Keras nor
TensorFlow.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that has it.
_NAMES = {
    "Adapter": "adaptation.adapter",
    "Augmentation": "data",
    "Backbone": "stages",
    "BackboneSpec": "backbones",
    "Calibration": "evaluation.calibrating",
    "BACKBONES": "backbones",
    "Classification": "heads",
    "Client": "client",
    "Evaluation": "evaluation.result",
    "InputError": "errors",
    "MultiLabel": "heads",
    "Phase": "schedules",
    "RECIPES": "recipes",
    "Regression": "heads",
    "Run": "runs",
    "Schedule": "schedules",
    "Trainer": "training",
    "WeightRule": "optimizers",
    "activation_shift": "likeness",
    "adapt": "adaptation.easy",
    "advise": "advisor",
    "assess": "evaluation.assessing",
    "backbone_from_model": "backbone_building",
    "backbone_of": "builders",
    "build_backbone": "backbone_building",
    "build_model": "builders",
    "calibrate": "evaluation.calibrating",
    "compare": "comparison.running",
    "compare_runs": "report.comparing",
    "compile_arguments": "heads",
    "domain_distance": "domains",
    "evaluate": "evaluation.measuring",
    "find_rate": "rate_finder",
    "freeze": "freezing",
    "grad_cam": "gradcam",
    "head_for": "heads",
    "head_of": "heads",
    "heads_of": "heads",
    "load_model": "backbone_building",
    "per_weight": "optimizers",
    "predict": "evaluation.predicting",
    "probe_stages": "stage_probes",
    "rank_scores": "transferability.table",
    "resolve_schedule": "recipes",
    "score_backbone": "transferability.backbone",
    "score_features": "transferability.scoring",
    "set_precision": "precision",
    "show_batch": "data.sheet",
    "start_workers": "distribution.workers",
    "summary": "freezing",
    "tune": "tuning",
    "write_report": "report.writing",
}
_MODULES = ("adaptation", "data", "export")

__all__ = [*_NAMES, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
