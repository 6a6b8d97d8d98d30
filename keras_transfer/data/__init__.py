"""Labelled images: index and check the files, split, decode, augment, feed.

Nothing here imports TensorFlow until a dataset is asked for, so that wrong input is
answered at once. `decode`, `transforms` and `pipeline` do need it: import them by name.
"""

from keras_transfer.data.arrays import from_arrays, from_dataset
from keras_transfer.data.check import Duplicates, Report, check_data, find_duplicates, report_on
from keras_transfer.data.examples import Examples, ImageData
from keras_transfer.data.files import Skipped, list_images, read_tree
from keras_transfer.data.folders import from_directory, labelled_images, unlabelled_images
from keras_transfer.data.index import Checked, check_files, check_images
from keras_transfer.data.mixing import MIXES, Mix
from keras_transfer.data.records import from_records, write_records
from keras_transfer.data.sources import open_data, open_labelled, require_source
from keras_transfer.data.split_rule import SplitRule, read_split_file
from keras_transfer.data.splits import folds, split
from keras_transfer.data.tables import from_table
from keras_transfer.data.targets import Target, read_targets
from keras_transfer.data.tfds import from_tfds
from keras_transfer.modalities.image.augment import (
    AUGMENTATIONS,
    Augmentation,
    View,
    plain_augmentation,
    resolve_augmentation,
    views_of,
    without_flip,
)

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "Augmentation",
    "Checked",
    "Duplicates",
    "Examples",
    "ImageData",
    "Mix",
    "Report",
    "Skipped",
    "SplitRule",
    "Target",
    "View",
    "check_data",
    "check_files",
    "check_images",
    "find_duplicates",
    "folds",
    "from_arrays",
    "from_dataset",
    "from_directory",
    "from_records",
    "from_table",
    "from_tfds",
    "labelled_images",
    "list_images",
    "open_data",
    "open_labelled",
    "plain_augmentation",
    "read_split_file",
    "read_targets",
    "read_tree",
    "report_on",
    "require_source",
    "resolve_augmentation",
    "split",
    "unlabelled_images",
    "views_of",
    "without_flip",
    "write_records",
]
