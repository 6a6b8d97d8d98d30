"""Transfer learning on Keras 3 / TensorFlow: from images and labels to a served model.

The public names, loaded when they are first used: importing this package loads neither Keras nor
TensorFlow.
"""

from keras_transfer.utils.lazy import lazy_names

__version__ = "0.1.0"

# Public name -> module that has it.
_NAMES = {
    "Adapter": "adaptation.adapter",
    "Augmentation": "data",
    "Backbone": "models.stages",
    "BackboneSpec": "models.sources.applications",
    "Calibration": "evaluation.calibration",
    "BACKBONES": "models.sources.applications",
    "Classification": "models.heads",
    "Client": "export.client",
    "Evaluation": "evaluation.result",
    "InputError": "errors",
    "MultiLabel": "models.heads",
    "Phase": "schedules.phases",
    "RECIPES": "schedules.recipes",
    "Regression": "models.heads",
    "Run": "runs",
    "Schedule": "schedules.phases",
    "Trainer": "training.trainer",
    "WeightRule": "schedules.optimizers",
    "activation_shift": "advisor.activation_shift",
    "adapt": "adaptation.api",
    "advise": "advisor.api",
    "assess": "evaluation.full",
    "backbone_from_model": "models.sources.build",
    "backbone_of": "models.builders",
    "build_backbone": "models.sources.build",
    "build_model": "models.builders",
    "calibrate": "evaluation.calibration",
    "compare": "experiments.compare",
    "compare_runs": "reporting.side_by_side",
    "compile_arguments": "models.heads",
    "domain_distance": "advisor.domains",
    "evaluate": "evaluation.api",
    "find_rate": "training.rate_finder",
    "freeze": "models.freezing",
    "grad_cam": "evaluation.gradcam",
    "head_for": "models.heads",
    "head_of": "models.heads",
    "heads_of": "models.heads",
    "load_model": "models.sources.build",
    "per_weight": "schedules.optimizers",
    "predict": "evaluation.prediction",
    "probe_stages": "advisor.stage_probes",
    "rank_scores": "advisor.transferability.table",
    "resolve_schedule": "schedules.recipes",
    "score_backbone": "advisor.transferability.backbone",
    "score_features": "advisor.transferability.scoring",
    "set_precision": "models.precision",
    "show_batch": "reporting.sheet",
    "start_workers": "training.distributed.workers",
    "summary": "models.freezing",
    "tune": "experiments.tune",
    "write_report": "reporting.write",
}
_MODULES = ("adaptation", "advisor", "data", "export")

__all__ = [*_NAMES, *_MODULES, "__version__"]


__getattr__, __dir__ = lazy_names(__name__, {**_NAMES, **dict.fromkeys(_MODULES, "")})
