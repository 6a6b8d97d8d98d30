"""Runs that die at an exact moment, for tests of resuming."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keras_transfer.utils.checkpoint import Checkpoint


class Killed(Exception):
    """Stands in for the death of the process."""


@contextmanager
def killed_after(epoch: int = 1, part: str = "state") -> Iterator[None]:
    """Expect the run within to die right after the state of this epoch is written.

    Args:
        part: folder of the run, such as `"refit"`, that the state is written into.
    """
    save = Checkpoint.save

    def save_and_die(self, state, *args):
        save(self, state, *args)
        if state["epoch"] == epoch and part in self.folder.parts:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", save_and_die)
        yield


@contextmanager
def copied_after_each_epoch(folder: Path) -> Iterator[None]:
    """Copy the run within to `folder/after-EPOCH`, as a death after that epoch would leave it."""
    save = Checkpoint.save

    def save_and_copy(self, state, *args):
        save(self, state, *args)
        shutil.copytree(self.folder.parent, folder / f"after-{state['epoch']}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_copy)
        yield
