"""What is taken for what, readable at ten classes and at a thousand."""

import html
import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from keras_transfer.evaluation.plots import row_shares, similarity_order
from keras_transfer.reporting import page
from keras_transfer.utils.tables import printable

_WHOLE = 20  # classes of which a table with all counts is readable
_PART = 16  # of more: how many of the most confused ones such a table has
_CELLS = 400  # most points along a side of the image
RIGHT, WRONG = (27, 158, 119), (217, 95, 2)

STYLE = f"""
.matrix td {{ text-align: center; min-width: 2.2rem; border: 1px solid var(--line);
  background: rgb({" ".join(map(str, WRONG))} / var(--s, 0)) }}
.matrix td.right {{ background: rgb({" ".join(map(str, RIGHT))} / var(--s, 0)) }}
.matrix thead th {{ writing-mode: vertical-rl; transform: rotate(180deg); text-align: left;
  padding: .6rem .2rem; max-height: 12rem }}
.matrix thead td {{ border: 0; background: none }}
.matrix caption {{ text-align: left; padding: .25rem 0; white-space: nowrap; color: var(--soft) }}
.matrix tbody th {{ position: sticky; left: 0; background: var(--page); text-align: right }}
.map {{ position: relative; max-width: 44rem; border: 1px solid var(--line) }}
.map img {{ display: block; width: 100%; image-rendering: pixelated; touch-action: pan-y; cursor: crosshair }}
.readout {{ min-height: 3em }}
"""

SCRIPT = """
for (const map of document.querySelectorAll(".map")) {
  const found = JSON.parse(map.querySelector("script").textContent), image = map.querySelector("img");
  const readout = map.nextElementSibling, hint = readout.textContent;
  const tell = event => {
    const box = image.getBoundingClientRect(), side = Math.ceil(found.names.length / found.block);
    const at = (where, start, length) =>
      Math.min(side - 1, Math.max(0, Math.floor((where - start) / length * side)));
    const row = at(event.clientY, box.top, box.height), column = at(event.clientX, box.left, box.width);
    let most = null;
    for (let i = 0; i < found.cells.length; i += 3) {
      const [r, c, n] = found.cells.slice(i, i + 3);
      const here = Math.floor(r / found.block) === row && Math.floor(c / found.block) === column;
      if (here && (!most || (r !== c) > (most[0] !== most[1])
          || ((r !== c) === (most[0] !== most[1]) && n > most[2]))) most = [r, c, n];
    }
    if (!most) { readout.textContent = hint; return; }
    const [r, c, n] = most;
    const what = r === c ? `${found.names[r]}: right` : `${found.names[r]} taken for ${found.names[c]}`;
    readout.textContent = `${what}: ${n} of ${found.support[r]} images`;
  };
  image.addEventListener("pointermove", tell);
  image.addEventListener("pointerdown", tell);
}
"""


def confusion(head: dict) -> list[str]:
    """HTML: the matrix (of many classes as an image, and a table of the most confused ones), and the
    pairs that are most often taken for each other.

    Args:
        head: of an evaluation's document, of one class per image.
    """
    counts, names = np.array(head["confusion"]), [printable(n) for n in head["names"]]
    order = similarity_order(counts)
    parts = []
    if len(names) <= _WHOLE:
        parts.append(_table(counts, names, order, "all classes"))
    else:
        parts += _map(counts, names, order)
        chosen = set(_most_confused(counts))
        if chosen:
            part = [i for i in order if i in chosen]
            title = f"The {len(part)} classes that are confused most"
            parts.append(f"<h3>{title}</h3>{_table(counts, names, part, title)}")
    rows = [
        (printable(p["label"]), printable(p["predicted"]), p["count"], f"{100 * p['share']:.0f} %")
        for p in head["confused"]
    ]
    if rows and len(names) > 2:
        header = ("class", "taken for", "images", "share of the class")
        shown = page.table(header, rows, "most confused pairs")
        parts.append(
            f"<details><summary>The {len(rows)} most confused pairs</summary>{shown}</details>"
        )
    return parts


