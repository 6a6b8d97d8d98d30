"""Open a dataset by its path or name, and check the files of image folders."""

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from keras_transfer.data.classes import require_each_class
from keras_transfer.data.corrections import correct
from keras_transfer.data.examples import Examples, ImageData, Target
from keras_transfer.data.files import SCHEMA, TABLES, Checked, Skipped, check_files
from keras_transfer.data.flaws import report_flaws
from keras_transfer.data.folders import read_tree
from keras_transfer.data.multilabel_folders import merge_copies
from keras_transfer.data.split_rule import SplitRule, divide
from keras_transfer.errors import InputError
from keras_transfer.modalities import kinds_of_examples
from keras_transfer.utils.names import make_options

# Prefix of the name of a dataset → whose it is.
LIBRARIES = {"tfds:": "TensorFlow Datasets", "hf:": "Hugging Face"}
FOLDER_TASKS = ("single_label", "multi_label")


def require_source(source: str | os.PathLike) -> None:
    """Raise InputError if there is nothing at a path."""
    if library_of(source) is None and not Path(source).expanduser().exists():
        raise InputError(f"no such folder or file: {source}; check the path")


def library_of(source: str | os.PathLike) -> str | None:
    """Return the prefix of a dataset that a library has (`tfds:NAME`), None for a path."""
    return next((prefix for prefix in LIBRARIES if str(source).startswith(prefix)), None)


def open_data(
    source: str | os.PathLike,
    *,
    val=None,
    task: str = "single_label",
    columns: Mapping | None = None,
    use_list: str | os.PathLike | None = None,
    **options,
) -> ImageData:
    """Open labeled images of any kind that has a path or a name.

    Args:
        source: a folder of class folders (`from_directory`), a `.csv`, `.tsv` or `.parquet` file
            (`from_table`), a folder of `write_records` (`from_records`), `tfds:NAME`
            (`from_tfds`), or `hf:NAME` and `hf:FOLDER` (`from_hf`).
        val: folder of validation images, if `source` is a folder.
        task: `"multi_label"`: see `from_directory` for a folder; in a table, `label_column` contains
            labels joined by `|`.
        columns: options of `from_table`: `label_column`, `targets` and so on.
        use_list: a list of corrections, see `corrections.correct`.
        options: further arguments of those functions: `progress`, and the fields of `SplitRule`.

    Raises:
        InputError: see those functions; or if options belong to another kind of source.
    """
    data = _open(source, val, task, columns, options)
    return data if use_list is None else correct(data, use_list)


def _open(source, val, task, columns, options) -> ImageData:
    path = Path(source).expanduser()
    is_table = path.suffix.lower() in TABLES
    library = library_of(source)
    given = [name for name, value in (columns or {}).items() if value is not None]
    if given and not is_table and library != "hf:":
        names = ", ".join(name.removesuffix("_column") for name in given)
        raise InputError(
            f"{source} is not a table, so it has no columns ({names}): leave them out."
        )
    if not (library or is_table or (path / SCHEMA).is_file()):
        return from_directory(path, val=val, task=task, **options)
    if val is not None:
        kind = LIBRARIES[library] if library else "a table" if is_table else "TFRecord shards"
        raise InputError(
            f"{source} is {kind}: mark its validation examples there; --val is for folders."
        )
    if library == "tfds:":
        from keras_transfer.data.tfds import from_tfds

        return from_tfds(str(source).removeprefix(library), **options)
    if library == "hf:":
        from keras_transfer.data.hugging_face import from_hf
        from keras_transfer.data.tables import table_columns

        name = str(source).removeprefix(library)
        return from_hf(name, **table_columns(columns, task), **options)
    if is_table:
        from keras_transfer.data.tables import from_table, table_columns

        return from_table(path, **table_columns(columns, task), **options)
    from keras_transfer.data.tfrecord import from_records

    return from_records(path, **options)


