"""How well wrong labels are found: labels are flipped, and the ranking is compared with the flips.

    python scripts/label_errors.py                      the reporting half, and real errors in sign digits
    python scripts/label_errors.py --half tuning        the sets on which constants may be chosen
    python scripts/label_errors.py --cleaned            accuracy on clean test splits, before and after cleaning
    python scripts/label_errors.py --only banking77 --encoder NAME

A share of the labels is flipped, at random or to the class that is confused most often. The table shows the
precision at the true number of flips, the average precision, and the estimated share of wrong labels, next to
the figures of cleanlab on the same probabilities, if it is installed (AGPL: it is used here only). Errors that
the datasets contain already count as if the labels were correct. banking77 is its test split. With --cleaned,
10 % of the training labels are flipped at random; the head is fitted in closed form to the clean labels, the
noisy ones, those without the suspects, and those with the suggestions. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy_data import DATASETS
from scipy.special import softmax
from sklearn.metrics import average_precision_score

from keras_transfer.data import open_data
from keras_transfer.diagnosis.label_errors import doubts, find_label_errors
from keras_transfer.diagnosis.seen import default_backbone, see
from keras_transfer.features.closed_form import solve
from keras_transfer.features.held_out import held_out_outputs
from keras_transfer.utils.console import Table

SPOKEN, SPEAKER = "spoken_digits", r"/([a-z]+)_\d+\.wav"
TEXTS = "banking77"
SHARES = (0.02, 0.05, 0.1, 0.2)
KNOWN = ("2/IMG_5176", "3/IMG_4341", "3/IMG_5108")  # labels in sign digits that are wrong


def opened(name: str, encoder: str | None = None):
    """Return (all examples and their features, target)."""
    root = Path(os.environ["KERAS_TRANSFER_DATA"])
    if name == TEXTS:
        data = open_data(root / "text" / f"{TEXTS}.csv", progress=False)
        data = replace(data, examples={"test": data.examples["test"]})
        return see(data, encoder, None, "auto"), data.targets
    places = [root / name, root / "bench" / name, root / "audio" / name]
    data = open_data(
        next(place for place in places if place.exists()),
        groups=SPEAKER if name == SPOKEN else None,
        progress=False,
    )
    seen = see(data, default_backbone(), None, "auto")
    return seen, data.targets


def flipped(labels: np.ndarray, outputs: np.ndarray, share: float, kind: str, seed: int):
    """Return (labels of which a share is wrong, which ones): to another class, or the confused one."""
    random = np.random.default_rng(seed)
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    noisy, count = labels.copy(), outputs.shape[1]
    if kind == "random":
        noisy[rows] = (labels[rows] + random.integers(1, count, len(rows))) % count
    else:
        means = np.stack([softmax(outputs[labels == i], axis=1).mean(0) for i in range(count)])
        np.fill_diagonal(means, -1)
        noisy[rows] = means.argmax(axis=1)[labels[rows]]
    return noisy, noisy != labels


def ranking(scores: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Return (precision at the true number, average precision) of suspicion scores."""
    first = np.argsort(-scores, kind="stable")[: wrong.sum()]
    return wrong[first].mean(), average_precision_score(wrong, scores)


def cleanlabs(probabilities, labels):
    """Return cleanlab's (suspicion scores, estimated share); None if it is not installed."""
    try:
        from cleanlab.count import estimate_joint
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return None
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    joint = estimate_joint(labels, probabilities)
    return -quality, 1 - np.trace(joint)


def report(names: list[str], seeds: int, encoder: str | None) -> None:
    header = ["set", "flips", "true", "P@true", "AP", "estimated (95 %)", "cleanlab: P@true", "AP"]
    rows, sums = [], {}
    for name in names:
        sums[name] = []
        seen, target = opened(name, encoder)
        labels, groups = seen.examples.labels, seen.examples.together
        clean = held_out_outputs("single_label", seen.features, labels, groups)
        for kind in ("random", "confused"):
            for share in SHARES:
                for seed in range(seeds):
                    noisy, wrong = flipped(labels, clean, share, kind, seed)
                    outputs = held_out_outputs("single_label", seen.features, noisy, groups)
                    probabilities = softmax(outputs, axis=1)
                    scores = doubts(probabilities, noisy)
                    own = ranking(scores, wrong)
                    found = find_label_errors(target, outputs, noisy)
                    other = cleanlabs(probabilities, noisy)
                    theirs = (*ranking(other[0], wrong), other[1]) if other else (np.nan,) * 3
                    sums[name].append(
                        (*own, found.wrong["value"] - share, *theirs[:2], theirs[2] - share)
                    )
                    if seed == 0:
                        w = found.wrong
                        rows.append(
                            (
                                *(name, kind, f"{100 * share:.0f} %"),
                                *(f"{100 * x:.1f}" for x in own),
                                f"{100 * w['value']:.1f} ({100 * w['low']:.1f}–{100 * w['high']:.1f})",
                                *(f"{100 * x:.1f}" for x in theirs),
                            )
                        )
                        print(*rows[-1], sep="  ", flush=True)
    print(Table((*header, "estimated"), rows, "lllrrrrrr").text())
    for name, found in (*sums.items(), ("all", [one for part in sums.values() for one in part])):
        mean = 100 * np.mean(found, axis=0)
        off = 100 * np.abs(np.array(found)[:, [2, 5]]).mean(axis=0)
        print(
            f"{name}, mean of {len(found)}: P@true {mean[0]:.1f} (cleanlab {mean[3]:.1f}), AP {mean[1]:.1f} "
            f"({mean[4]:.1f}), estimated share off by {off[0]:.1f} points ({off[1]:.1f})"
        )


