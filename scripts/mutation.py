"""Mutation testing: how many small faults, put into the code one at a time, do the tests detect?

    pip install -e '.[dev,mutation]'
    python scripts/mutation.py                    # all places, or named ones: splits keys
    python scripts/mutation.py splits --survivors # only faults that survived, e.g. after a new test
    python scripts/mutation.py splits --most 300  # so many of the faults, drawn at random

Prints the survivors and the share of detected faults. The faults are mutmut's: `x < y` → `x <= y`,
`f(a, b)` → `f(a)` or `f(None, b)`, `n = 5` → `n = None`, `5` → `6`, …. Unlike mutmut, this script also
changes code outside functions (defaults of dataclasses, tables) and decorated functions. It does not change
messages: strings within `raise` and `say`, and strings with a space between two words.

Importing TensorFlow takes longer than most of the tests. One process therefore imports the libraries and
forks a child for each fault, which imports keras_transfer with that fault and runs the tests. A child that
takes too long counts as killed.
"""

import argparse
import difflib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "mutation"
# Imported before forking; none of them may compute anything yet, or a child could hang.
LIBRARIES = ("numpy", "PIL.Image", "pytest", "scipy", "tensorflow", "keras", "yaml", "sklearn")
_WORDS = re.compile(r"\w \w")  # a name or key has no spaces


@dataclass(frozen=True)
class Place:
    """Code to change, file → names of its functions and classes (None for all), and its tests:
    arguments of pytest, the fastest first, run in turn until a test fails.
    """

    code: dict[str, tuple[str, ...] | None]
    tests: tuple[str, ...]


PLACES = {
    "freezing": Place(
        {
            "models/stages.py": (
                *("Frozen", "frozen_stages", "_layer_count", "freeze", "quick_statistics"),
                *("stage_of_weights", "parameter_count", "_QUICK"),
            ),
            "models/builders.py": ("summary",),
        },
        (
            "tests/models/test_freezing.py -k three_stages",
            "tests/models/test_freezing.py -k 'not three_stages and not scratch'",
        ),
    ),
    "schedules": Place({"schedules/phases.py": None}, ("tests/schedules/test_schedules.py",)),
    "splits": Place(
        {"data/splits.py": None, "data/split_rule.py": None},
        (
            "tests/data/test_splits_exactly.py -k earlier_releases",
            "tests/data/test_splits_exactly.py tests/data/test_splits.py tests/data/test_split_rules.py",
        ),
    ),
    "keys": Place(
        {
            "features/store.py": (
                "Store.table",
                "DIGEST",
                "cached_result",
                "concluded",
                "digest_of",
                "_SINGLE_ROW",
            ),
            "features/prefix.py": (
                *("Prefix.fingerprint", "Prefix.identity", "prefix_of", "_nameless", "_placed"),
                *("_FORMAT", "engine_version", "_key"),
            ),
            "features/extraction.py": ("_table",),
            "features/caching.py": ("Supply._prefix", "Supply._once"),
            "modalities/image/augment.py": ("View",),
            "modalities/image/decode.py": ("digest",),
            "data/files.py": ("_digest",),
        },
        ("tests/features/test_keys.py", "tests/features/test_store.py -k another_identity"),
    ),
    "rules": Place({"advisor/rules.py": None}, ("tests/advisor/test_rules.py",)),
    "stages": Place({"models/graph.py": None}, ("tests/models/test_stages.py",)),
    "low_rank": Place({"models/low_rank.py": None}, ("tests/models/test_low_rank.py",)),
    "diagnosis": Place(
        {
            "diagnosis/label_errors.py": None,
            "diagnosis/near.py": None,
            "diagnosis/outliers.py": None,
        },
        (
            "tests/diagnosis/test_label_errors.py",
            "tests/diagnosis/test_near.py",
            "tests/diagnosis/test_diagnose.py",
        ),
    ),
}


@dataclass(frozen=True)
class Mutant:
    file: str  # under keras_transfer/
    line: int
    code: str
    diff: str

    @property
    def module(self):
        return "keras_transfer." + self.file.removesuffix(".py").replace("/", ".")


class Visitor(MutationVisitor):
    """mutmut's visitor, extended to decorated functions; it records the position of each node."""

    def __init__(self, wanted):
        super().__init__(mutation_operators, IgnoredCode(set(), set(), set()))
        self.wanted, self.inside, self.speaking = wanted, [], 0
        self.lines = []

    def on_visit(self, node):
        name = _name(node)
        if name:
            self.inside.append(name)
        self.speaking += _speaks(node)
        return super().on_visit(node)

    def on_leave(self, node):
        super().on_leave(node)
        if _name(node):
            self.inside.pop()
        self.speaking -= _speaks(node)

    def _skip_node_and_children(self, node):
        if isinstance(node, cst.FunctionDef):
            return False
        return super()._skip_node_and_children(node)

    def _create_mutations(self, node):
        path = ".".join(self.inside)
        if self.wanted and not any(f"{path}.".startswith(f"{name}.") for name in self.wanted):
            return
        if isinstance(node, cst.SimpleString) and (self.speaking or _WORDS.search(node.value)):
            return
        super()._create_mutations(node)
        line = self.get_metadata(PositionProvider, node).start.line
        self.lines += [line] * (len(self.mutations) - len(self.lines))


