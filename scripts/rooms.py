"""Draw which rooms import which, from the imports themselves, into CONTRIBUTING.md.

    python scripts/rooms.py            # rewrites the diagram; --check only compares it

An arrow that follows from others is left out: if A imports B and B imports C, A → C is not drawn.
"""

import argparse
import sys
from pathlib import Path

import grimp

PACKAGE = "keras_transfer"
ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
START, END = "<!-- rooms: python scripts/rooms.py -->", "<!-- end of rooms -->"


def imports() -> dict[str, set[str]]:
    """Return room → the rooms that it imports."""
    sys.path.insert(0, str(ROOT))  # of this checkout, whatever is installed
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = sorted(graph.find_children(PACKAGE))

    def any_import(importer, imported):
        return graph.direct_import_exists(importer=importer, imported=imported, as_packages=True)

    return {
        one.removeprefix(f"{PACKAGE}."): {
            other.removeprefix(f"{PACKAGE}.")
            for other in rooms
            if other != one and any_import(one, other)
        }
        for one in rooms
    }


def reduced(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows that do not follow from others; imports have no cycles."""

    def below(room):
        return set().union(*({other} | below(other) for other in found[room]))

    return {
        room: {o for o in others if not any(o in below(via) for via in others - {o})}
        for room, others in found.items()
    }


def diagram() -> str:
    """Return the diagram, in Mermaid."""
    lines = [
        f"    {room} --> {other}"
        for room, others in sorted(reduced(imports()).items())
        for other in sorted(others)
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def page(text: str) -> str:
    """Return the page with the present diagram."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{diagram()}\n\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if it is out of date")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if options.check:
        sys.exit(0 if page(text) == text else "CONTRIBUTING.md: run python scripts/rooms.py")
    PAGE.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