def cleaned(names: list[str], seeds: int, share: float = 0.1) -> None:
    """Print the accuracy on the clean validation split after training on labels of four kinds."""
    rows, means = [], []
    for name in names:
        seen, target = opened(name)
        train, val = (np.flatnonzero(seen.splits == split) for split in ("train", "val"))
        x, groups = seen.features, seen.examples.together
        labels = seen.examples.labels

        def accuracy(rows, given, x=x, val=val, groups=groups, labels=labels):
            head = solve("single_label", x[rows], given, groups[rows])
            return ((x[val] @ head.kernel + head.bias).argmax(axis=1) == labels[val]).mean()

        for seed in range(seeds):
            clean = labels[train]
            outputs = held_out_outputs("single_label", x[train], clean, groups[train])
            noisy, _ = flipped(clean, outputs, share, "random", seed)
            outputs = held_out_outputs("single_label", x[train], noisy, groups[train])
            found = find_label_errors(target, outputs, noisy)
            kept = np.setdiff1d(np.arange(len(train)), found.rows)
            relabeled = noisy.copy()
            relabeled[found.rows] = found.suggested
            values = (
                accuracy(train, clean),
                accuracy(train, noisy),
                accuracy(train[kept], noisy[kept]),
                accuracy(train, relabeled),
            )
            rows.append((name, seed, *(f"{100 * value:.1f}" for value in values)))
            print(*rows[-1], sep="  ", flush=True)
            means.append(values)
    header = ("set", "seed", "clean labels", "10 % flipped", "suspects dropped", "relabeled")
    print(Table(header, rows, "lrrrrr").text())
    clean, noisy, dropped, relabeled = np.mean(means, axis=0)
    lost = max(clean - noisy, 1e-9)
    print(
        f"mean: clean {100 * clean:.1f}, flipped {100 * noisy:.1f}, dropped {100 * dropped:.1f}, relabeled "
        f"{100 * relabeled:.1f}: {100 * (dropped - noisy) / lost:.0f} % and {100 * (relabeled - noisy) / lost:.0f} % "
        "of the loss is recovered"
    )


def real_errors() -> None:
    seen, _ = opened("sign_digits")
    before = resource.getrusage(resource.RUSAGE_SELF)
    labels = seen.examples.labels
    outputs = held_out_outputs("single_label", seen.features, labels, seen.examples.together)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    order = np.argsort(-doubts(softmax(outputs, axis=1), labels), kind="stable")
    names = [Path(seen.examples.names[i]).with_suffix("").parts[-2:] for i in order]
    places = {known: names.index(tuple(known.split("/"))) + 1 for known in KNOWN}
    print(f"sign digits, unmodified: places of the known errors of {len(order)}: {places}")
    print(f"held-out outputs took {seconds:.1f} CPU s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=("tuning", "reporting"), default="reporting")
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", help=f"name or folder of an encoder of texts, for {TEXTS}")
    parser.add_argument("--cleaned", action="store_true")
    parser.add_argument("--real", action="store_true", help="only the known errors in sign digits")
    options = parser.parse_args()
    halves = [n for n, d in DATASETS.items() if d.half == options.half and n != "mnist"]
    if options.real:
        real_errors()
    elif options.cleaned:
        cleaned(options.only or halves, options.seeds)
    else:
        if options.half == "reporting" and not options.only:
            halves += [SPOKEN, *([TEXTS] if options.encoder else [])]
            real_errors()
        report(options.only or halves, options.seeds, options.encoder)
