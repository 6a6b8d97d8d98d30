"""The advisor: recommends a backbone and a strategy from measurements, rules and a race.

`closed_forms` compares candidates before any training (`evidence`), `race` compares trainings, `judging`
says for every task which outputs are better, and `auto` joins them within a `budget`; `without_race`
decides by the evidence alone. Modules may import `training` and the rooms below it. Importing the room, `rules` and `api` loads neither Keras nor TensorFlow.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "activation_shift": "similarity",
    "advise": "api",
    "auto_trainer": "without_race",
    "compare_closed_forms": "closed_forms",
    "decide": "plans",
    "domain_distance": "domains",
    "probe_stages": "stage_probes",
    "rank_scores": "scores",
    "score_backbone": "transferability",
    "score_features": "transferability",
    "train_best": "auto",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
