"""A table that sorts and that can be searched, with the mouse and with the keyboard, without a library."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from keras_transfer.reporting import page

_LONG = 20  # rows; a longer table scrolls by itself and can be searched

STYLE = """
.tall { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: .5rem }
.tall thead th { position: sticky; top: 0; z-index: 1; background: var(--page) }
.sorts td { font-variant-numeric: tabular-nums } .sorts tbody th { font-weight: 600 }
.sorts thead button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: .25rem 0; min-height: 2rem; cursor: pointer; white-space: nowrap }
.sorts thead button::after { content: "↕"; opacity: .55; margin-left: .3em }
.sorts th[aria-sort=ascending] button::after { content: "↑"; opacity: 1 }
.sorts th[aria-sort=descending] button::after { content: "↓"; opacity: 1 }
.search { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center; margin: .5rem 0 }
.search input { font: inherit; color: inherit; background: var(--box); border: 1px solid var(--soft);
  border-radius: .4rem; padding: .3rem .5rem }
:focus-visible { outline: 3px solid #3d8fd1; outline-offset: 2px }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const box = table.closest(".sorting"), status = box.querySelector("[role=status]");
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return "v" in cell.dataset ? (cell.dataset.v === "" ? null : +cell.dataset.v) : cell.textContent;
  };
  const order = new Intl.Collator(undefined, { numeric: true });
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
    const rows = [...body.rows].map(row => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
      : sign * (typeof a === "number" ? a - b : order.compare(a, b)));
    body.append(...rows.map(([, row]) => row));
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    status.textContent = `sorted by ${head.textContent}, ${up ? "ascending" : "descending"}`;
  }));
  const search = box.querySelector("input[type=search]");
  if (search) search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    let found = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      found += !row.hidden;
    }
    status.textContent = `${found} of ${body.rows.length} rows`;
  });
}
"""


@dataclass(frozen=True)
class Column:
    """A column of numbers or texts.

    Attributes:
        title: plain text.
        values: what rows are sorted by: numbers, None for none (those stand last); or texts.
        shown: plain text of each cell; by default the values.
    """

    title: str
    values: Sequence
    shown: Sequence[str] | None = None


def sortable(label: str, columns: Sequence[Column], by: int = 0) -> str:
    """A table whose columns sort when their titles are pressed, the first one of names.

    Args:
        label: what it is, for who does not see it.
        by: the column that it is sorted by at first, least first.
    """
    values = columns[by].values
    rows = sorted(range(len(values)), key=lambda i: (values[i] is None, values[i] or 0))
    if isinstance(values[0], str):
        rows = range(len(values))  # names as they come
    heads = "".join(
        f'<th scope="col" aria-sort="{"ascending" if i == by else "none"}">'
        f'<button type="button">{html.escape(column.title)}</button></th>'
        for i, column in enumerate(columns)
    )
    body = "\n".join(
        f"<tr>{''.join(_cell(column, i, first) for first, column in _marked(columns))}</tr>"
        for i in rows
    )
    made = (
        f'<table class="sorts"><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    )
    long = len(values) > _LONG
    search = '<label>Search <input type="search" autocomplete="off"></label>' if long else ""
    status = '<span class="soft" role="status"></span>'
    box = page.scrolling(made, label, "tall" if long else "wide")
    return f'<div class="sorting"><div class="search">{search}{status}</div>{box}</div>'


def _marked(columns):
    return ((i == 0, column) for i, column in enumerate(columns))


def _cell(column, row, first):
    value = column.values[row]
    shown = html.escape(str(value) if column.shown is None else column.shown[row])
    if first:
        return f'<th scope="row">{shown}</th>'
    if isinstance(value, str):
        return f"<td>{shown}</td>"
    return f'<td data-v="{"" if value is None else f"{value:.6g}"}">{shown}</td>'
