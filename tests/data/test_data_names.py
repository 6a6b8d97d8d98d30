"""Public names of the room: loaded on first use, and the names of 0.1 with a warning."""

import subprocess
import sys
import warnings

import pytest

from keras_transfer import data

MOVED = {
    "Twins": "Duplicates",
    "check_pictures": "check_examples",
    "find_twins": "find_duplicates",
    "labelled_pictures": "labeled_images",
    "list_pictures": "list_images",
    "open_labelled": "open_labeled",
    "unlabelled_pictures": "unlabeled_images",
}


def test_importing_the_room_is_cheap():
    code = (
        "import sys, keras_transfer.data as data; dir(data); data.Examples, data.Augmentation\n"
        "print([n for n in ('keras', 'tensorflow', 'albumentations') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("name", MOVED)
def test_old_names_work_with_a_warning(name):
    new = MOVED[name]
    with pytest.warns(DeprecationWarning, match=f"data.{name} is now keras_transfer.data.{new};"):
        found = getattr(data, name)
    assert found is getattr(data, new)
    assert name not in dir(data)


def test_current_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert all(getattr(data, name) is not None for name in data.__all__)