def _name(node):
    """Return the name of a function, a class or a constant of the module."""
    if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
        return node.name.value
    if isinstance(node, cst.Assign) and isinstance(node.targets[0].target, cst.Name):
        return node.targets[0].target.value
    return None


def _speaks(node):
    """Return whether strings in this node are text for people."""
    said = isinstance(node, cst.Call) and getattr(node.func, "value", None) in ("say", "InputError")
    return said or isinstance(node, cst.Raise)


def mutants(place):
    found = []
    for file, wanted in place.code.items():
        source = (ROOT / "keras_transfer" / file).read_text(encoding="utf-8")
        wrapper = MetadataWrapper(cst.parse_module(source))
        visitor = Visitor(wanted)
        wrapper.visit(visitor)
        seen = {source}
        for mutation, line in zip(visitor.mutations, visitor.lines, strict=True):
            code = wrapper.module.deep_replace(mutation.original_node, mutation.mutated_node).code
            if code not in seen:
                seen.add(code)
                lines = (text.splitlines() for text in (source, code))
                diff = [x for x in difflib.unified_diff(*lines, n=0, lineterm="")][3:]
                found.append(Mutant(file, line, code, "\n".join(diff)))
    return found


class Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """An importer that gives one module another source."""

    def __init__(self, mutant):
        path = str(ROOT / "keras_transfer" / mutant.file)
        super().__init__(mutant.module, path)
        self.code = mutant.code

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def get_code(self, name):
        return compile(self.code, self.path, "exec", dont_inherit=True)


def run(tests, limit, mutant=None, log=os.devnull):
    """Return (state, seconds of processor time) of the tests with a fault: killed, survived, timeout.

    Args:
        limit: maximum seconds of processor time; elapsed time may be five times as long.
    """
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Plugins would be imported, and their asserts rewritten, in each child.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        if mutant:
            sys.meta_path.insert(0, Changed(mutant))
        import pytest

        status = 99
        try:
            for arguments in tests:
                always = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
                status = int(pytest.main([*always, *shlex.split(arguments)]))
                if status:
                    break
        finally:
            os._exit(status)
    while True:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > 5 * limit:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
    state = "timeout" if os.WIFSIGNALED(status) else "killed" if status else "survived"
    return state, used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("places", nargs="*", choices=[*PLACES, []], default=[])
    parser.add_argument(
        "--survivors", action="store_true", help="only faults that survived last time"
    )
    parser.add_argument("--most", type=int, help="this number of faults of each place, at random")
    parser.add_argument(
        "--count", action="store_true", help="print the number of faults and run nothing"
    )
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not args.count:
        for name in LIBRARIES:
            importlib.import_module(name)
        gc.freeze()  # garbage collection in a child would copy this memory
    for name in args.places or PLACES:
        place, file = PLACES[name], RESULTS / f"{name}.json"
        faults = mutants(place)
        if args.count:
            print(name, len(faults))
            continue
        count = len(faults)
        if args.most and args.most < count:
            faults = random.Random(0).sample(faults, args.most)
        known = json.loads(file.read_text()) if args.survivors and file.is_file() else {}
        state, seconds = run(place.tests, 300, log=RESULTS / f"{name}.log")
        print(
            f"{name}: {len(faults)} of {count} faults; the tests without one: {state}, {seconds:.1f} s"
        )
        limit = 5 + 3 * int(seconds)
        if state != "survived":
            sys.exit(f"The tests of {name} fail as they are, see {RESULTS / name}.log")
        results = {}
        for fault in faults:
            key = f"{fault.file}:{fault.line}\n{fault.diff}"
            state = known.get(key)
            if state in (None, "survived"):
                state, seconds = run(place.tests, limit, fault)
            results[key] = state
            file.write_text(json.dumps(results, indent=1))
            if state == "survived":
                print(f"survived ({seconds:.1f} s) {key}", flush=True)
        states = list(results.values())
        lived = states.count("survived")
        print(
            f"{name}: {1 - lived / len(states):.1%} of {len(states)} killed "
            f"({states.count('timeout')} by time), {lived} survived",
            flush=True,
        )


if __name__ == "__main__":
    main()
