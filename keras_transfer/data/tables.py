"""Tables (CSV, Parquet, pandas) of labels, and of paths or texts, as a source."""

import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from keras_transfer.data.examples import (
    SEPARATOR,
    Examples,
    ImageData,
    Target,
    label_texts,
    map_labels,
    relative_paths,
)
from keras_transfer.data.files import Skipped
from keras_transfer.data.label_columns import (
    Cells,
    column_names,
    columns_of_labels,
    has_lists,
    is_missing,
    read_targets,
    rows_without_labels,
)
from keras_transfer.data.split_rule import SPLIT_NAMES, SplitRule, divide
from keras_transfer.data.table_files import TableCells, read_columns
from keras_transfer.data.table_rows import FileRows, TextRows, join_pairs, mean_words, name_of_pair
from keras_transfer.errors import ColumnError, InputError
from keras_transfer.modalities import known_extensions
from keras_transfer.utils.console import listed, say
from keras_transfer.utils.names import make_options, sequence_of_names

# Usual names of columns, to suggest one, in lower case.
_PATHS = ("path", "file", "filename", "file_name", "image", "image_path", "image_id", "img")
_TEXTS = (
    *(
        "text",
        "texts",
        "sentence",
        "review",
        "message",
        "sms",
        "comment",
        "content",
        "body",
        "tweet",
    ),
    *("post", "question", "utterance", "query", "document", "headline"),
)
_FEW_WORDS = 3  # in a column of texts
_LABELS = ("label", "labels", "class", "class_name", "category", "target", "species", "tags", "y")


@dataclass(frozen=True)
class TableOptions(SplitRule):
    """What the columns of a table hold, and how the missing splits are drawn.

    Attributes:
        path_column: column of files; relative paths start at `root`. By default `path`.
        text_column: column of texts instead, or two columns of pairs; by default `text`, if there is no
            `path`.
        label_column: column of classes, names or integers; by default `label`.
        label_columns, targets, heads: columns of other labels, see `read_targets`.
        split_column: column of `train`, `val` or `test`; by default `split`, if it exists and is not
            empty.
        group_column: column of groups that stay in one split, such as a person or a patient.
        val_split, test_split, groups, folds, fold, split_file, seed: see `SplitRule`.
    """

    path_column: str | None = None
    text_column: str | Sequence[str] | None = None
    label_column: str | None = None
    label_columns: str | Sequence[str] | None = None
    targets: str | Sequence[str] | None = None
    heads: Mapping[str, Mapping] | None = None
    split_column: str | None = None
    group_column: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for kind in ("path_column", "text_column", "split_column", "group_column"):
            if (wanted := getattr(self, kind)) is not None:
                names = column_names(kind, wanted)
                object.__setattr__(self, kind, names[0] if len(names) == 1 else tuple(names))
        if self.path_column and self.text_column:
            raise InputError("Pass path_column for files, or text_column for texts, not both.")

    @property
    def labels(self) -> dict:
        """The arguments of `read_targets` that are given."""
        kinds = ("label_column", "label_columns", "targets", "heads")
        given = {kind: value for kind in kinds if (value := getattr(self, kind)) is not None}
        return given or {"label_column": "label"}

    @property
    def pair(self) -> tuple[str, ...]:
        """The columns of the two texts of each example; empty if it has one."""
        return self.text_column if isinstance(self.text_column, tuple) else ()

    def joined(self, cells: TableCells) -> TableCells:
        """Return a table that has the column of the examples: with pairs, one more."""
        return join_pairs(cells, self.pair) if self.pair else cells

    def examples(self, cells: TableCells) -> tuple[str, str]:
        """Return (argument, column) of the examples; the column may be missing."""
        if self.pair:
            return "text_column", name_of_pair(self.pair)
        if isinstance(self.text_column, str):
            return "text_column", self.text_column
        texts = "text" in cells.columns and "path" not in cells.columns
        if self.path_column is None and texts:
            return "text_column", "text"
        return "path_column", self.path_column or "path"


def rows_of(cells: TableCells, kind: str, column: str, base: Path) -> FileRows | TextRows:
    """Return what a table's rows stand for.

    Args:
        kind, column: see `TableOptions.examples`.
        base: the folder where relative paths start.
    """
    return _ROWS[kind](cells, column, base)


