"""Write the generated tables of README.md and docs/, and docs/measured.md, from benchmark output.

python scripts/readme_tables.py             after `run_benchmarks.py`
python scripts/readme_tables.py --check     exit with code 1 if a table is out of date

A generated table stands between the lines `<!-- NAME -->` and `<!-- /NAME -->`. Never edit it by hand. The
figures come from `docs/measured/*.txt` (written by `run_benchmarks.py`) and from the rows of a long study,
`docs/adaptation.csv`.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import adaptation_benchmark
from run_benchmarks import BENCHMARKS, MEASURED

from keras_transfer.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "measured.md"

# The rows of README.md: benchmark, start of the line it printed, description.
README_ROWS = [
    (
        "whole",
        "`feature_extraction`, hymenoptera",
        "train on ants and bees, whole process, against the Keras guide's recipe",
    ),
    (
        "whole",
        "`feature_extraction`, sign_digits",
        "train on hand signs, whole process, against the same recipe",
    ),
    (
        "steps",
        "fine-tuning step, mobilenet_v2_0.35",
        "fine-tune `mobilenet_v2_0.35`, against the guide's `fit`",
    ),
    ("torch", "ResNet-50 step float32", "fine-tune ResNet-50, against PyTorch (eager)"),
    (
        "cache",
        "20 epochs, `freeze_k`, half of the stages, augmentation none, mobilenet_v2_0.35, sign_digits",
        "20 epochs with half of the stages frozen: cache on, against cache off",
    ),
    (
        "files",
        "pipeline, hymenoptera, evaluation, against `image_dataset_from_directory`",
        "read image files, against `image_dataset_from_directory`, which does not antialias",
    ),
]
# What each benchmark measures, for docs/measured.md.
TITLES = {
    "starts": "Whole processes of short commands.",
    "whole": "Time of a whole process, from start to saved model, against the recipe of the Keras transfer-learning "
    "guide. Ants and bees are read at 320 px here and at the guide's 224 px by the guide, whose `fit` is compiled "
    "with XLA, as the guide does.",
    "steps": "Fine-tuning steps and feature extraction against Keras's `fit` and `predict`; the time until a second "
    "run starts to train; the time of `advise`. ResNet-50 and `mobilenet_v2` have random weights.",
    "cache": "Twenty epochs with the activations of the frozen stages cached, against `--cache off`.",
    "cuts": "The same at three cuts: the cache changes no accuracy.",
    "torch": "ResNet-50 against PyTorch 2.13 in eager mode.",
    "files": "Reading image files, against `image_dataset_from_directory`; time and memory to compute the features "
    "of up to 100,000 JPEGs.",
    "workers": "Two workers, each on one core, computing features.",
    "workers_steps": "Training steps of one, two and four workers.",
    "precisions": "Number formats and `steps_per_execution` on this CPU.",
    "augmentations": "Speed of the training stream with each augmentation.",
    "adaptation_steps": "Time of a training step with each adaptation method, as a multiple of a step on the source "
    "alone.",
    "demo": "The demonstration, discussed in [compare](compare.md#run-the-demonstration).",
    "gain": "Transfer against training from scratch, discussed in [compare](compare.md).",
    "formats": "Every export format of one trained network. The table is in [export](export.md#compare-the-formats).",
    "formats_families": "Every export format of one network per family. The tables are in "
    "[export](export.md#compare-the-formats).",
}
# Benchmarks whose tables are on another page: docs/measured.md only names the output.
ELSEWHERE = ("formats", "formats_families")
_ACCURACIES = re.compile(r"\(accuracy [\d.]+ and [\d.]+\)")


def measured(name: str) -> tuple[dict[str, str], str]:
    """Return how a benchmark was run (command, date, machine, …) and what it printed."""
    about, _, printed = (MEASURED / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
    return dict(line.split(": ", 1) for line in about.splitlines()), printed


def rows(name: str, beginning: str) -> list[list[str]]:
    """Return the cells of the table rows of a benchmark that start with `beginning`."""
    lines = [line for line in measured(name)[1].splitlines() if line.startswith(f"| {beginning}")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def origins(names: Iterable[str], *about: str) -> list[tuple[str, str]]:
    """Return the (date, machine, …) of benchmarks, once each: these facts of `run_benchmarks.py`, by date."""
    found = [measured(name)[0] for name in names if (MEASURED / f"{name}.txt").exists()]
    return sorted({(facts["date"], "; ".join(facts[key] for key in about)) for facts in found})


def origin(names: Iterable[str], *about: str) -> str:
    """Return the dates of benchmarks, with these facts, in a few sentences."""
    places = [f"{date}: {place}" for date, place in origins(names, *about)]
    return f"Measured on {'. On '.join(places)}."


def comparisons() -> str:
    """Return the table of README.md: keras_transfer against an alternative, one row per measurement."""
    lines = [
        "| measurement | keras_transfer | alternative | ratio | printed by |",
        "|---|---|---|---|---|",
    ]
    names = [name for name, *_ in README_ROWS]
    dated = len(origins(names)) > 1
    for name, beginning, description in README_ROWS:
        text, value, alternative, ratio, *_ = rows(name, beginning)[0]
        accuracies = _ACCURACIES.search(text)
        if accuracies:
            description += f" {accuracies[0].replace(' and ', ' against ')}"
        link = f"[`{name}`](docs/measured.md#{name})"
        link += f", {measured(name)[0]['date']}" * dated
        lines.append(f"| {description} | {value} | {alternative} | {ratio} | {link} |")
    return f"{origin(names, 'machine')}\n\n" + "\n".join(lines)


def table_in(name: str) -> str:
    """Return the first Markdown table that a benchmark printed."""
    lines = measured(name)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join(lines[first:last])


def tables_in(name: str) -> str:
    """Return a benchmark's output from the title of its first Markdown table on."""
    lines = measured(name)[1].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    return "\n".join(lines[first - 2 :]).strip()


