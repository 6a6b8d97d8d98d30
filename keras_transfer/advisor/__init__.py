"""The advisor: which backbone and strategy suit the data, from evidence, rules and a race.

Modules here may import `training` and the rooms below it.
"""

from keras_transfer.utils.lazy import lazy_names

_NAMES = {
    "activation_shift": "similarity",
    "auto_trainer": "auto",
    "domain_distance": "domains",
    "probe_stages": "stage_probes",
    "rank_scores": "scores",
    "score_backbone": "transferability",
    "score_features": "transferability",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
