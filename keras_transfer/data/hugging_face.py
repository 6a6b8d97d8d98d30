"""Datasets of Hugging Face as a source: from the hub, a local folder, or Parquet files."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from keras_transfer.data.arrays import find_usable
from keras_transfer.data.examples import Examples, ImageData, Target, map_labels
from keras_transfer.data.files import Skipped
from keras_transfer.data.label_columns import columns_of_labels, is_missing, read_targets
from keras_transfer.data.readers import Encoded
from keras_transfer.data.split_rule import SPLIT_NAMES, divide
from keras_transfer.data.table_rows import name_of_pair
from keras_transfer.data.tables import TableOptions
from keras_transfer.errors import InputError
from keras_transfer.modalities import Modality, find_modality
from keras_transfer.modalities.text.check import pair_of
from keras_transfer.utils.console import first_line
from keras_transfer.utils.extras import require
from keras_transfer.utils.names import make_options

_MODALITIES = {"Image": "image", "Audio": "audio"}  # feature → modality
_TEXTS = ("string", "large_string")  # polars writes the second


class Rows(Encoded):
    """Rows of a dataset, whose examples are read from it when they are needed.

    Args:
        dataset: a `datasets.Dataset`, whose images and clips are not decoded.
        column: of the examples.
        names: of its N rows.
        rows: positions in the dataset, int [N].
        modality: of the examples.
    """

    def __init__(self, dataset, column: str, names, rows: np.ndarray, modality: Modality):
        self.dataset, self.column, self.names, self.rows = dataset, column, list(names), rows
        self.modality = modality

    def contents(self, index: int) -> bytes:
        value = self.dataset[int(self.rows[index])][self.column]
        if value is None:
            raise ValueError("it is empty")
        if isinstance(value, str):
            return value.encode()
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    def take(self, indices) -> "Rows":
        names = [self.names[i] for i in indices]
        return Rows(self.dataset, self.column, names, self.rows[indices], self.modality)


def from_hf(
    source,
    *,
    revision: str | None = None,
    known: Target | dict[str, Target] | None = None,
    progress: bool = True,
    **options,
) -> ImageData:
    """Open a dataset of Hugging Face with its splits.

    Examples stay encoded in the dataset's files, and are decoded like files.

    Args:
        source: a `datasets.Dataset` or `DatasetDict`; a name on the hub, `NAME@REVISION` for one version;
            or a folder: one of `save_to_disk`, or of images, clips or Parquet files as `load_dataset`
            takes it.
        revision: of the hub.
        known: what a model predicts, to evaluate it on a dataset without a split to train on: the labels
            must match, and no splits are drawn.
        progress: show a bar on stderr, in a terminal or a notebook.
        options: fields of `TableOptions`. `path_column` or `text_column` is the column of the examples, by default the one
            that has images, clips or else texts; two columns of texts are pairs. `label_column` is by default `label`, or the only column
            of classes. The others draw missing splits (`val_split=0.2`, …).

    Raises:
        InputError: if the dataset does not exist or cannot be reached, a column is missing, or a label is
            invalid.
    """
    settings = make_options(TableOptions, options, "from_hf")
    if settings.split_column is not None:
        raise InputError(
            f"split_column is {settings.split_column!r}, but a dataset of Hugging Face has its own "
            "splits: leave it out, or pass split_file (--split)."
        )
    require("datasets", "Opening a dataset of Hugging Face")
    import datasets

    name = source if isinstance(source, str) else "the dataset"
    if isinstance(source, (str, Path)):
        name = str(source)
        if revision is None and not Path(name).expanduser().exists():
            name, _, found = name.partition("@")
            revision = found or None
        parts, revision = _load(datasets, name, revision)
    else:
        parts = source if isinstance(source, Mapping) else {"train": source}
        if not parts or not all(isinstance(part, datasets.Dataset) for part in parts.values()):
            kinds = " and ".join(sorted({type(part).__name__ for part in parts.values()}))
            raise InputError(
                "from_hf reads a name, a folder, a datasets.Dataset or a DatasetDict of them, not "
                f"{kinds or 'an empty one'}: load a dataset without streaming."
            )
        revision = parts[next(iter(parts))]._fingerprint
    features = next(iter(parts.values())).features
    given = settings.path_column or settings.text_column
    if settings.pair:
        parts, given = _joined(parts, settings.pair, name)
        features = next(iter(parts.values())).features
    column, modality = _examples(features, given, name)
    labels = dict(settings.labels)
    if not any(
        getattr(settings, kind) for kind in ("label_column", "label_columns", "targets", "heads")
    ):
        labels = {"label_column": _label(features, column, name)}
    splits = _by_split(parts, name, known is None)
    evaluating = "train" not in splits
    known = known if evaluating else None
    examples, skipped = {}, []
    for split, dataset in splits.items():
        found, known, faulty = _read(
            dataset, split, column, modality, labels, known, name, progress
        )
        examples[split] = found
        skipped += faulty
    assert known is not None, "there is a split"
    if evaluating:
        names = () if isinstance(known, dict) else known.names
        return ImageData(names, examples, skipped, f"hf:{name}", known)
    if settings.group_column is not None and not callable(settings.groups):
        settings = replace(settings, groups=_groups(parts, settings.group_column, name))
    data = divide(known, examples, skipped, name, settings)
    data.source = {"data": f"hf:{name}", "revision": revision}
    data.opened = f"hf:{name}"
    return data


def _load(datasets, name, revision):
    """Return (split → dataset, revision)."""
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
            parts = found if isinstance(found, Mapping) else {"train": found}
            return parts, next(iter(parts.values()))._fingerprint
        place = str(folder) if folder.exists() else name
        builder = datasets.load_dataset_builder(place, revision=revision)
        builder.download_and_prepare()
        parts = builder.as_dataset()
        _, at, resolved = str(builder.base_path).partition("@")  # hf://datasets/NAME@SHA
        return parts, resolved.split("/")[0] if at else builder.hash
    except Exception as error:  # of the hub, the network, or the files
        message = first_line(error)[:300]
        where = (
            "Check the folder."
            if folder.exists()
            else ("Check the name and the network, or pass a folder: hf:FOLDER.")
        )
        raise InputError(f"hf:{name} cannot be opened: {message}. {where}") from error


def _by_split(parts, name, training=True) -> dict:
    """Return our split → dataset."""
    found: dict[str, Any] = {}
    for theirs, dataset in parts.items():
        if (split := SPLIT_NAMES.get(theirs.lower())) is not None:
            found.setdefault(split, dataset)
    if not found or (training and "train" not in found):
        raise InputError(f"hf:{name} has the splits {', '.join(parts)}, but no train.")
    return found


def _examples(features, column, name):
    """Return (column of the examples, their modality)."""
    kinds = {key: _MODALITIES.get(type(feature).__name__) for key, feature in features.items()}
    texts = [key for key, feature in features.items() if _has_texts(feature)]
    if column is None:
        found = [key for key, kind in kinds.items() if kind] or texts
        if len(found) != 1:
            raise InputError(
                f"hf:{name} has {'several columns' if found else 'no column'} of examples "
                f"({', '.join(found or features)}): name it with --column path=NAME "
                "(path_column in Python)."
            )
        (column,) = found
    _require(column, features, name)
    if kinds[column] is None and column not in texts:
        raise InputError(f"hf:{name}: the column {column} has neither images, clips nor texts.")
    modality = find_modality(kinds[column] or "text")
    modality.require()
    return column, modality


def _has_texts(feature):
    return getattr(feature, "dtype", None) in _TEXTS


def _joined(parts, columns, name):
    """Return (the parts with a column of the pairs of texts in two columns, its name)."""
    for dataset in parts.values():
        for column in columns:
            _require(column, dataset.features, name)
            if not _has_texts(dataset.features[column]):
                raise InputError(
                    f"hf:{name}: the column {column} has no texts; a pair is two columns of texts."
                )
    title = name_of_pair(columns)

    def join(row):
        one, other = (row[column] or "" for column in columns)
        return {title: pair_of(one, other) if one.strip() and other.strip() else ""}

    return {split: dataset.map(join) for split, dataset in parts.items()}, title


def _label(features, column, name):
    if "label" in features:
        return "label"
    classes = [key for key, feature in features.items() if hasattr(_inner(feature), "names")]
    if len(classes) != 1:
        others = [key for key in features if key != column]
        raise InputError(
            f"hf:{name} has no column label (it has {', '.join(others)}): name it with --column label=NAME, "
            "labels=NAME or targets=NAME."
        )
    return classes[0]


def _inner(feature):
    """Return the feature of the items of a list, or the feature itself."""
    return getattr(feature, "feature", feature)


def _require(column, features, name):
    if column not in features:
        near = get_close_matches(column, features, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"hf:{name} has no column {column!r}; it has {', '.join(features)}.{hint}")


def _named(feature, values: list) -> list:
    """Return the names of classes instead of their numbers; None where there is no label."""
    names = getattr(_inner(feature), "names", None)
    if names is None:
        return values

    def named(value):
        if isinstance(value, (list, tuple)):
            return [names[one] for one in value]
        return None if value is None or value < 0 else names[value]

    return [named(value) for value in values]


def _read(dataset, split, column, modality, labels, known, name, progress):
    """Return (examples of a split, target, skipped)."""
    import datasets

    wanted = [key for _, key, _ in columns_of_labels(labels)]
    for key in wanted:
        _require(key, dataset.features, name)
    feature = dataset.features[column]
    raw = dataset.select_columns([column])
    if type(feature).__name__ in _MODALITIES:
        raw = raw.cast_column(column, getattr(datasets, type(feature).__name__)(decode=False))
    cells = {key: _named(dataset.features[key], dataset[key][:]) for key in wanted}
    titles = [f"{name}/{split} {row}" for row in range(len(dataset))]
    without = [
        i for i in range(len(dataset)) if any(is_missing(cells[key][i], ()) for key in wanted)
    ]
    skipped = [Skipped(titles[i], "it has no label") for i in without]
    rows = np.setdiff1d(np.arange(len(dataset)), without)
    usable, faulty = find_usable(
        Rows(raw, column, [titles[i] for i in rows], rows, modality), progress
    )
    rows = rows[usable]
    if not len(rows):
        why = f" ({faulty[0].path}: {faulty[0].reason})" if faulty else ""
        raise InputError(f"hf:{name} has no usable {modality.one} in {split}{why}.")
    part = {key: [values[i] for i in rows] for key, values in cells.items()}
    given, known = read_targets(part, **labels, known=known, table=f"hf:{name}", rows=list(rows))
    order = np.arange(len(rows))
    if isinstance(known, Target) and known.task == "single_label":
        order = np.argsort(given, kind="stable")  # like the examples of a folder
    reader = Rows(raw, column, [titles[i] for i in rows[order]], rows[order], modality)
    return Examples(reader, map_labels(lambda a: a[order], given)), known, skipped + faulty


def _groups(parts, column, name):
    groups = {}
    for split, dataset in _by_split(parts, name).items():
        _require(column, dataset.features, name)
        groups.update({f"{split} {i}": value for i, value in enumerate(dataset[column][:])})

    def group_of(row):
        if is_missing(groups[row]):
            raise InputError(f"hf:{name}, {row}: {column} is empty; fill it in or remove the row.")
        return str(groups[row])

    return group_of
