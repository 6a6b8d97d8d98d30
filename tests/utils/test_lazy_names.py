"""Keyword arguments in a dataclass."""

from dataclasses import dataclass

import pytest

from keras_transfer.errors import InputError
from keras_transfer.utils.names import make_options


@dataclass(frozen=True)
class Some:
    epochs: int = 1
    batch_size: int = 32


def test_options_become_a_dataclass():
    assert make_options(Some, {"epochs": 3}, "train") == Some(3, 32)


def test_unknown_options_are_refused():
    with pytest.raises(
        InputError, match=r"Unknown option 'epoch' of train\. Did you mean epochs\?"
    ):
        make_options(Some, {"epoch": 3}, "train")
    with pytest.raises(InputError, match=r"'z' of train\. Choose from epochs, batch_size"):
        make_options(Some, {"z": 3}, "train")
