"""Self-contained HTML pages from Jinja templates: no network, light and dark, readable on a phone.

Python computes plain data; the templates contain the HTML, CSS and JavaScript. A page forbids the
browser to fetch anything and to run any script but its own.
"""

import base64
import hashlib
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from keras_transfer.evaluation.plots import COLORS, GRAY
from keras_transfer.utils.console import Table, printable

_TEXT_COLOR = "#0a0b0c"  # replaced by the text color of the page; nothing else has this color
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
        _TEXT_COLOR,
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "keras_transfer",  # the same figure gives the same SVG
}


def render(template: str, *, script: str | None = None, **values) -> str:
    """Return a page as text.

    Args:
        template: a file in `templates/`, without `.html.j2`.
        script: name of a JavaScript file in `templates/`; its hash is part of the page's
            Content-Security-Policy.
        **values: of the template's variables; everything but `figure` results is escaped.
    """
    environment = _environment()
    text = ""
    if script:
        text, *_ = environment.loader.get_source(environment, script)
    page = environment.get_template(f"{template}.html.j2").render(
        script=text,
        script_hash=base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
        **values,
    )
    return _with_unique_ids(page)


@cache
def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_transfer.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_displayed,
    )
    environment.filters["printable"] = lambda value: printable(str(value))
    return environment


def _displayed(value):
    """Return text that any browser can show, with its line breaks; HTML and numbers as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def _with_unique_ids(page):
    """Number the ids in each SVG figure, because matplotlib gives all figures the same ones."""
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

    return re.sub(r"<svg\b.*?</svg>", renamed, page, flags=re.DOTALL)


def data_uri(media_type: str, data: bytes) -> str:
    """Return a file's bytes as an address, such as `data:image/png;base64,…`."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def figure(draw: Callable, title: str, *, width: float = 5.0, height: float = 3.0) -> dict:
    """Draw a matplotlib figure as SVG in the color of the page's text.

    Args:
        draw: takes a matplotlib `Axes`; it should use `COLORS`, which suit light and dark pages.
        title: heading of the figure, also for screen readers.
        width, height: in inches; they set the shape, because the page scales the figure.

    Returns:
        `title` and `svg` (safe HTML), for the macro `figure`.
    """
    from markupsafe import Markup, escape
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # pyplot would look for a display

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's browser has other fonts
        drawing = Figure(figsize=(width, height), layout="constrained")
        draw(drawing.add_subplot())
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'^(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)
    return {"title": title, "svg": Markup(svg.replace(_TEXT_COLOR, "currentColor"))}


def line_figure(
    title: str,
    lines: dict[str, list[tuple[float, float]]],
    *,
    best_epoch: int | None = None,
    reference: tuple[float, str] | None = None,
    frame: Callable | None = None,
    colors=COLORS,
) -> dict:
    """Draw curves over epochs.

    Args:
        title: heading of the figure.
        lines: label → points (epoch, value); lines without points are left out.
        best_epoch: marked with a vertical line.
        reference: (value, label) of a horizontal line.
        frame: called with the axes before the legend is drawn, for limits and marks.
        colors: one per line.
    """

    def draw(axes):
        for (label, points), color, marker in zip(lines.items(), colors, "os" * len(colors)):
            if points:
                # "_" at the start would hide a line from the legend, "$" would begin a formula.
                text = f" {printable(label)}".replace("$", r"\$")
                axes.plot(*zip(*points), f"{marker}-", color=color, label=text, ms=3.5, lw=1.5)
        if reference:
            axes.axhline(reference[0], color=GRAY, ls=":", lw=1, label=f" {reference[1]}")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.25)
        if frame:
            frame(axes)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=GRAY, ls="--", lw=1, label=" selected epoch")
        axes.legend(fontsize=9)

    return figure(draw, title)


def skipped_files(skipped: Sequence[tuple[str, str]], most: int = 100) -> dict | None:
    """Return the data of the section on skipped files, or None without any.

    Args:
        skipped: `Run.skipped`.
        most: rows of the table.
    """
    if not skipped:
        return None
    count = len(skipped)
    reasons = Counter(reason.partition(":")[0] for _, reason in skipped).most_common(5)
    counts = ", ".join(f"{printable(reason)} {n}" for reason, n in reasons)
    return {
        "text": f"{count} file{'s' if count > 1 else ''} could not be used: {counts}.",
        "table": Table(("file", "reason"), skipped[:most]),
        "rest": max(0, count - most),
    }