_ROWS: dict[str, type[FileRows] | type[TextRows]] = {
    "path_column": FileRows,
    "text_column": TextRows,
}


def table_columns(columns: Mapping | None, task: str | dict[str, str]) -> dict:
    """Return the options of `from_table` that are given; those of several labels are named so."""
    columns = {name: value for name, value in (columns or {}).items() if value is not None}
    if task == "multi_label" and not columns.keys() & {"label_columns", "targets", "heads"}:
        columns["label_columns"] = columns.pop("label_column", "label")
    return columns


def from_table(
    table,
    *,
    root: str | os.PathLike | None = None,
    class_names: Sequence[str] | None = None,
    known: Target | dict[str, Target] | None = None,
    progress: bool = True,
    **options,
) -> ImageData:
    """Open images or other files that a table lists, one per row, or the texts that it contains.

    Rows without a label (an empty cell, `NA` or `nan`) are skipped and listed. Paths may be written
    with backslashes, and without the extension of an image if one file has that name. A text is
    called after its row, such as `reviews.csv row 12`.

    Args:
        table: a `.csv`, `.tsv` or `.parquet` file, a pandas `DataFrame`, or a mapping of column
            names to sequences. (Parquet needs the extra `parquet`.)
        root: by default the table's folder, or the working directory.
        class_names: classes of `label_column` (or labels of one column of `label_columns`) in the
            desired order; by default sorted.
        known: what a model predicts, to evaluate it: the labels must match, and no splits are drawn;
            rows without a split form the split "all".
        progress: show a bar on stderr, in a terminal or a notebook.
        options: fields of `TableOptions`: `path_column` or `text_column`, `label_column`,
            `label_columns`, `targets`, `heads`, `split_column`, `group_column`, and those of
            `SplitRule` (`val_split=0.2`, …).

    Raises:
        InputError: if a column is missing, a label is invalid, or a class has no usable example.
    """
    settings = make_options(TableOptions, options, "from_table")
    cells = read_columns(table)
    _require_columns(cells, settings)
    if not cells.rows:
        raise InputError(f"{cells.name} has no rows.")
    cells = settings.joined(cells)
    evaluating = known is not None
    names = () if class_names is None else sequence_of_names(class_names, "class_names")
    if names and not evaluating:
        several = "label_columns" in settings.labels or any(
            has_lists(cells.columns[column]) for _, column, _ in columns_of_labels(settings.labels)
        )
        known = Target("multi_label" if several else "single_label", names)
    base = Path(root or (Path(table).parent if isinstance(table, (str, Path)) else "."))
    base = base.expanduser()
    cells, skipped = _without_unlabeled(cells, settings, known, base)
    columns, name = cells.columns, cells.name
    source = rows_of(cells, *settings.examples(cells), base)
    paths = source.names
    split_column = settings.split_column
    if split_column is None and not all(map(is_missing, columns.get("split", ()))):
        split_column = "split"
    splits = _splits(cells, split_column, "all" if evaluating else "train")
    if settings.group_column is not None and not callable(settings.groups):
        read = Cells(columns, name, cells.rows).read
        groups = read(settings.group_column, str, "which is not a name")
        # The names that `divide` passes, wherever the paths begin.
        group_of: dict[str, str] = {}
        for row, path, group in zip(cells.rows, relative_paths(paths, base), groups):
            if (other := group_of.setdefault(path, group)) != group:
                raise InputError(
                    f"{name}, row {row}: {path} has two groups, {other} and {group}; remove one."
                )
        settings = replace(settings, groups=group_of.__getitem__)

    examples = {}
    for split in ("train", "val", "test", "all"):
        rows = [i for i, given in enumerate(splits) if given == split]
        if not rows:
            continue
        part = {column: [values[i] for i in rows] for column, values in columns.items()}
        numbers = [cells.rows[i] for i in rows]
        labels, known = read_targets(part, **settings.labels, known=known, table=name, rows=numbers)
        labels_of: dict[str, int] = {}  # path → place in `labels`
        for place, i in enumerate(rows):
            first = labels_of.setdefault(paths[i], place)
            both = map_labels(lambda a: a[[first, place]], labels)  # noqa: B023
            one, other = label_texts(both, known)
            if one != other:
                raise InputError(
                    f"{name}, row {cells.rows[i]}: {paths[i]} has two labels, {one} and {other}; "
                    "remove one, or train with several labels per image (label_columns)."
                )
        by_class = isinstance(known, Target) and known.task == "single_label"
        ordered = sorted(
            labels_of.values(),
            key=lambda place: (labels[place] if by_class else 0, source.order(rows[place])),
        )
        good, faulty = source.open([rows[place] for place in ordered], progress)
        skipped += faulty
        if not len(good):
            why = f" ({faulty[0].path}: {faulty[0].reason})" if faulty else ""
            raise InputError(
                f"{name} lists no readable {source.one} for {split}{why}; check the {source.remedy}."
            )
        places = [labels_of[path] for path in good.names]
        examples[split] = Examples(good, map_labels(lambda a: a[places], labels))  # noqa: B023
    assert known is not None, "read_targets has set it"
    if evaluating:
        of_classes = () if isinstance(known, dict) else known.names
        return ImageData(of_classes, examples, skipped, str(base), known)
    data = divide(known, examples, skipped, base, settings)
    data.opened = cells.name if cells.of_file else ""
    return data


