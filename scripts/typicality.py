"""How well examples of another dataset, and noise, are told from those that a model knows.

    python scripts/typicality.py                    the reporting half
    python scripts/typicality.py --half tuning      the half on which the score was chosen
    python scripts/typicality.py --detail           each pair of sets

For each ordered pair of sets, the AUROC of the validation images of the one, on whose training images a
head was fitted in closed form, against those of the other, and against noise. Scores: cosine to the k-th
nearest of 500 training examples; Mahalanobis distance to the nearest class with a shared, shrunk covariance
(arXiv:1807.03888); energy of the logits (arXiv:2010.03759); the highest probability. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from accuracy_data import DATASETS
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from keras_transfer.data import open_data
from keras_transfer.data.arrays import from_arrays
from keras_transfer.diagnosis.seen import see
from keras_transfer.evaluation.typicality import PROTOTYPES, unit
from keras_transfer.modalities import find_modality, open_framing
from keras_transfer.utils.console import Table

NOISE = 100


def opened(name: str):
    root = Path(os.environ["KERAS_TRANSFER_DATA"])
    place = root / name if (root / name).exists() else root / "bench" / name
    return open_data(place, progress=False)


def noise():
    images = find_modality("image").noise(open_framing(224), NOISE)
    labels = np.arange(NOISE) % 2
    rule = {"class_names": ["a", "b"], "progress": False}
    return from_arrays((np.stack(images), labels), **rule)


def scorers(x, y):
    """Return name of a score → function from features to it; higher is more typical."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(x))[:PROTOTYPES]
    prototypes = unit(x[rows])
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    means = np.stack([x[y == c].mean(axis=0) for c in np.unique(y)])
    within = LedoitWolf().fit((x - means[np.unique(y, return_inverse=True)[1]]) / scale)
    head = LogisticRegression(C=1e-2, max_iter=200).fit((x - mean) / scale, y)

    def neighbor(k):
        return lambda f: np.sort(unit(f) @ prototypes.T, axis=1)[:, -k]

    def logits(f):
        found = head.decision_function((f - mean) / scale)
        return found if found.ndim == 2 else np.stack([-found / 2, found / 2], axis=1)

    def distance(f):
        return np.min(
            [within.mahalanobis((f - c) / scale + within.location_) for c in means], axis=0
        )

    return {
        "nearest": neighbor(1),
        "5th": neighbor(5),
        "10th": neighbor(10),
        "Mahalanobis": lambda f: -distance(f),
        "energy": lambda f: logsumexp(logits(f), axis=1),
        "probability": lambda f: logits(f).max(axis=1) - logsumexp(logits(f), axis=1),
    }


def report(names: list, backbone: str, detail: bool) -> None:
    features = {}
    for name in names:
        seen = see(opened(name), backbone, None, "auto")
        parts = {split: seen.splits == split for split in ("train", "val")}
        features[name] = {
            split: (seen.features[rows], seen.examples.labels[rows])
            for split, rows in parts.items()
        }
    strangers = see(noise(), backbone, None, "auto").features  # of both splits
    found, pairs = {}, []
    for name in names:
        scores = scorers(*features[name]["train"])
        own = features[name]["val"][0]
        others = {other: features[other]["val"][0] for other in names if other != name}
        for other, rows in {**others, "noise": strangers}.items():
            truth = np.repeat([1, 0], [len(own), len(rows)])
            aurocs = [
                roc_auc_score(truth, np.concatenate([score(own), score(rows)]))
                for score in scores.values()
            ]
            pairs.append((name, other, *(f"{100 * a:.1f}" for a in aurocs)))
            found[name, other] = aurocs
    header = ("known", "unknown", *scores)
    if detail:
        print(Table(header, pairs, "ll" + "r" * len(scores)).text())
    table = np.array(list(found.values()))
    kind = np.array([other == "noise" for _, other in found])
    rows = [
        (title, "", *(f"{100 * a:.1f}" for a in values))
        for title, values in (
            ("mean of pairs", table[~kind].mean(axis=0)),
            ("worst pair", table[~kind].min(axis=0)),
            ("mean against noise", table[kind].mean(axis=0)),
            ("worst against noise", table[kind].min(axis=0)),
        )
    ]
    print(Table(header, rows, "ll" + "r" * len(scores)).text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--backbone", default="mobilenet_v2_0.35")
    parser.add_argument("--detail", action="store_true")
    options = parser.parse_args()
    halves = [n for n, d in DATASETS.items() if d.half == options.half and n != "mnist"]
    report(halves, options.backbone, options.detail)