def taken_for(counts: np.ndarray, names: Sequence[str], most: int = 3) -> list[str]:
    """Of each class in words, what it is most often taken for: `bees ×3, wasps ×1`."""
    texts = []
    for i, row in enumerate(np.array(counts)):
        row[i] = 0
        best = [c for c in np.argsort(-row, kind="stable")[:most] if row[c]]
        texts.append(", ".join(f"{printable(names[c])} ×{row[c]}" for c in best))
    return texts


def _most_confused(counts):
    """The classes of the most frequent mistakes, as many as a table can show."""
    wrong = counts + counts.T
    np.fill_diagonal(wrong, 0)
    chosen = []
    for at in np.argsort(-wrong, axis=None, kind="stable")[: 4 * _PART**2]:
        r, c = np.unravel_index(at, wrong.shape)
        new = {int(r), int(c)} - set(chosen)
        if not wrong[r, c] or len(chosen) + len(new) > _PART:
            break
        chosen += sorted(new)
    return chosen


def _table(counts, names, order, label):
    shares = row_shares(counts)
    heads = "".join(f'<th scope="col">{html.escape(names[c])}</th>' for c in order)
    rows = []
    for r in order:
        cells = "".join(_cell(counts[r, c], shares[r, c], r == c) for c in order)
        rows.append(f'<tr><th scope="row">{html.escape(names[r])}</th>{cells}</tr>')
    body = "\n".join(rows)
    made = (
        '<table class="matrix"><caption>Rows: true. Columns: predicted.</caption>'
        f"<thead><tr><td></td>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return page.scrolling(made, f"confusion matrix, {label}")


def _cell(count, share, right):
    if not count:
        return '<td class="right">0</td>' if right else "<td></td>"
    # Few mistakes in a hundred must still be seen: colours follow the square root.
    kind = ' class="right"' if right else ""
    return f'<td{kind} style="--s:{0.75 * share**0.5:.2f}">{count}</td>'


def _map(counts, names, order):
    """The whole matrix as an image; what is under the pointer is said in words."""
    counts = counts[np.ix_(order, order)]
    block = -(-len(names) // _CELLS)
    shares = np.sqrt(_highest(row_shares(counts), block))
    off = counts.copy()
    np.fill_diagonal(off, 0)
    wrong = _highest(off, block) > 0
    pixels = np.empty((*shares.shape, 4), "uint8")
    pixels[..., :3] = np.where(wrong[..., None], WRONG, RIGHT)
    if block > 1:  # a point may be of both kinds
        shares = np.where(wrong, np.sqrt(_highest(row_shares(off), block)), shares)
    pixels[..., 3] = np.round(255 * np.where(shares > 0, 0.25 + 0.75 * shares, 0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    rows, columns = np.nonzero(counts)
    data = {
        "names": [names[i] for i in order],
        "support": counts.sum(axis=1).tolist(),
        "cells": np.stack([rows, columns, counts[rows, columns]], axis=1).ravel().tolist(),
        "block": block,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    alt = (
        f"Confusion matrix of {len(names)} classes, rows are true, columns predicted, similar ones side "
        "by side. The tables below have the same in words."
    )
    image = f'<img src="{page.data_uri("image/png", buffer.getvalue())}" alt="{alt}">'
    return [
        page.paragraph(
            "Rows are true classes, columns predicted ones; those that are taken for each other stand "
            "side by side. Green is right, orange is wrong."
        ),
        f'<div class="map">{image}<script type="application/json">{text}</script></div>'
        '<p class="readout soft" aria-live="polite">Point at a place to read what it is.</p>',
    ]


def _highest(values, block):
    """The highest value of each block × block square."""
    if block == 1:
        return values
    side = -(-len(values) // block) * block
    padded = np.zeros((side, side), values.dtype)
    padded[: len(values), : len(values)] = values
    return padded.reshape(side // block, block, -1, block).max(axis=(1, 3))