def _without_unlabeled(
    cells: TableCells, settings, known, base: Path
) -> tuple[TableCells, list[Skipped]]:
    """Return the rows that have all labels, and the others as skipped."""
    without = rows_without_labels(cells.columns, settings.labels, known)
    if not without:
        return cells, []
    names = ", ".join(dict.fromkeys(without.values()))
    if len(without) == len(cells.rows):
        raise InputError(
            f"{cells.name}, row {cells.rows[0]}: {without[0]} is empty, and every row lacks a label."
        )
    numbers = [cells.rows[i] for i in without]
    some = "1 row is" if len(numbers) == 1 else f"{len(numbers)} rows are"
    say(f"{cells.name}: {some} skipped, for {names} is empty (row {listed(numbers)})")
    kind, named = settings.examples(cells)
    skipped = []
    for i, column in without.items():
        name, row = _ROWS[kind].name(cells, named, base, i), f"row {cells.rows[i]}"
        where = "" if name.endswith(row) else f"{row}: "
        skipped.append(Skipped(name, f"{where}{column} is empty"))
    rest = sorted(set(range(len(cells.rows))) - set(without))
    columns = {column: [values[i] for i in rest] for column, values in cells.columns.items()}
    rows = [cells.rows[i] for i in rest]
    return replace(cells, columns=columns, rows=rows), skipped


def _splits(cells: TableCells, column, default):
    """Return the split of each row; `default` if the table has no splits."""
    if column is None:
        return [default] * len(cells.rows)
    splits = [SPLIT_NAMES.get(str(given).strip().lower()) for given in cells.columns[column]]
    if None in splits:
        row = splits.index(None)
        given = cells.columns[column][row]
        raise InputError(
            f"{cells.name}, row {cells.rows[row]}: split {given!r} is not train, val or test."
        )
    if default == "train" and "train" not in splits:
        found = ", ".join(sorted(set(filter(None, splits))))
        raise InputError(f"{cells.name} has no train rows; it has {found}.")
    return splits


# -- columns that are missing ---------------------------------------------------------------------


def _require_columns(cells: TableCells, settings: TableOptions) -> None:
    """Raise ColumnError if a column is missing, and suggest those that may be meant."""
    named: list[tuple[str, str | None]] = [("text_column", column) for column in settings.pair]
    named = named or [settings.examples(cells)]
    named += [("split_column", settings.split_column), ("group_column", settings.group_column)]
    named += [(kind, column) for kind, column, _ in columns_of_labels(settings.labels)]
    wanted = {column: kind for kind, column in named if column is not None}
    if not cells.columns:
        raise InputError(f"{cells.name} has no columns.")
    missing = [column for column in wanted if column not in cells.columns]
    if not missing:
        return
    problem = (
        f"{cells.name} has no column {' and no column '.join(map(repr, missing))}; it has "
        f"{', '.join(cells.columns)}"
    )
    if sum(os.path.splitext(c)[1].lower() in known_extensions() for c in cells.columns):  # noqa: PTH122
        raise ColumnError(problem, "its first row names an image; add a header, such as path,label")
    suggested = _suggested(cells, settings, {column: wanted[column] for column in missing})
    kinds = sorted({wanted[column] for column in missing})
    if settings.heads or len(suggested) < len(missing):
        options = " ".join(f"--column {KINDS_OF_COLUMNS[kind]}=NAME" for kind in kinds)
        raise ColumnError(problem, f"name it with {options} ({', '.join(kinds)} in Python)")
    pairs = tuple(f"{KINDS_OF_COLUMNS[kind]}={name}" for kind, name in suggested.items())
    arguments = ", ".join(f"{kind}={name!r}" for kind, name in suggested.items())
    command = shlex.join(["keras-transfer", "check", cells.name, *column_options(pairs)])
    if cells.name == "the table":
        raise ColumnError(problem, f"pass {arguments}", pairs)
    raise ColumnError(problem, f"name it, as in `{command}`, or pass {arguments}", pairs)


