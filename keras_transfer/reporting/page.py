"""A page of HTML that needs nothing but itself: no network, light and dark, readable on a phone.

Figures are matplotlib's, as SVG in the page, whose lines and letters take the colour of the text.
The page itself forbids browsers to fetch anything, and to run any script but its own.
"""

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable, Iterable
from typing import Any

# They can be told apart on white and on black, and by most of the colour-blind (ColorBrewer, Dark2
# and Okabe-Ito, of middle lightness).
COLOURS = (
    *("#d95f02", "#1b9e77", "#7d78c4", "#e7298a", "#66a61e"),
    *("#e6ab02", "#a6761d", "#3d8fd1", "#d7301f", "#17a2b8"),
)
_TEXT = "#0a0b0c"  # stands for the colour of the text; no other thing has it
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "keras_transfer",  # the same figure gives the same text
}
_CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #5b6470; --line: #d5d9df; --box: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e8eb; --soft: #9aa4b0; --line: #363c44; --box: #1e2329 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1rem 0 .25rem } p { max-width: 48rem } .soft { color: var(--soft) }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
.large { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)) }
.numbers { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)) }
.numbers div { background: var(--box); border-radius: .5rem; padding: .6rem .8rem }
.numbers b { display: block; font-size: 1.3rem } figure { margin: 0 }
svg { display: block; width: 100%; height: auto } svg text { font-family: system-ui, sans-serif !important }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
pre { background: var(--box); padding: .8rem; border-radius: .5rem; overflow-x: auto; white-space: pre-wrap }
"""


def page(title: str, *parts: str, style: str = "", script: str = "") -> str:
    """The whole document.

    Args:
        title: plain text.
        parts: HTML, one after the other.
        style: more CSS.
        script: JavaScript that runs once all is there.
    """
    shown = html.escape(title)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {allowed}"
    body = _with_own_ids("\n".join(part for part in parts if part))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{shown}</title>\n<style>{_CSS}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{shown}</h1>\n{body}\n</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def _with_own_ids(body):
    """Figures that were drawn one by one name their parts alike: each gets names of its own."""
    number = 0

    def renamed(figure):
        nonlocal number
        number += 1
        text = figure[0]
        used = set(re.findall(r"""(?:url\(|href=")#([^)"]+)""", text))
        text = re.sub(
            r' id="([^"]*)"', lambda m: f' id="f{number}-{m[1]}"' if m[1] in used else "", text
        )
        return re.sub(r"""(url\(|href=")#""", rf"\g<1>#f{number}-", text)

    return re.sub(r"<svg\b.*?</svg>", renamed, body, flags=re.DOTALL)


def section(title: str, *parts: str, name: str | None = None) -> str:
    """A heading and what stands under it (HTML); `name`: what links lead to."""
    at = f' id="{html.escape(name)}"' if name else ""
    shown = "\n".join(part for part in parts if part)
    return f"<section{at}>\n<h2>{html.escape(title)}</h2>\n{shown}\n</section>"


def data_uri(kind: str, data: bytes) -> str:
    """An image's bytes as an address; `kind` e.g. `image/png`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def paragraph(text: str, soft: bool = False) -> str:
    """Plain text; `soft`: less important."""
    kind = ' class="soft"' if soft else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def numbers(found: dict[str, str]) -> str:
    """Name → value, side by side."""
    cells = (f"<div>{html.escape(k)}<b>{html.escape(v)}</b></div>" for k, v in found.items())
    return f'<div class="grid numbers">{"".join(cells)}</div>'


def table(header: Iterable, rows: Iterable[Iterable], label: str = "table") -> str:
    """Cells are plain text; where it is too wide for the page, it scrolls.

    Args:
        label: what it is, for who does not see it.
    """

    def row(cells, tag, more=""):
        shown = (f"<{tag}{more}>{html.escape(str(c))}</{tag}>" for c in cells)
        return f"<tr>{''.join(shown)}</tr>"

    head = row(header, "th", ' scope="col"')
    body = "\n".join(row(cells, "td") for cells in rows)
    return scrolling(f"<table>\n{head}\n{body}\n</table>", label)


def scrolling(part: str, label: str, kind: str = "wide") -> str:
    """HTML that may be wider than the page: it scrolls by itself, with the keyboard too."""
    shown = html.escape(label)
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{shown}">{part}</div>'


def markdown_table(text: str, label: str = "table") -> str:
    """A table in Markdown as HTML."""
    lines = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in text.splitlines()]
    cells = [[c.strip().replace("\\|", "|") for c in line] for line in lines]
    return table(cells[0], cells[2:], label)


def code(text: str) -> str:
    return f"<pre><code>{html.escape(text)}</code></pre>"


def grid(*parts: str, large: bool = False) -> str:
    """Side by side where there is room, else below each other; `large` ones two at most."""
    kind = "grid large" if large else "grid"
    return f'<div class="{kind}">{"".join(parts)}</div>'


def figure(draw: Callable, title: str, *, width: float = 5.0, height: float = 3.0) -> str:
    """A figure in the page, drawn in the colour of the text.

    Args:
        draw: is given a matplotlib `Axes`; its colours should be of middle lightness (`COLOURS`).
        title: of the figure, also for who does not see it.
        width, height: in inches, as a shape; the page makes it as wide as there is room.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: it would look for a screen

    with rc_context(_STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained")
        draw(drawing.add_subplot())
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    found = buffer.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)
    found = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", found)
    found = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", found)
    shown = html.escape(title)
    found = found.replace("<svg", f'<svg role="img" aria-label="{shown}"', 1)
    return f"<figure><h3>{shown}</h3>{found.replace(_TEXT, 'currentColor')}</figure>"
