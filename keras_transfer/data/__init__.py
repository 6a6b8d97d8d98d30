"""Labelled pictures: index and check the files, split, decode, augment, feed.

Nothing here imports TensorFlow until a dataset is asked for, so that wrong input is
answered at once. `decode`, `transforms` and `pipeline` do need it: import them by name.
"""

from keras_transfer.data.augmentation import (
    AUGMENTATIONS,
    Augmentation,
    View,
    resolve_augmentation,
    views_of,
)
from keras_transfer.data.files import Skipped, check_pictures, list_pictures, read_tree
from keras_transfer.data.sources import (
    Examples,
    ImageData,
    from_directory,
    labelled_pictures,
)
from keras_transfer.data.splits import stratified_split
from keras_transfer.data.targets import Target, read_targets

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Examples",
    "ImageData",
    "Skipped",
    "Target",
    "View",
    "check_pictures",
    "from_directory",
    "labelled_pictures",
    "list_pictures",
    "read_targets",
    "read_tree",
    "resolve_augmentation",
    "stratified_split",
    "views_of",
]