def _suggested(cells: TableCells, settings: TableOptions, missing: Mapping[str, str]) -> dict:
    """Return argument → existing column, for those of the missing columns that can be guessed."""
    suggested: dict[str, str] = {}
    renamed: dict[str, str] = {}  # columns of a pair
    lower = {column.lower(): column for column in cells.columns}
    for column, kind in missing.items():
        named = getattr(settings, kind)
        near = difflib.get_close_matches(column.lower(), lower, 1)
        if near and column in settings.pair:
            renamed[column] = lower[near[0]]
        elif near and named is not None and (isinstance(named, str) or len(named) == 1):
            suggested[kind] = lower[near[0]]
    if renamed and all(column in renamed for column in settings.pair if column in missing):
        pair = [renamed.get(column, column) for column in settings.pair]
        suggested["text_column"] = ",".join(pair)
    kinds = set(missing.values())
    kind, path = settings.examples(cells)
    if kind in kinds and not settings.pair:
        likely = _likely_examples(cells, kind if settings.text_column else None)
        if likely and (kind == "path_column" or kind not in suggested):
            suggested.pop(kind, None)
            suggested |= likely
        path = next((suggested[k] for k in _ROWS if k in suggested), path)
        kinds.discard(kind)
    kinds -= set(suggested)
    if "label_column" in kinds:
        taken = {path, settings.split_column or "split", settings.group_column}
        suggested |= _likely_labels(cells, [c for c in cells.columns if c not in taken])
    order = list(KINDS_OF_COLUMNS)
    return dict(sorted(suggested.items(), key=lambda pair: order.index(pair[0])))


KINDS_OF_COLUMNS = {
    "path_column": "path",
    "text_column": "text",
    "label_column": "label",
    "label_columns": "labels",
    "targets": "targets",
    "split_column": "split",
    "group_column": "group",
}


def column_options(pairs: Sequence[str]) -> list[str]:
    """Return `--column` before each `KIND=NAME`."""
    return [part for pair in pairs for part in ("--column", pair)]


def _likely_examples(cells: TableCells, kind: str | None) -> dict[str, str]:
    """Return the argument that names the column that seems to list files or contain texts; or {}.

    Args:
        kind: the argument, if it is known.
    """

    def share(column):
        values = [v for v in cells.columns[column][:100] if isinstance(v, (str, os.PathLike))]
        images = sum(os.path.splitext(v)[1].lower() in known_extensions() for v in values)  # noqa: PTH122
        return images / max(1, len(values))

    def named(names):
        return next((column for column in cells.columns if column.lower() in names), None)

    files = max(cells.columns, key=share)
    words = max(cells.columns, key=lambda column: mean_words(cells.columns[column]))
    for argument, column in (
        ("path_column", files if share(files) > 0.5 else None),
        ("path_column", named(_PATHS)),
        ("text_column", named(_TEXTS)),
        ("path_column", named(("id",))),
        ("text_column", words if mean_words(cells.columns[words]) >= _FEW_WORDS else None),
    ):
        if column is not None and kind in (None, argument):
            return {argument: column}
    return {}


def _likely_labels(cells: TableCells, columns: Sequence[str]) -> dict[str, str]:
    """Return the argument that names the column that seems to contain the labels; {} without one."""
    usual = [column for column in columns if column.lower() in _LABELS]
    column = next(iter([*usual, *columns]), None)
    if column is None:
        return {}
    values = [value for value in cells.columns[column] if not is_missing(value)]
    if any(isinstance(value, str) and SEPARATOR in value for value in values):
        return {"label_columns": column}
    try:
        whole = all(float(value).is_integer() for value in values)
    except (TypeError, ValueError):
        return {"label_column": column}
    return {"label_column" if whole else "targets": column}
