"""What a diagnosis found in a dataset, stored beside its features for whoever measures accuracy on it.

A result is found again by the contents and labels of all examples, whatever their names and splits are; so it
does not speak for a dataset of which a label or an example was changed.
"""

from collections.abc import Sequence

import numpy as np

from keras_transfer.data.duplicates import find_duplicates
from keras_transfer.data.examples import ImageData, label_texts
from keras_transfer.features.store import Store, digest_of, recall, remember
from keras_transfer.utils.console import printable, say, verb

_KIND = "diagnosis 1"
# Shares from which accuracy is worth less. The lower end of the estimated share of wrong labels is below the
# first on the unmodified tuning sets clothing and aerial, and above it with 5 % of flips, see `scripts/label_errors.py`.
_MANY_WRONG = 0.08
_MANY_LEAKED = 0.01


def remember_diagnosis(
    data: ImageData, backbone: str, wrong: dict[str, dict], near: Sequence[np.ndarray]
) -> None:
    """Store what `diagnosis.diagnose` found; an earlier result for the same examples is replaced.

    Args:
        backbone: for people.
        wrong: name of each head → interval of the estimated share of wrong labels.
        near: groups of near-duplicates, rows of all splits one after the other.
    """
    digests = _contents(data)
    value = {"wrong": wrong, "near": [[digests[row].hex() for row in rows] for rows in near]}
    about = {"backbone": f"{backbone}: diagnosis of {len(digests)} {data.modality.many}"}
    remember(Store(), _KIND, _identity(data, digests), about, value)


def caution(data: ImageData) -> str | None:
    """Return why an accuracy that is measured on these examples is worth less, in one line, or None.

    It is about wrong labels, and near-duplicates in two splits, that an earlier `check --deep` of the same
    examples found. Without one, nothing is known.
    """
    digests = _contents(data)
    found = recall(Store(), _KIND, _identity(data, digests))
    if found is None:
        return None
    reasons = []
    for name, share in found["wrong"].items():
        if share["low"] is not None and share["low"] >= _MANY_WRONG:
            of = f" of {printable(name)}" if name else ""
            reasons.append(
                f"at most about {100 * share['value']:.0f} % of the labels{of} are wrong"
            )
    for split, count, total in _leaked(data, digests, found["near"]):
        if count >= _MANY_LEAKED * total:
            reasons.append(
                f"{count} of {total} examples of {split} {verb(count, 'is a near-duplicate', 'are near-duplicates')} of training examples"
            )
    if not reasons:
        return None
    return (
        f"warning: measured accuracy is worth less: {'; '.join(reasons)} "
        f"(by `keras-transfer check {printable(data.title)} --deep`, which lists them)"
    )


def cautions(data: ImageData) -> list[str]:
    """Return why an accuracy that is measured on these examples is worth less: copies, and see `caution`."""
    return [line for line in (find_duplicates(data).warning, caution(data)) if line]


def say_cautions(data: ImageData) -> None:
    """Print `cautions`."""
    for warning in cautions(data):
        say(warning)


def _leaked(data, digests, groups):
    """Yield (split, its examples with a near-duplicate in train, all its examples)."""
    if "train" not in data.examples:
        return
    group = {digest: number for number, members in enumerate(groups) for digest in members}
    own = [group.get(digest.hex()) for digest in digests]
    start, of = 0, {}
    for split, part in data.examples.items():
        of[split] = own[start : start + len(part)]
        start += len(part)
    known = set(of.pop("train")) - {None}
    for split, numbers in of.items():
        yield split, sum(number in known for number in numbers), len(numbers)


def _contents(data):
    return [digest for part in data.examples.values() for digest in part.digests]


def _identity(data, digests):
    labels = [t for p in data.examples.values() for t in label_texts(p.labels, data.targets)]
    rows = sorted(
        f"{digest.hex()} {label}".encode("utf-8", "surrogateescape")
        for digest, label in zip(digests, labels)
    )
    return {"examples": digest_of(rows)}
