"""Labelled pictures: index and check the files, split, decode, augment, feed.

Nothing here imports TensorFlow until a dataset is asked for, so that wrong input is
answered at once. `decode`, `transforms` and `pipeline` do need it: import them by name.
"""

from keras_transfer.data.augmentation import (
    AUGMENTATIONS,
    Augmentation,
    View,
    plain_augmentation,
    resolve_augmentation,
    views_of,
    without_flip,
)
from keras_transfer.data.files import Skipped, check_pictures, list_pictures, read_tree
from keras_transfer.data.mixing import MIXES, Mix
from keras_transfer.data.sources import (
    Examples,
    ImageData,
    from_directory,
    labelled_pictures,
)
from keras_transfer.data.splits import stratified_split

__all__ = [
    "AUGMENTATIONS",
    "MIXES",
    "Augmentation",
    "Examples",
    "ImageData",
    "Mix",
    "Skipped",
    "View",
    "check_pictures",
    "from_directory",
    "labelled_pictures",
    "list_pictures",
    "plain_augmentation",
    "read_tree",
    "resolve_augmentation",
    "stratified_split",
    "views_of",
    "without_flip",
]
