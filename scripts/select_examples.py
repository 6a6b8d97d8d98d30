"""Accuracy against labels added: examples chosen by `select`, at random, and by either half of its rule.

    python scripts/select_examples.py                       the reporting sets
    python scripts/select_examples.py --half tuning         the sets on which the rule was chosen
    python scripts/select_examples.py --only flowers --seeds 5
    python scripts/select_examples.py --copies 5            each example occurs five times in the pool

Training starts with random examples, as many as there are classes. In each round, as many are added from the rest
of the training split: by k-means++ on gradients of the head (`select`), at random, those with the least margin
between the two highest probabilities, or by k-means++ on features. The head is fitted in closed form to frozen
features of the default backbones. Prints the accuracy on the validation split, the mean over seeds. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import warnings

import numpy as np
from accuracy_data import DATASETS
from label_errors import opened
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from keras_transfer.diagnosis.selection import predicted_labels, spread
from keras_transfer.utils.console import Table

ROUNDS = 6
STRENGTH = 1e-2  # fixed, as a few labels cannot choose it


def by_gradients(probabilities, features, count, rng):
    residuals = probabilities - predicted_labels(probabilities, "single_label")
    return spread([(residuals, features)], count, int(rng.integers(1 << 31)))


def at_random(probabilities, features, count, rng):
    return rng.permutation(len(features))[:count]


def by_margin(probabilities, features, count, rng):
    first, second = np.sort(probabilities, axis=1)[:, [-1, -2]].T
    return np.argsort(first - second, kind="stable")[:count]


def by_features(probabilities, features, count, rng):
    return spread([(np.ones((len(features), 1)), features)], count, int(rng.integers(1 << 31)))


WAYS = {"select": by_gradients, "random": at_random, "margin": by_margin, "features": by_features}


def curve(way, x, y, x_val, y_val, count: int, seed: int) -> list[float]:
    """Return the accuracy after each round, the first with random examples."""
    rng = np.random.default_rng(seed)
    known, accuracies = rng.permutation(len(x))[:count], []
    for _ in range(ROUNDS):
        head = LogisticRegression(C=STRENGTH, max_iter=200).fit(x[known], y[known])
        accuracies.append((head.predict(x_val) == y_val).mean())
        rest = np.setdiff1d(np.arange(len(x)), known)
        added = way(head.predict_proba(x[rest]), x[rest], min(count, len(rest)), rng)
        known = np.concatenate([known, rest[added]])
    return accuracies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1, help="of each example in the pool")
    options = parser.parse_args()
    names = options.only or [
        n
        for n, d in DATASETS.items()
        if d.half == options.half and n not in ("mnist", "sign_digits")
    ]
    warnings.filterwarnings("ignore", message=".*(converge|lbfgs).*")
    rows, ends = [], []
    for name in names:
        seen, target = opened(name)
        x = StandardScaler().fit_transform(seen.features)
        train, val = (np.flatnonzero(seen.splits == split) for split in ("train", "val"))
        train = np.tile(train, options.copies)
        y, count = seen.examples.labels, max(5, len(target.names))
        parts = x[train], y[train], x[val], y[val], count
        means = {
            title: np.mean([curve(way, *parts, seed) for seed in range(options.seeds)], axis=0)
            for title, way in WAYS.items()
        }
        for title, values in means.items():
            rows.append((name, title, *(f"{100 * value:.1f}" for value in values)))
            print(*rows[-1], sep="  ", flush=True)
        ends.append([values.mean() for values in means.values()])
    rounds = [f"{i} × classes" for i in range(1, ROUNDS + 1)]
    print(Table(("set", "added by", *rounds), rows, "ll" + "r" * ROUNDS).text())
    mean = ", ".join(f"{n} {100 * v:.1f}" for n, v in zip(WAYS, np.mean(ends, axis=0)))
    print(f"mean over the rounds and sets: {mean}; {options.seeds} seeds")


if __name__ == "__main__":
    main()
