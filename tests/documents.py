"""Read the Markdown files of the project: code, links, headings."""

import contextlib
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$", re.M | re.S
)
_LINK = re.compile(
    r"!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\((?P<target>[^()\s]+(?:\([^)]*\))?)(?:\s+\"[^\"]*\")?\)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    file: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.file}:{self.line}"


@cache
def documents() -> dict[str, str]:
    """Return path from the project's root → text of each Markdown file."""
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in sorted(files)}


@cache
def notebooks() -> dict[str, str]:
    """Return path → Markdown cells of each notebook."""
    found = {}
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        found[str(file.relative_to(ROOT))] = "\n\n".join(texts)
    return found


def blocks(*languages: str) -> list[Block]:
    """Return all blocks in these languages ("" for none), in the order of files and lines."""
    return [
        Block(name, text.count("\n", 0, found.start()) + 2, found["language"], found["text"])
        for name, text in documents().items()
        for found in _FENCE.finditer(text)
        if found["language"] in languages
    ]


def prose(text: str) -> str:
    """Return a Markdown text without its code blocks."""
    return _FENCE.sub("", text)


def links(text: str) -> list[str]:
    """Return the targets of links and images."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(text))
    targets = [found["target"] for found in _LINK.finditer(without_code)]
    inner = re.findall(r"!\[[^\]]*\]\(([^()\s]+)\)", without_code)  # an image inside a link
    return targets + inner


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and MkDocs name them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?)\s*$", prose(text), re.M):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower())
        name = words.strip().replace(" ", "-")
        number = sum(
            other == name or re.fullmatch(rf"{re.escape(name)}-\d+", other) is not None
            for other in found
        )
        found.add(f"{name}-{number}" if number else name)
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments; continued lines are joined."""
    found, waiting = [], ""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        waiting = f"{waiting}\n{line}" if waiting else line
        with contextlib.suppress(ValueError):  # a quote is open
            found.append(shlex.split(waiting, comments=True))
            waiting = ""
    assert not waiting, f"a quote is open: {waiting}"
    return [words for words in found if words]
