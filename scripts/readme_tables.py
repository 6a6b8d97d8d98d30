"""Writes the tables of README.md and of docs/, and docs/measured.md, from what benchmarks have printed.

python scripts/readme_tables.py             after `sitting.py`
python scripts/readme_tables.py --check     exit code 1 where they are not what the benchmarks printed

A table stands between the lines `<!-- NAME -->` and `<!-- /NAME -->`; nobody writes there by hand. Figures
come from `docs/measured/*.txt` (`sitting.py`) and from the rows of the two long studies,
`docs/regret.csv` and `docs/adaptation.csv`.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

import adaptation_benchmark
import regret
from sitting import BENCHMARKS, MEASURED

from keras_transfer.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "measured.md"

# Benchmark, and how those of its lines begin that the README shows.
SHOWN = [
    ("whole", "`feature_extraction`"),
    ("steps", "fine-tuning step"),
    ("steps", "extraction, resnet50"),
    ("steps", "extraction, mobilenet_v2,"),
    ("steps", "second run"),
    ("steps", "`keras-transfer advise`"),
    ("cache", "20 epochs"),
    ("torch", "ResNet-50"),
    ("files", "pipeline"),
]
_WORKERS = re.compile(
    r"^(\S+), (\d+) images of (\d+) px: one worker ([\d.]+)/s, two ([\d.]+)/s: ([\d.]+) times",
    re.M,
)


def measured(name: str) -> tuple[dict[str, str], str]:
    """What a benchmark's page says of how it was measured, and what was printed."""
    about, _, printed = (MEASURED / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
    return dict(line.split(": ", 1) for line in about.splitlines()), printed


def rows(name: str, beginning: str = "") -> list[list[str]]:
    """Cells of the lines of a benchmark's table, or of those that begin so."""
    lines = [line for line in measured(name)[1].splitlines() if line.startswith(f"| {beginning}")]
    if not beginning:
        lines = [line for line in lines if not line.startswith(("| what", "|---"))]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def origin() -> str:
    """When and on what all was measured; more than one sitting gives more than one line."""
    found = [measured(name)[0] for name in BENCHMARKS if (MEASURED / f"{name}.txt").exists()]
    dates = sorted({about["date"] for about in found})
    places = sorted({f"{about['machine']}; {about['versions']}" for about in found})
    return f"Measured on {' and '.join(dates)}: {'; and '.join(places)}."


def comparisons() -> str:
    """Ours against the peer, a line each, with the command."""
    lines = ["| what | ours | peer | ratio | command |", "|---|---|---|---|---|"]
    before = None
    for name, beginning in SHOWN:
        command = measured(name)[0]["command"].removeprefix("python scripts/")
        for what, ours, peer, ratio, *_ in rows(name, beginning):
            said = "the same" if command == before else f"`{command}`"
            lines.append(f"| {what} | {ours} | {peer} | {ratio} | {said} |")
            before = command
    command = measured("workers")[0]["command"].removeprefix("python scripts/")
    for name, count, size, one, two, ratio in _WORKERS.findall(measured("workers")[1]):
        what = f"features of {count} images, {name} at {size} px: two workers on two cores against one on one"
        lines.append(f"| {what} | {two} images/s | {one} images/s | {ratio} | `{command}` |")
    return f"{origin()}\n\n" + "\n".join(lines)


def table_in(name: str) -> str:
    """The first Markdown table that a benchmark printed."""
    lines = measured(name)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[first:last])


def tables_in(name: str) -> str:
    """All from the first table on, with its title."""
    lines = measured(name)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    return "\n".join(lines[first - 2 :]).strip()


def demonstration() -> str:
    """The demonstration's table, as it prints it."""
    lines = measured("demo")[1].splitlines()
    first = next(i for i, line in enumerate(lines) if "asymptote" in line)
    return "\n".join(["```text", *lines[first : first + 3], "```"])


def read(file: str) -> list[dict[str, str]]:
    with (ROOT / "docs" / file).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# File → name → what stands there, and the benchmarks that it takes.
BLOCKS = {
    "README.md": {
        "regret": (lambda: regret.table(read("regret.csv")), ()),
        "adaptation": (lambda: adaptation_benchmark.summary(read("adaptation.csv")), ()),
        "formats": (lambda: table_in("formats"), ("formats",)),
        "measured": (comparisons, (*dict(SHOWN), "workers")),
        "demo": (demonstration, ("demo",)),
    },
    "docs/export.md": {
        "formats": (lambda: tables_in("formats"), ("formats",)),
        "families": (lambda: tables_in("formats_families"), ("formats_families",)),
    },
    "docs/compare.md": {"gain": (lambda: table_in("gain"), ("gain",))},
}


def filled(file: str, text: str) -> str:
    """The text with its tables as the benchmarks printed them; what no sitting has measured stays."""
    for name, (block, benchmarks) in BLOCKS[file].items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{file} has no lines {begin.strip()} and {end}")
        if not all((MEASURED / f"{benchmark}.txt").exists() for benchmark in benchmarks):
            continue
        text = f"{before}{begin}\n{block()}\n\n{end}{after}"
    return text


def page() -> str:
    """docs/measured.md: everything that the benchmarks printed."""
    parts = [
        "# Measured",
        "What each benchmark printed in the last sitting (`python scripts/sitting.py --torch PYTHON`), word for "
        "word; this page is written by `python scripts/readme_tables.py`. Figures on other pages are of an Intel "
        "Xeon with AMX, two cores as well, unless they name another.",
        origin(),
    ]
    for name in BENCHMARKS:
        if not (MEASURED / f"{name}.txt").exists():
            continue
        about, printed = measured(name)
        plain = "|---" not in printed
        parts += [
            f"## {name}",
            f"`{about['command']}`, {about['date']}, {about['seconds']} s, load {about['load before']} before.",
            f"```text\n{printed.strip()}\n```" if plain else printed.strip(),
        ]
    return "\n\n".join(parts) + "\n"


def stale() -> dict[Path, str]:
    """The files that are not what the benchmarks printed, with what they should be."""
    wanted = {ROOT / file: filled(file, (ROOT / file).read_text("utf-8")) for file in BLOCKS}
    if MEASURED.exists():
        wanted[PAGE] = page()
    return {
        file: text
        for file, text in wanted.items()
        if not file.exists() or file.read_text(encoding="utf-8") != text
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    for file, text in (found := stale()).items():
        if options.check:
            print(f"{file.relative_to(ROOT)} is not what the benchmarks printed", file=sys.stderr)
        else:
            write_text(file, text)
            print(f"wrote {file.relative_to(ROOT)}")
    sys.exit(bool(found) and options.check)


if __name__ == "__main__":
    main()
