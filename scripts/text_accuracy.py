"""Accuracy on bank questions and text messages, each with the recipe that is named.

    python scripts/text_accuracy.py ENCODER closed       banking77, the head in closed form
    python scripts/text_accuracy.py ENCODER few          the same with 10 questions of each class, three draws
    python scripts/text_accuracy.py ENCODER tuned        the same, fine-tuned (lp_ft)
    python scripts/text_accuracy.py ENCODER auto         banking77, what `auto` chooses in 8 minutes
    python scripts/text_accuracy.py ENCODER spam         text messages, the head in closed form, 5 folds

ENCODER is the name or the folder of an encoder, `--taps` what the head reads. It prints the accuracy on
banking77's own test split (spam: over all folds), and the CPU and wall seconds of the whole process. Needs KERAS_TRANSFER_DATA; texts and constants were
not chosen on these test splits.
"""

import argparse
import csv
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_transfer.advisor.auto import train_best
from keras_transfer.data import from_arrays
from keras_transfer.evaluation import evaluate
from keras_transfer.models import TAPS
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.training.config import TrainConfig
from keras_transfer.training.trainer import Trainer

EACH, DRAWS, MINUTES = 10, 3, 8


def rows(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (texts, labels, splits)."""
    file = Path(os.environ["KERAS_TRANSFER_DATA"]) / "text" / f"{name}.csv"
    with file.open(encoding="utf-8", newline="") as opened:
        found = [(row["text"], row["label"], row["split"]) for row in csv.DictReader(opened)]
    return tuple(np.array(column, object) for column in zip(*found))


def closed_form(encoder: str, taps: str, train: tuple, test: tuple) -> float:
    """Return the accuracy of the closed form, which is fitted without a look at other examples."""
    data = from_arrays(train, val=test)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(encoder, head_for(data), taps=taps, data=data)
        run = Trainer(model, "feature_extraction").fit(data, Path(folder) / "run")
        return run.metrics["val"]["accuracy"]


def fine_tuned(encoder: str, taps: str, train: tuple, test: tuple) -> float:
    """Return the accuracy of `lp_ft`, with a tenth of the training examples for validation."""
    data = from_arrays(train, test=test, val_split=0.1)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(encoder, head_for(data), taps=taps, data=data)
        run = Trainer(model, "lp_ft").fit(data, Path(folder) / "run")
        return evaluate(run.model, data, "test")["accuracy"]


def chosen(encoder: str, taps: str, train: tuple, test: tuple) -> float:
    """Return the accuracy of `auto`, with a tenth of the training examples for validation."""
    data = from_arrays(train, test=test, val_split=0.1)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(minutes=MINUTES)
        run = train_best(data, Path(folder) / "run", config, backbones=[encoder])
        return evaluate(run.model, data, "test")["accuracy"]


def banking(
    encoder: str, taps: str, train_and_test, each: int | None = None, seed: int = 0
) -> float:
    texts, labels, splits = rows("banking77")
    train, test = np.flatnonzero(splits == "train"), np.flatnonzero(splits == "test")
    if each:
        rng = np.random.default_rng(seed)
        places = [train[labels[train] == name] for name in np.unique(labels)]
        train = np.concatenate([rng.permutation(some)[:each] for some in places])
    return train_and_test(encoder, taps, (texts[train], labels[train]), (texts[test], labels[test]))


def spam(encoder: str, taps: str) -> float:
    texts, labels, _ = rows("sms_spam")
    right = 0.0
    fold = np.random.default_rng(0).permutation(len(texts)) % 5
    for number in range(5):
        train, test = fold != number, fold == number
        parts = ((texts[rows], labels[rows]) for rows in (train, test))
        right += closed_form(encoder, taps, *parts) * test.sum()
    return right / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("encoder")
    parser.add_argument("what", choices=("closed", "few", "tuned", "auto", "spam"))
    parser.add_argument("--taps", choices=TAPS, default="last")
    options = parser.parse_args()
    given = options.encoder, options.taps
    started = time.perf_counter()
    if options.what == "few":
        draws = [banking(*given, closed_form, EACH, seed) for seed in range(DRAWS)]
        found = float(np.mean(draws))
    elif options.what == "spam":
        found = spam(*given)
    else:
        train_and_test = {"closed": closed_form, "tuned": fine_tuned, "auto": chosen}[options.what]
        found = banking(*given, train_and_test)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{options.what}, taps {options.taps}: {100 * found:.2f} %, {used.ru_utime + used.ru_stime:.0f} CPU "
        f"seconds, {time.perf_counter() - started:.0f} seconds after the imports"
    )


if __name__ == "__main__":
    main()
