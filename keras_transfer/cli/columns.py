"""The option `--column`: which columns of a table contain what."""

import csv
import re
import shlex
from collections.abc import Mapping, Sequence

from keras_transfer.data.label_columns import LABEL_KINDS, MOST_COLUMNS
from keras_transfer.data.tables import KINDS_OF_COLUMNS, column_options
from keras_transfer.errors import ColumnError, InputError

_ARGUMENTS = {kind: argument for argument, kind in KINDS_OF_COLUMNS.items()}
_HEAD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def columns_of(pairs: Sequence[str] | None) -> dict | None:
    """Parse `KIND=NAME,NAME` and `HEAD.KIND=NAME` into arguments of `from_table`; None without pairs.

    Several kinds of labels become several heads, named after their column if HEAD is missing. Quote a
    name that contains a comma: `targets="a,b",c`.

    Raises:
        InputError: if a kind is unknown, or two options contradict each other.
    """
    if not pairs:
        return None
    columns: dict = {}
    labels: dict[tuple[str, str], list[str]] = {}  # (head or "", argument) → columns
    for pair in pairs:
        head, argument, names = _parsed(pair)
        if argument in LABEL_KINDS:
            if argument == "label_column" and not head and (head, argument) in labels:
                head = _head_name(names, argument)  # each is a head of its own
            if argument == "label_column" and (head, argument) in labels:
                raise InputError(f"--column {pair}: there is another column for {head}; name one.")
            labels.setdefault((head, argument), []).extend(names)
        elif head or argument in columns:
            raise InputError(f"--column {pair}: pass one {KINDS_OF_COLUMNS[argument]}=NAME.")
        else:
            columns[argument] = names[0] if len(names) == 1 else names
    if len(labels) == 1 and not next(iter(labels))[0]:
        return {**columns, **_arguments(labels)}
    heads: dict[str, dict] = {}
    for (head, argument), names in labels.items():
        name = head or _head_name(names, argument)
        if name in heads:
            raise InputError(
                f"--column: two heads are named {name}; name them, as in HEAD.KIND=NAME."
            )
        heads[name] = _arguments({(head, argument): names})
    if len(heads) == 1:
        raise InputError(f"--column {'.'.join(next(iter(labels)))}: a single head needs no name.")
    return {**columns, **({"heads": heads} if heads else {})}


def _parsed(pair) -> tuple[str, str, list[str]]:
    """Return (head or "", argument of `from_table`, columns)."""
    left, _, right = pair.partition("=")
    head, _, kind = left.strip().rpartition(".")
    names = [name.strip() for name in next(csv.reader([right], skipinitialspace=True), [])]
    if kind not in _ARGUMENTS or not all(names) or not names:
        raise InputError(
            f"--column {pair}: use KIND=NAME, with KIND one of {', '.join(_ARGUMENTS)}; for one of "
            "several heads HEAD.KIND=NAME."
        )
    if head and not _HEAD.fullmatch(head):
        raise InputError(f"--column {pair}: the name of a head has letters, digits and _ only.")
    argument = _ARGUMENTS[kind]
    most = MOST_COLUMNS.get(argument, 1)
    if len(names) > most:
        count = "one column" if most == 1 else "two columns"
        quoted = shlex.quote(f'{left}="{right}"')
        raise InputError(
            f"--column {pair}: {kind} takes {count}; repeat --column for more, or quote a name with "
            f"commas: {quoted}."
        )
    return head, argument, names


def _arguments(labels):
    (((_, argument), names),) = labels.items()
    # One column of labels joined by | has a name; columns of 0 and 1 are a list.
    single = argument == "label_column" or (argument == "label_columns" and len(names) == 1)
    return {argument: names[0] if single else names}


def _head_name(names, argument) -> str:
    """Return the name of a head after its column, as far as a head may have it."""
    name = names[0] if len(names) == 1 else KINDS_OF_COLUMNS[argument]
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    fits = _HEAD.fullmatch(name) and name not in ("images", "loss")
    return name if fits else f"{KINDS_OF_COLUMNS[argument]}_{name}".rstrip("_")


def merged(recorded: Mapping | None, given: Mapping | None) -> dict | None:
    """Return a run's columns with those that are given now in their place."""
    if not given:
        return dict(recorded) if recorded else None
    kinds = {*LABEL_KINDS, "heads"}
    replaced = kinds if kinds & given.keys() else set()
    kept = {name: value for name, value in (recorded or {}).items() if name not in replaced}
    return {**kept, **given}


def command_with(arguments: Sequence[str], error: ColumnError) -> str:
    """Return a command with the columns that an error suggests, quoted for a shell."""
    kinds = {option.partition("=")[0] for option in error.options}
    if kinds & {KINDS_OF_COLUMNS[name] for name in LABEL_KINDS}:
        kinds |= {KINDS_OF_COLUMNS[name] for name in LABEL_KINDS}
    rest: list[str] = []
    parts = iter(arguments)
    for part in parts:
        if part == "--column":
            option = [part, next(parts, "")]
        elif part.startswith("--column="):
            option = ["--column", part.partition("=")[2]]
        else:
            rest.append(part)
            continue
        if option[1].partition("=")[0] not in kinds:
            rest += option
    return shlex.join(["keras-transfer", *rest, *column_options(error.options)])
