"""Plots on a white background: their colors, and the letters that their font lacks."""

import re
import warnings

from keras_transfer.utils.console import say

COLORS = GREEN, RED, BLUE = "#0b6e4f", "#c0392b", "#1f4e8c"
OCHRE = "#b5651d"
# Fonts of other scripts, of Linux, macOS and Windows.
FALLBACKS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC"),
    *(
        "WenQuanYi Zen Hei",
        "WenQuanYi Micro Hei",
        "PingFang SC",
        "Hiragino Sans",
        "Apple SD Gothic Neo",
    ),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei", "Arial Unicode MS", "Nirmala UI"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai"),
)
_MISSING = re.compile(r"Glyph (\d+) .*missing from")


def save(figure, target, **options) -> None:
    """Write a matplotlib figure with `savefig`; say once if no font has some of its letters.

    Args:
        target: a path, or a buffer of bytes.
        options: of `savefig`.
    """
    missing = _save(figure, target, options)
    if missing and (fonts := _installed()):
        from matplotlib.text import Text

        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
        if hasattr(target, "truncate"):
            target.seek(0)
            target.truncate()
        missing = _save(figure, target, options)
    if missing:
        _say_missing(missing)


def _save(figure, target, options) -> str:
    """Write a figure; return the letters that are missing, in order."""
    letters = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(target, **options)
    for one in caught:
        if found := _MISSING.search(str(one.message)):
            letters.append(chr(int(found[1])))
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return "".join(dict.fromkeys(letters))


def _installed() -> list[str]:
    from matplotlib.font_manager import fontManager

    names = set(fontManager.get_font_names())
    return [name for name in FALLBACKS if name in names]


_said: list[str] = []


def _say_missing(letters: str) -> None:
    if not _said:
        _said.append(letters)
        say(
            f"the font of the plots lacks some letters, such as {letters[:3]}, which are drawn as boxes: "
            "install a font that has them, such as Noto Sans CJK"
        )
