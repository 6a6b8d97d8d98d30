"""Errors for the user: bad input, interruptions, and failures of the machine explained."""

import errno
import re
import signal
import threading
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot work; the message says what, where and what to do.

    The command line prints it as one line and ends with exit code 2.
    """

    exit_code = 2


class ColumnError(InputError):
    """A table has no column of the name that was given or is usual.

    Args:
        problem: the table, and the columns that it lacks and has.
        remedy: what to do in Python; the command line names its own options in place of it.
        options: the options of the command line that would work, `KIND=NAME`; empty if unknown.
    """

    def __init__(self, problem: str, remedy: str, options: tuple[str, ...] = ()):
        super().__init__(f"{problem}: {remedy}.")
        self.problem, self.options = problem, options


class Diverged(InputError):
    """The loss became NaN or infinite. The run contains the best model before that, if any."""


class OutOfSpace(InputError):
    """Memory or disk is full. Finished epochs are saved, and the work can be resumed."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Finished epochs are saved, and the work can be resumed."""


class WorkerLost(Exception):
    """Another process of a distributed training died or cannot be reached."""

    exit_code = 75  # "temporary failure" of sysexits.h: start all workers again with --resume


class Signals:
    """A context in which SIGTERM acts like Ctrl-C, and neither cuts a checkpoint short.

    Attributes:
        stopped: whether one was raised. Keras then cleans up and may fail (on JAX it looks for
            weights that a step has consumed), so that another error arrives.
    """

    def __init__(self):
        self.stopped = False
        self._protected = False
        self._pending = False
        self._before = {}

    def __enter__(self):
        # Python lets only the main thread set handlers; elsewhere signals stay as they are.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            if handler is not None:  # set outside Python, which cannot set it again
                signal.signal(number, handler)

    def _stop(self, *_):
        if self._protected:
            self._pending = True
        else:
            self.stopped = True
            raise KeyboardInterrupt

    @contextmanager
    def protected(self):
        """A context at whose end a signal that came inside takes effect."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False
        if self._pending:
            self._pending = False
            self.stopped = True
            raise KeyboardInterrupt


def input_error_in(error: Exception) -> InputError | None:
    """Return the InputError that one of our functions raised inside TensorFlow, or None."""
    found = re.search(r"InputError: (.+)", str(error))
    return InputError(found[1]) if found else None


@contextmanager
def input_errors():
    """Turn an engine's error about an image that can no longer be read into its InputError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError) and (found := input_error_in(error)):
            raise found from None
        raise


def full_disk(error: Exception) -> OSError | None:
    """Return what the system said of a full disk, if that is why an error was raised."""
    # `explain_writing` has an InputError made of it, and Keras removes its cause.
    cause = error.__context__ if isinstance(error, InputError) else error
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return cause if isinstance(cause, OSError) and cause.errno in full else None


@contextmanager
def explained(planned, how_to_resume: str):
    """Turn failures that the user can fix, such as too little memory or disk, into InputError.

    Args:
        planned: the `PlannedPhase` that runs.
        how_to_resume: ends the message, such as `"continue with --resume"`.
    """
    try:
        yield
    except Exception as error:
        if cause := full_disk(error):
            raise OutOfSpace(
                f"Could not write the checkpoint: {cause}. Earlier epochs are saved: free some disk "
                f"space and {how_to_resume}."
            ) from cause
        if isinstance(error, InputError):
            raise
        if found := input_error_in(error):
            raise found from error
        if _out_of_memory(error):
            raise OutOfSpace(_need_less_memory(planned)) from error
        raise


def _out_of_memory(error):
    # By name, because neither TensorFlow nor JAX is imported here.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "ResourceExhaustedError"
        or "RESOURCE_EXHAUSTED" in str(error)
    )


def _need_less_memory(planned):
    size, batch = planned.image_size, planned.batch_size
    at = f" at {size} px" if size else ""
    where = f"Out of memory in phase '{planned.phase.name}' with batches of {batch}{at}: "
    if batch == 1:
        return where + "try a smaller image size or backbone, or freeze more."
    half = batch // 2
    return where + (
        f"try a batch size of {half} (with accumulate={2 * planned.phase.accumulate} the updates "
        "stay about the same)."
    )
