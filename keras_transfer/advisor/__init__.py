"""The advisor: recommends a backbone and a strategy from measurements, rules and a race.

Modules measure (transferability, stage probes, similarity, distances, costs), apply `rules`, and put
the result into an `Advice`; `auto` turns it into a trainer. They may import `training` and the rooms
below it. Importing the room, `rules` and `api` loads neither Keras nor TensorFlow.
"""

from keras_transfer.utils.names import lazy_names

_NAMES = {
    "activation_shift": "similarity",
    "advise": "api",
    "auto_trainer": "auto",
    "choose_taps": "taps",
    "decide": "auto",
    "domain_distance": "domains",
    "probe_stages": "stage_probes",
    "rank_scores": "scores",
    "score_backbone": "transferability",
    "score_features": "transferability",
}

__all__ = list(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
