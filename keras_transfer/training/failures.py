"""What training itself brings: divergence, full memory, a full disk, interruption."""

import errno
import signal
import threading
from contextlib import contextmanager

from keras_transfer.errors import InputError, said_in


class Diverged(InputError):
    """The loss became NaN or infinite. The run keeps the best model up to then, if there is one."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. What the finished epochs gave is kept; the run can be resumed."""


class Signals:
    """While it is open, SIGTERM ends training like Ctrl-C, and a checkpoint is not cut short.

    Attributes:
        stopped: one has come and was raised. Keras clears up then, and may fail in doing so (on JAX it
            looks for weights that a step has taken over), so that another error arrives.
    """

    def __init__(self):
        self.stopped = False
        self._protected = False
        self._pending = False
        self._before = {}

    def __enter__(self):
        # Python lets only the main thread set handlers; elsewhere signals stay what they were.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_):
        if self._protected:
            self._pending = True
        else:
            self.stopped = True
            raise KeyboardInterrupt

    @contextmanager
    def protected(self):
        """A signal inside takes effect at the end."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False
        if self._pending:
            self._pending = False
            self.stopped = True
            raise KeyboardInterrupt


@contextmanager
def explained(planned, resumable: str):
    """Turns what the user can mend, too little memory or disk too, into an InputError.

    Args:
        planned: the `PlannedPhase` that runs.
        resumable: how to go on, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if said := said_in(error):
            raise said from error
        if _out_of_memory(error):
            raise InputError(_less(planned)) from error
        if _disk_full(error):
            raise InputError(
                f"Could not write the checkpoint: {error}. The epochs before are kept: make room "
                f"and {resumable}."
            ) from error
        raise


def _less(planned):
    size, batch = planned.image_size, planned.batch_size
    where = f"Out of memory in phase '{planned.phase.name}' with batches of {batch} at {size} px: "
    if batch == 1:
        return where + "try a smaller image size or backbone, or freeze more."
    half = batch // 2
    return where + (
        f"try a batch size of {half} (with accumulate={2 * planned.phase.accumulate} the updates "
        "stay about the same)."
    )


def _out_of_memory(error):
    # By name: TensorFlow and JAX are not imported here.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "ResourceExhaustedError"
        or "RESOURCE_EXHAUSTED" in str(error)
    )


def _disk_full(error):
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
