"""Labels in memory, in the shapes in which Keras and others store them, as labels of `data.examples`."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_transfer.data.classes import sorted_names
from keras_transfer.data.examples import TASKS
from keras_transfer.errors import InputError
from keras_transfer.utils.console import listed, say
from keras_transfer.utils.names import sequence_of_names


def encode_labels(
    labels: Mapping[str, Sequence], class_names: Sequence[str] | None, task: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return (names, labels of each split, as described in `data.examples`).

    Args:
        labels: split → labels, see `from_arrays`.
        class_names: see `from_arrays`.
        task: one of `TASKS`.

    Raises:
        InputError: if they do not suit the task, or a class does not occur in train.
    """
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}, not {task!r}.")
    if class_names is not None:
        class_names = sequence_of_names(class_names, "class_names")
    if task == "single_label":
        return _classes(labels, class_names)
    return _columns(labels, class_names, task)


def _classes(labels, class_names):
    read, casts, width = {}, [], None
    for split, given in labels.items():
        values, cast, columns = _one_per_image(_array(given, split), split)
        if width not in (None, columns) and columns is not None:
            raise InputError(f"{split} has one-hot labels of {columns} classes, but train {width}.")
        width = columns if split == "train" else width
        read[split] = values
        casts += [cast] if cast else []
    if casts:
        say(f"{', '.join(read)}: labels {casts[0]}")
    train = read["train"]
    if isinstance(train[0] if train else 0, str):
        names = sorted_names(train) if class_names is None else tuple(map(str, class_names))
        index: dict = {name: i for i, name in enumerate(names)}
    else:
        names, index = _numbered_classes(train, class_names, width)
    if len(names) < 2:
        raise InputError(f"only one class ({', '.join(names)}); classification needs at least two")
    encoded = {}
    for split, values in read.items():
        unknown = sorted(set(values) - set(index), key=str)
        if unknown:
            raise InputError(
                f"{split} has labels that are not among the {len(names)} classes: {listed(unknown)}"
            )
        encoded[split] = np.array([index[label] for label in values], np.int32)
    return names, encoded


def _numbered_classes(train, class_names, width):
    """Return (names, number → position) for labels that are integers."""
    found = sorted({label for label in train if label >= 0})
    if class_names is not None:
        names = tuple(map(str, class_names))
        by_value = {int(name): i for i, name in enumerate(names) if name.isdecimal()}
        # The names may be the numbers themselves, as in an earlier run.
        if not set(found) <= set(range(len(names))) and set(found) <= by_value.keys():
            return names, by_value
        return names, {i: i for i in range(len(names))}
    values = found if width is None else list(range(width))
    if values != list(range(len(values))):
        say(
            f"train: labels are {listed(values)}, not 0 to {len(values) - 1}: these numbers name the "
            "classes, in this order (pass class_names for labels that count from 0)"
        )
    return tuple(map(str, values)), {value: i for i, value in enumerate(values)}


def _one_per_image(values, split):
    """Return (an integer or a name per image, what was done to get it or None, width if one-hot)."""
    if values.dtype.kind == "S" or (values.dtype == object and _all(values, bytes)):
        values = np.array([value.decode() for value in values.ravel()]).reshape(values.shape)
    names = values.dtype.kind in "UT" or (values.dtype == object and _all(values, str))
    if not names and values.dtype.kind not in "biuf":
        odd = [value for value in values.ravel().tolist() if not isinstance(value, str)]
        raise InputError(
            f"Labels of {split} must be integers or names, one per example, not {values.dtype} "
            f"({listed(odd[:1])}); for several labels per example pass 0 and 1 "
            "[N, L] and task='multi_label'."
        )
    shape, cast, width = list(values.shape), None, None
    while values.ndim > 1 and values.shape[-1] == 1:
        values = values[..., 0]
        cast = f"of shape {shape} are read as [N]"
    if values.ndim == 2 and not names and len(values):
        if not _is_one_hot(values):
            raise InputError(
                f"{split} has labels of shape {shape} that are not one-hot (one 1 per example): pass "
                "integers [N], or task='multi_label' for 0 and 1, or task='regression' for numbers."
            )
        width, values = values.shape[1], values.argmax(axis=1)
        cast = f"are one-hot, {shape}: the position of the 1 is the class"
    elif values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.floor(values)).any():
            bad = values[~(np.isfinite(values) & (values == np.floor(values)))]
            raise InputError(
                f"{split} has labels that are not whole numbers ({listed(bad.tolist())}): pass integers "
                "or names of classes, or task='regression' for numbers."
            )
        cast = f"of {values.dtype} are whole numbers and read as integers"
    if values.ndim != 1:
        raise InputError(f"{split} has labels of shape {shape}: pass one per example, [N].")
    if names:
        return [str(value) for value in values.tolist()], cast, width
    return [int(value) for value in values.tolist()], cast, width


def _array(labels, split):
    try:
        values = np.asarray(labels)
    except ValueError as error:
        raise InputError(
            f"{split} has labels of different lengths ({error}): pass one per example, or 0 and 1 [N, L] "
            "with task='multi_label'."
        ) from None
    if values.dtype.kind in "UT":  # NumPy has made names of missing values
        missing = [
            i for i, value in enumerate(labels) if isinstance(value, float) and value != value
        ]
        if missing:
            raise InputError(
                f"{split} has no label at {listed(missing)}: leave out these examples, or name a class "
                "for them."
            )
    if values.dtype == object and _all(values, (int, float, np.number, np.bool_)):
        return np.array(values.tolist())
    return values


def _is_one_hot(values):
    return np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()


def _all(values, kind):
    return all(isinstance(value, kind) for value in values.ravel().tolist())


def _columns(labels, names, task):
    """Return (names, float32 [N, C] of each split) for multi_label and regression."""
    columns = {}
    for split, values in labels.items():
        try:
            values = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"{split}: {task} labels must be numbers of shape [N, C].") from None
        columns[split] = values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or not np.isfinite(values).all():
            raise InputError(f"{split}: {task} labels must be finite numbers of shape [N, C].")
        if task == "multi_label" and not np.isin(values, (0, 1)).all():
            raise InputError(f"{split}: multi_label labels must be 0 or 1.")
    width = columns["train"].shape[1]
    names = tuple(map(str, range(width) if names is None else names))
    if {values.shape[1] for values in columns.values()} != {len(names)}:
        widths = ", ".join(f"{split} {values.shape[1]}" for split, values in columns.items())
        raise InputError(
            f"The labels have different numbers of columns: {widths}; there are {len(names)} names."
        )
    return names, columns
