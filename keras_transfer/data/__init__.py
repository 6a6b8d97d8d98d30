"""Datasets of labeled examples: open and check them, split them, and feed them in batches.

Sources are folders, tables, arrays, TensorFlow Datasets and TFRecords. Modules here may import only
`modalities`, `utils` and `errors`. TensorFlow is imported when the first example is decoded.
"""

from keras_transfer.utils.lazy import lazy_names

_NAMES = {
    name: module
    for module, names in {
        "keras_transfer.modalities.image.augment": (
            *("AUGMENTATIONS", "MIXES", "Augmentation", "Mix", "View", "plain_augmentation"),
            *("resolve_augmentation", "views_of", "without_flip"),
        ),
        "keras_transfer.data.arrays": ("from_arrays", "from_dataset"),
        "keras_transfer.data.check": ("Report", "check_data", "report_on"),
        "keras_transfer.data.evaluation_data": (
            *("labeled_images", "list_images", "open_labeled", "unlabeled_images"),
        ),
        "keras_transfer.data.examples": (
            *("Duplicates", "Examples", "ImageData", "Target", "find_duplicates"),
        ),
        "keras_transfer.data.files": ("Checked", "Skipped", "check_files", "check_images"),
        "keras_transfer.data.sources": (
            *("from_directory", "open_data", "read_tree", "require_source"),
        ),
        "keras_transfer.data.split_rule": ("SplitRule", "read_split_file"),
        "keras_transfer.data.splits": ("folds", "split", "stratified_sample"),
        "keras_transfer.data.tables": ("from_table", "read_targets"),
        "keras_transfer.data.tfds": ("from_tfds",),
        "keras_transfer.data.tfrecord": ("from_records", "write_records"),
    }.items()
    for name in names
}
_MOVED = {
    old: f"keras_transfer.data.{new}"
    for old, new in {
        "Twins": "Duplicates",
        "check_pictures": "check_images",
        "find_twins": "find_duplicates",
        "labelled_pictures": "labeled_images",
        "list_pictures": "list_images",
        "open_labelled": "open_labeled",
        "unlabelled_pictures": "unlabeled_images",
    }.items()
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES, _MOVED)
