"""Choose the tests that `./scripts/test.sh` runs: together they reach every line, as often as the time allows.

    ./scripts/test.sh -m "large or not large" --junitxml=build/tests.xml \\
        --cov=keras_transfer --cov-context=test --cov-report=
    python scripts/large_tests.py .coverage build/tests.xml --minutes 8 > build/large.txt

The first command needs the package pytest-cov. The second prints the tests to leave out, for `tests/large.txt`; of several
reports, the last one that has a test counts. `./scripts/release.sh` runs those as well. Tests of up to a second are always run, and those in `KEPT`. Of the
others, the test is chosen that reaches most lines per second that no chosen test reaches; once every line is
reached, that one test reaches; then two; and so on.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

QUICK = 1.0  # seconds
WORKERS = 3  # of scripts/test.sh
START = 40  # seconds until the workers have collected the tests
KEPT = (  # run in any case: whole roads, and that frozen is frozen
    "tests/cli/test_kinds.py::",
    "tests/test_readme.py::",
    "tests/training/test_resume.py::",
    "tests/models/test_contracts.py::test_contract[mobilenet_0.25]",
    "tests/models/test_contracts.py::test_contract[mobilenet_v2_0.35]",
    "tests/models/test_contracts.py::test_contract[vgg16]",
    "tests/models/test_hub.py::test_contract[bert]",
    "tests/models/test_hub.py::test_contract[vit]",
    "tests/test_real.py::test_a_frozen_real_backbone_does_not_change_in_fit",
    "tests/test_real.py::test_features_are_those_of_plain_keras_applications[mobilenet_0.25",
)


def durations(report: Path) -> dict[str, float]:
    """Return test → seconds, from a JUnit report; skipped tests are left out."""
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            file = case.get("classname", "").replace(".", "/") + ".py"
            found[f"{file}::{case.get('name')}"] = float(case.get("time", 0))
    return found


def reached(database: Path) -> dict[str, np.ndarray]:
    """Return test → numbers of the lines that it reaches, in any order."""
    from coverage import CoverageData

    data, numbers, found = CoverageData(str(database)), {}, defaultdict(set)
    data.read()
    for file in sorted(data.measured_files()):
        for line, contexts in data.contexts_by_lineno(file).items():
            number = numbers.setdefault((file, line), len(numbers))
            for context in contexts:
                test, _, part = context.partition("|")
                if part in ("run", "setup"):
                    found[test].add(number)
    return {test: np.fromiter(lines, int) for test, lines in found.items()}


def choose(seconds: dict[str, float], lines: dict[str, np.ndarray], budget: float) -> set[str]:
    """Return the tests to run within `budget` seconds of work."""
    chosen = {x for x, time in seconds.items() if time <= QUICK or x.startswith(KEPT)}
    left = {x for x in seconds.keys() - chosen if x in lines}
    counts = np.zeros(1 + max(int(x.max()) for x in lines.values() if len(x)), int)
    for test in chosen & lines.keys():
        counts[lines[test]] += 1
    spent, level = sum(seconds[x] for x in chosen), 1
    while left:
        gains = {x: (counts[lines[x]] < level).sum() / seconds[x] for x in left}
        best = max(sorted(gains), key=gains.__getitem__)
        if not gains[best]:
            level += 1
        else:
            left.discard(best)
            if spent + seconds[best] <= budget:
                chosen.add(best)
                counts[lines[best]] += 1
                spent += seconds[best]
    missed = len(set().union(*map(set, lines.values()))) - int((counts > 0).sum())
    print(f"{len(chosen)} tests, {spent:.0f} s of work, {missed} lines missed", file=sys.stderr)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("coverage", type=Path)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args()
    seconds, lines = {}, reached(options.coverage)
    for report in options.reports:
        seconds |= durations(report)
    chosen = choose(seconds, lines, WORKERS * (60 * options.minutes - START))
    print("# Tests that `./scripts/test.sh` leaves out; scripts/large_tests.py chose them.")
    print(*sorted(seconds.keys() - chosen), sep="\n")


if __name__ == "__main__":
    main()
