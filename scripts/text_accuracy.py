"""Accuracy on bank questions and text messages, each with the recipe that is named.

    python scripts/text_accuracy.py ENCODER closed       banking77, the head in closed form
    python scripts/text_accuracy.py ENCODER few          the same with 10 questions of each class, three draws
    python scripts/text_accuracy.py ENCODER tuned        the same, fine-tuned (lp_ft)
    python scripts/text_accuracy.py ENCODER spam         text messages, the head in closed form, 5 folds

ENCODER is the name or the folder of an encoder. It prints the accuracy on banking77's own test split (spam:
over all folds) and the CPU seconds of the whole process. Needs KERAS_TRANSFER_DATA; texts and constants were
not chosen on these test splits.
"""

import argparse
import csv
import os
import resource
import tempfile
from pathlib import Path

import numpy as np

from keras_transfer.data import from_arrays
from keras_transfer.evaluation import evaluate
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.training.trainer import Trainer

EACH, DRAWS = 10, 3


def rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (texts, labels, splits)."""
    file = Path(os.environ["KERAS_TRANSFER_DATA"]) / "text" / f"{name}.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        found = [(row["text"], row["label"], row["split"]) for row in csv.DictReader(opened)]
    return tuple(np.array(column, object) for column in zip(*found))


def closed_form(encoder: str, train: tuple, test: tuple) -> float:
    """Return the accuracy of the closed form, which is fitted without a look at other examples."""
    data = from_arrays(train, val=test)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(encoder, head_for(data))
        run = Trainer(model, "feature_extraction").fit(data, Path(folder) / "run")
        return run.metrics["val"]["accuracy"]


def fine_tuned(encoder: str, train: tuple, test: tuple) -> float:
    """Return the accuracy of `lp_ft`, with a tenth of the training examples for validation."""
    data = from_arrays(train, test=test, val_split=0.1)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(encoder, head_for(data))
        run = Trainer(model, "lp_ft").fit(data, Path(folder) / "run")
        return evaluate(run, data, "test").metrics["accuracy"]


def banking(encoder: str, train_and_test, each: int | None = None, seed: int = 0) -> float:
    texts, labels, splits = rows("banking77")
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    if each:
        rng = np.random.default_rng(seed)
        places = [train[labels[train] == name] for name in np.unique(labels)]
        train = np.concatenate([rng.permutation(some)[:each] for some in places])
    return train_and_test(encoder, (texts[train], labels[train]), (texts[test], labels[test]))


def spam(encoder: str) -> float:
    texts, labels, _ = rows("sms_spam")
    right = 0.0
    fold = np.random.default_rng(0).permutation(len(texts)) % 5
    for number in range(5):
        train, test = fold != number, fold == number
        parts = ((texts[rows], labels[rows]) for rows in (train, test))
        right += closed_form(encoder, *parts) * test.sum()
    return right / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("encoder")
    parser.add_argument("what", choices=("closed", "few", "tuned", "spam"))
    options = parser.parse_args()
    if options.what == "few":
        draws = [banking(options.encoder, closed_form, EACH, seed) for seed in range(DRAWS)]
        found = float(np.mean(draws))
    elif options.what == "spam":
        found = spam(options.encoder)
    else:
        train_and_test = {"closed": closed_form, "tuned": fine_tuned}[options.what]
        found = banking(options.encoder, train_and_test)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{options.what}: {100 * found:.2f} %, {used.ru_utime + used.ru_stime:.0f} CPU seconds")


if __name__ == "__main__":
    main()