def demonstration() -> str:
    """Return the table of the demonstration as a text block."""
    lines = measured("demo")[1].splitlines()
    first = next(i for i, line in enumerate(lines) if "asymptote" in line)
    return "\n".join(["```text", *lines[first : first + 3], "```"])


def adaptation_tables() -> str:
    """Return the overview of the adaptation study and one table per task."""
    done = read("adaptation.csv")
    tasks = [
        task for task in adaptation_benchmark.TASKS if any(row["task"] == task for row in done)
    ]
    tables = [adaptation_benchmark.table(done, task) for task in tasks]
    return "\n\n".join([adaptation_benchmark.summary(done), *tables])


def read(file: str) -> list[dict[str, str]]:
    with (ROOT / "docs" / file).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# File → name of the block → function that returns its text, and the benchmarks it needs.
BLOCKS = {
    "README.md": {"measured": (comparisons, {name for name, *_ in README_ROWS})},
    "docs/adaptation-measure.md": {"adaptation": (adaptation_tables, ())},
    "docs/export.md": {
        "formats": (lambda: tables_in("formats"), ("formats",)),
        "families": (lambda: tables_in("formats_families"), ("formats_families",)),
    },
    "docs/compare.md": {
        "gain": (lambda: table_in("gain"), ("gain",)),
        "demo": (demonstration, ("demo",)),
    },
}


def filled(file: str, text: str) -> str:
    """Return the text with its generated blocks up to date; blocks without measurements stay."""
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
    """Return docs/measured.md: the output of all benchmarks."""
    parts = [
        "# Measured",
        "This page shows what each benchmark printed in its last run. `python scripts/run_benchmarks.py --torch PYTHON` "
        "runs all of them and writes their output to `docs/measured/NAME.txt`; `python scripts/readme_tables.py` "
        "writes this page. To repeat one benchmark, run the command below its heading.",
        "`ours` is this package and `peer` the alternative; `ratio` is how many times faster this package is. "
        "Brackets give the lowest and highest of the rounds.",
        origin(BENCHMARKS, "machine", "versions"),
    ]
    for name in BENCHMARKS:
        if not (MEASURED / f"{name}.txt").exists():
            continue
        about, printed = measured(name)
        command = f"`{about['command']}`, {about['date']}, {about['seconds']} s, load {about['load before']} before."
        parts += [f"## {name}", TITLES[name], command]
        if name in ELSEWHERE:
            parts.append(f"Full output: [{name}.txt](measured/{name}.txt).")
        else:
            plain = "|---" not in printed
            parts.append(f"```text\n{printed.strip()}\n```" if plain else printed.strip())
    return "\n\n".join(parts) + "\n"


def stale() -> dict[Path, str]:
    """Return the files that are out of date, with the text they should have."""
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
            print(f"{file.relative_to(ROOT)} is out of date", file=sys.stderr)
        else:
            write_text(file, text)
            print(f"wrote {file.relative_to(ROOT)}")
    sys.exit(bool(found) and options.check)


if __name__ == "__main__":
    main()
