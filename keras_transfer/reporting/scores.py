"""How good a run is: measures with intervals, classes, confusion, reliability, abstention, mistakes."""

import numpy as np

from keras_transfer.evaluation.result import summary_table
from keras_transfer.reporting import page
from keras_transfer.reporting.confusion import confusion, taken_for
from keras_transfer.reporting.gallery import Shot, gallery, items_of
from keras_transfer.reporting.sorting import Column, sortable
from keras_transfer.utils.tables import printable

_BEFORE, _AFTER = page.COLOURS[0], page.COLOURS[1]
_PER_NAME = {"single_label": "per_class", "multi_label": "per_label", "regression": "per_target"}
_WHAT = {"single_label": "class", "multi_label": "label", "regression": "target"}


def scores(
    title: str, head: dict, number: int, shots: dict[str, dict[str, Shot]], room: int
) -> tuple[str, int]:
    """HTML of one head's evaluation.

    Args:
        title: what the head is called, empty for the only one.
        head: of an evaluation's document.
        number: of the head in the page, from 1.
        shots: `mistakes` and `unsure` → path → pixels.
        room: most characters for images.

    Returns:
        The sections, and how many characters are left for images.
    """
    of = f" · {title}" if title else ""
    task = head["task"]
    parts = [
        page.section(
            f"How good it is{of}",
            page.markdown_table(summary_table(head).markdown(), "measures"),
            page.paragraph(
                "Intervals are 95 % and say what other images of the same kind would give; those of "
                "few images are wide.",
                soft=True,
            ),
            name=f"measures-{number}",
        )
    ]
    if task != "regression":
        parts.append(page.section(f"Each {_WHAT[task]}{of}", _per_name(head)))
    if "confusion" in head:
        parts.append(page.section(f"What is taken for what{of}", *confusion(head)))
    if "calibration" in head:
        parts.append(page.section(f"How sure it may be{of}", *_sureness(head)))
    titles = {"mistakes": "Surest mistakes", "unsure": "Least sure"}
    if task == "regression":
        titles["mistakes"] = "Largest errors"
    for kind, words in titles.items():
        items = items_of(head, kind)
        if items:
            made, room = gallery(f"{kind}-{number}", items, shots.get(kind, {}), room)
            parts.append(page.section(f"{words}{of}", made, name=f"{kind}-{number}"))
    if head["slices"]:
        parts.append(page.section(f"Parts of the images{of}", *_slices(head["slices"])))
    return "\n".join(parts), room


def _per_name(head):
    rows = list(head[_PER_NAME[head["task"]]].values())
    names = [printable(n) for n in head["names"]]

    def column(title, key, digits=3):
        values = [row[key] for row in rows]
        return Column(title, values, [_number(v, digits) for v in values])

    # A class without images has no recall: it stands last, however it is sorted.
    there = [row["support"] > 0 for row in rows]
    recall = [row["recall"] if some else None for row, some in zip(rows, there)]
    shown = [
        f"{row['recall']:.3f} [{row['recall_low']:.2f}, {row['recall_high']:.2f}]" if some else "–"
        for row, some in zip(rows, there)
    ]
    f1 = [row["f1"] if some else None for row, some in zip(rows, there)]
    columns = [
        Column(_WHAT[head["task"]], names),
        Column("F1", f1, [_number(v) for v in f1]),
        Column("recall [95 %]", recall, shown),
        column("precision", "precision"),
        Column("images", [row["support"] for row in rows]),
        column("AUC", "auc"),
    ]
    if "confusion" in head:
        columns.append(Column("most often taken for", taken_for(head["confusion"], head["names"])))
    else:
        columns += [column("best threshold", "threshold"), column("F1 there", "f1_best")]
    return sortable(f"measures of each {_WHAT[head['task']]}", columns, by=1)


def _number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def _sureness(head):
    found = head["calibration"]
    ece, after = found["before"]["ece"], found["after"]
    text = f"Expected calibration error {100 * ece['value']:.1f} %"
    if after is not None:
        text += (
            f", after temperature {found['temperature']:.2f} (one number by which all logits are "
            f"divided) {100 * after['ece']['value']:.1f} %"
        )
    text += (
        f". By chance alone a model that is as sure as it is right stays below "
        f"{100 * (after or found['before'])['ece']['by_chance']:.1f} % on so many images."
    )
    figures = [page.figure(_reliability(head), "Reliability", width=5, height=4)]
    parts = [page.paragraph(text)]
    if "abstention" in head:
        figures.append(page.figure(_risk(head["abstention"]), "Risk", width=5, height=4))
    parts.append(page.grid(*figures, large=True))
    rows = [
        (
            f"{100 * t['wanted']:g} %",
            _number(t["threshold"]),
            _share(t["coverage"]),
            _share(t["precision"]),
            "these images (flatters)" if t["chosen_here"] else "validation images",
        )
        for t in head.get("abstention", {}).get("thresholds", ())
    ]
    if rows:
        header = ("wanted right", "answer from confidence", "answered", "right", "chosen on")
        parts += ["<h3>When to answer</h3>", page.table(header, rows, "thresholds")]
    return parts


def _share(found):
    if found["value"] is None:
        return "–"
    ends = f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{100 * found['value']:.1f} %" + (ends if found["low"] is not None else "")


def _reliability(head):
    found, several = head["calibration"], head["task"] == "multi_label"

    def draw(axes):
        axes.plot([0, 1], [0, 1], ":", color="#8a8a8a", label="as sure as right")
        for when, colour, marker in (("before", _BEFORE, "o"), ("after", _AFTER, "s")):
            if found[when] is None:
                continue
            bins = found[when]["bins"]
            y = np.array([b["right"]["value"] for b in bins])
            ends = np.array([[b["right"]["low"], b["right"]["high"]] for b in bins]).T
            label = f"{when} temperature" if found["after"] is not None else "the model"
            axes.errorbar(
                [b["confidence"] for b in bins],
                y,
                np.maximum(np.abs(ends - y), 0),
                fmt=f"{marker}-",
                color=colour,
                capsize=2,
                ms=4,
                lw=1.3,
                label=label,
            )
        axes.set(
            xlabel="probability" if several else "confidence",
            ylabel="label there (share)" if several else "right (share)",
            xlim=(0, 1),
            ylim=(-0.02, 1.02),
        )
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize=9)

    return draw


def _risk(found):
    def draw(axes):
        axes.plot(found["coverage"], found["risk"], color=page.COLOURS[2], lw=2)
        for row in found["thresholds"]:
            if row["threshold"] is None or row["precision"]["value"] is None:
                continue
            x, y = row["coverage"]["value"], 1 - row["precision"]["value"]
            axes.plot(x, y, "o", color=page.COLOURS[0])
            note = f"≥ {row['threshold']:.2f}"
            axes.annotate(note, (x, y), (-6, 6), textcoords="offset points", fontsize=8, ha="right")
        axes.set(
            xlabel="answered, the surest first (share)",
            ylabel="wrong (share of the answers)",
            xlim=(0, 1.02),
            ylim=(0, None),
        )
        axes.grid(alpha=0.25)

    return draw


def _slices(slices):
    for by, rows in slices.items():
        kinds = [key for key in rows[0] if key not in ("value", "images")]
        cells = [
            (
                printable(str(row["value"])),
                row["images"],
                *(
                    _share(row[k]) if isinstance(row[k], dict) else _number(row[k], 4)
                    for k in kinds
                ),
            )
            for row in rows
        ]
        yield f"<h3>{by}</h3>" if by in ("folder", "size") else ""
        yield page.table((by, "images", *kinds), cells, f"by {by}")