def from_directory(
    root: str | os.PathLike,
    *,
    val: str | os.PathLike | None = None,
    task: str = "single_label",
    progress: bool = True,
    **rule,
) -> ImageData:
    """Index an image folder, leave out files that cannot be decoded, and split the rest.

    The validation images are, in this order of preference: those of `val`, those of `root/val`, or a
    stratified share of the training images. Test images are those of `root/test`, or a share if
    `test_split` is given. An explicit list in `split_file` overrides all of these.

    Args:
        root: `root/<class>/` or `root/{train,val,test}/<class>/`, see `read_tree`.
        val: another folder `val/<class>/` with the same classes.
        task: `"multi_label"`: the folders are labels, and an image that lies in several folders has
            several labels, see `data.multilabel_folders.merge_copies`.
        progress: show a bar on stderr, in a terminal or a notebook.
        rule: fields of `SplitRule`: `val_split` (share for validation, if there is no folder; 0.2),
            `test_split`, `groups`, `folds`, `fold`, `split_file`, `seed`. The split does not depend
            on names: a renamed file stays in its split.

    Raises:
        InputError: if the folder cannot be used as it is; the message says what to do.
    """
    require_folder_task(task)
    split_rule = make_options(SplitRule, rule, "from_directory")
    root = Path(root).expanduser()
    tree = read_tree(root)
    train_folder = root if "all" in tree else root / "train"
    if "all" in tree:
        tree = {"train": tree["all"]}
    if val is not None:
        tree["val"] = _read_val(val, tree["train"])
    # Report errors that the names show before the long check.
    split_rule.check(tree)
    names = tuple(tree["train"])
    of_files = np.repeat(np.arange(len(names)), [len(files) for files in tree["train"].values()])
    require_each_class(of_files, Target("single_label", names), train_folder)
    target = Target(task, names)
    rows, checked = check_tree(tree, progress)
    skipped = checked.skipped
    examples = {split: label(checked, classes, target) for split, classes in rows.items()}
    for split, part in examples.items():
        where = val if split == "val" and val is not None else f"the {split} folder of {root}"
        require_images(part, where, skipped)
    data = divide(target, examples, skipped, root, split_rule)
    places = {"data": root, **({"val": val} if val else {})}
    data.source = {"task": task, **{k: str(Path(v).absolute()) for k, v in places.items()}}
    return data


def require_folder_task(task) -> None:
    """Raise InputError if folders cannot express the labels of a task."""
    if task not in FOLDER_TASKS:
        raise InputError(
            f"Folders can be used for {' or '.join(FOLDER_TASKS)}, not {task}: pass a table for "
            "numbers and several heads."
        )


def check_tree(tree, progress: bool) -> tuple[dict[str, dict[str, np.ndarray]], Checked]:
    """Check all files; return split → class → rows of usable files, and the checked files."""
    paths = [path for classes in tree.values() for files in classes.values() for path in files]
    checked = check_files(paths, progress=progress)
    report_flaws(checked)
    places = iter(range(len(paths)))
    rows = {
        split: {name: checked.usable(islice(places, len(files))) for name, files in classes.items()}
        for split, classes in tree.items()
    }
    return rows, checked


def label(checked: Checked, classes: dict[str, np.ndarray], target: Target) -> Examples:
    """Return the files of some classes with their labels."""
    rows = [classes.get(name, np.zeros(0, np.int64)) for name in target.names]
    labels = np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])
    files = checked.files(np.concatenate(rows))
    if target.task == "multi_label":
        return Examples(*merge_copies(files, labels, target.names))
    return Examples(files, labels)


def require_images(examples: Examples, where, skipped: list[Skipped]) -> None:
    """Raise InputError if there are no examples."""
    if not len(examples):
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        one = kinds_of_examples([faulty.path for faulty in skipped])
        raise InputError(f"no readable {one} in {where}{why}; add some or leave it out")


def _read_val(val, train: dict[str, list[str]]) -> dict[str, list[str]]:
    tree = read_tree(val)
    if "all" not in tree:
        raise InputError(f"{val} contains splits; pass the one folder that contains class folders")
    missing, unknown = sorted(set(train) - set(tree["all"])), sorted(set(tree["all"]) - set(train))
    if missing or unknown:
        differences = [f"it lacks {', '.join(missing)}"] if missing else []
        differences += [f"train lacks {', '.join(unknown)}"] if unknown else []
        raise InputError(
            f"the classes of {val} differ from those of train: {' and '.join(differences)}; "
            "both need the same class folders"
        )
    return tree["all"]
