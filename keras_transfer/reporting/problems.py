"""A page of what a diagnosis found: each problem with its example, next to the example that it is about."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from keras_transfer.data.examples import ImageData, join_examples, relative_paths
from keras_transfer.diagnosis.result import TITLES, Diagnosis, Problem
from keras_transfer.reporting.gallery import Budget, jpeg
from keras_transfer.reporting.page import data_uri, render
from keras_transfer.utils.console import counted, printable
from keras_transfer.utils.files import write_text

_MOST = 600  # problems of a page
_SIDE = 176  # pixels of a thumbnail
_MOST_CHARACTERS = 600  # of a text
# Kind of problem → what its score is.
_SCORES = {
    "label": "doubt",
    "leakage": "likeness",
    "near-duplicate": "likeness",
    "outlier": "deviations",
}


def write_problems(found: Diagnosis, data: ImageData, out: str | Path) -> Path:
    """Write the problems of a diagnosis as a self-contained HTML page.

    Each has its example, its label as given, the suggestion and the score; a near-duplicate is next to its
    first partner. The page is filtered by problem, class and path.

    Args:
        found: of `diagnose`.
        data: which it examined.
        out: the HTML file. It has at most 600 problems, those of each kind in turn, and 3.2 MB of images and
            sounds; further ones are named only.

    Returns:
        The file, which is written atomically.
    """
    write_text(out, render_problems(found, data))
    return Path(out)


def render_problems(found: Diagnosis, data: ImageData) -> str:
    """Return the page as text, see `write_problems`."""
    examples = join_examples(data.examples.values())
    rows = {path: i for i, path in enumerate(relative_paths(examples.names, data.root))}
    chosen = list(_in_turn(found.problems))[:_MOST]
    shown = _shown(examples, chosen, rows)
    place = {id(problem): i for i, problem in enumerate(found.problems)}
    chosen.sort(key=lambda problem: place[id(problem)])
    data_name = found.title or found.root
    kinds = {kind: sum(p.problem == kind for p in found.problems) for kind in TITLES}
    classes = sorted({name for p in chosen for name in (p.label, p.suggested) if name})
    number = {name: str(i) for i, name in enumerate(classes)}  # a name may have any characters
    return render(
        "problems",
        script="filter.js",
        title=f"Problems in {printable(Path(data_name).name or data_name)}",
        introduction=_introduction(found),
        shares=list(_shares(found)),
        kinds=[(kind, TITLES[kind], count) for kind, count in kinds.items() if count],
        classes=classes,
        cases=[_case(problem, shown, number) for problem in chosen],
        rest=len(found.problems) - len(chosen),
        notes=found.notes,
    )


def _introduction(found):
    count = len(found.problems)
    return (
        f"{counted(count, 'problem')} in {found.examples} {found.many}, by features of "
        f"{found.backbone}. A problem is a reason to look, not a verdict."
    )


def _shares(found) -> Iterator[tuple[str, str, str]]:
    """Yield (title, value, interval) of each head's estimated share of wrong labels."""
    for name, errors in found.labels.items():
        if errors.judged:
            low, high = errors.wrong["low"], errors.wrong["high"]
            interval = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f} %"
            of = f"{printable(name)}: " if name else ""
            value = f"{100 * errors.wrong['value']:.1f} %"
            yield f"{of}share of wrong labels, at most about:", value, interval


def _in_turn(problems) -> Iterator[Problem]:
    """Yield the first problem of each kind, then the second of each, and so on."""
    of_kinds = [[p for p in problems if p.problem == kind] for kind in TITLES]
    for row in zip_longest(*of_kinds):
        yield from (problem for problem in row if problem is not None)


def _shown(examples, problems, rows):
    """Return path → what the page shows of an example, as far as the budget of the page goes."""
    modality, budget = examples.modality, Budget()
    drawn = modality.drawn(examples)
    shown: dict[str, dict] = {}
    for path in (path for p in problems for path in (p.path, *p.related[:1])):
        if path in shown or path not in rows or not budget.left:
            continue
        row = rows[path]
        image = media = None
        if drawn is not None:
            pixels = np.asarray(drawn(row))
            image = data_uri("image/jpeg", jpeg(pixels, _SIDE))
            played = examples.images.media(row)
            media = played and data_uri(*played)
        text = modality.excerpt(examples.images, row, _MOST_CHARACTERS)
        if budget.spend(len(image or "") + len(media or "") + len(text)):
            shown[path] = {"image": image, "media": media, "text": text}
    return shown


def _case(problem, shown, number):
    """Return what the template needs of a problem."""
    near = bool(problem.related)
    return {
        "problem": problem.problem,
        "classes": [number[name] for name in (problem.label, problem.suggested) if name],
        "label": problem.label,
        "suggested": problem.suggested,
        "split": problem.split,
        "score_of": _SCORES[problem.problem],
        "score": f"{problem.score:.2f}",
        "reason": problem.reason,
        "sides": [
            {"path": path, "name": path.rpartition("/")[2], **(shown.get(path) or _NOTHING)}
            for path in (problem.path, *problem.related[:1])
        ],
        "more": len(problem.related) - 1 if near else 0,
    }


_NOTHING: dict = {"image": None, "media": None, "text": ""}
