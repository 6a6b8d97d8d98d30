"""Datasets of labeled examples: open and check them, split them, and feed them in batches.

Sources are folders, tables, arrays, TFRecords, TensorFlow Datasets and datasets of Hugging Face. Modules
here may import only `modalities`, `utils` and `errors`. TensorFlow is imported when the first example is
decoded.
"""

from keras_transfer.utils.names import lazy_names

_AUGMENT = "keras_transfer.modalities.image.augment"
_VIEWS = "keras_transfer.modalities.views"
_NAMES = {
    "AUGMENTATIONS": _AUGMENT,
    "Augmentation": _AUGMENT,
    "Checked": "files",
    "Duplicates": "duplicates",
    "Examples": "examples",
    "ImageData": "examples",
    "MIXES": _VIEWS,
    "Mix": _VIEWS,
    "Report": "check",
    "Skipped": "files",
    "SplitRule": "split_rule",
    "Target": "examples",
    "View": _VIEWS,
    "check_data": "check",
    "correct": "corrections",
    "check_files": "files",
    "check_examples": "files",
    "find_duplicates": "duplicates",
    "folds": "splits",
    "from_arrays": "arrays",
    "from_dataset": "arrays",
    "from_directory": "sources",
    "from_hf": "hugging_face",
    "from_records": "tfrecord",
    "from_table": "tables",
    "from_tfds": "tfds",
    "labeled_images": "evaluation_data",
    "list_images": "evaluation_data",
    "open_data": "sources",
    "open_labeled": "evaluation_data",
    "plain_augmentation": "keras_transfer.modalities",
    "read_split_file": "split_rule",
    "read_targets": "label_columns",
    "read_tree": "folders",
    "report_on": "check",
    "require_source": "sources",
    "resolve_augmentation": "keras_transfer.modalities",
    "split": "splits",
    "stratified_sample": "splits",
    "unlabeled_images": "evaluation_data",
    "views_of": _VIEWS,
    "without_flip": _AUGMENT,
    "write_records": "tfrecord",
}
_MOVED = {
    "Twins": "keras_transfer.data.Duplicates",
    "check_images": "keras_transfer.data.check_examples",
    "check_pictures": "keras_transfer.data.check_examples",
    "find_twins": "keras_transfer.data.find_duplicates",
    "labelled_pictures": "keras_transfer.data.labeled_images",
    "list_pictures": "keras_transfer.data.list_images",
    "open_labelled": "keras_transfer.data.open_labeled",
    "unlabelled_pictures": "keras_transfer.data.unlabeled_images",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, _MOVED)
