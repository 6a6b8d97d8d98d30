"""A worker that is lost, or stuck, ends the others with a message, and soon.

Three things notice it. A process that dies closes its connections: the others' collective
operation fails within seconds. One whose machine or link is gone sends no heartbeats any more: the
engine's coordination service says so after `HEARTBEAT_SECONDS`. One that lives but does not go on
(a hanging disk) is noticed by `Watch`, its own and the others'.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time

from keras_transfer.errors import InputError, WorkerLost

HEARTBEAT_SECONDS = 30
STALL = "KERAS_TRANSFER_STALL_SECONDS"
_STALL_SECONDS = 1800.0
_HOW = (
    "Look at its output for the cause, then start all workers again with --resume: finished epochs "
    "are kept"
)
# What the engines' errors are called, and what they say, where another process is gone.
_NAMES = ("UnavailableError", "AbortedError", "DeadlineExceededError", "CancelledError")
_ENGINES = (
    "JaxRuntimeError",
    "XlaRuntimeError",
    "InternalError",
    "UnknownError",
    "FailedPreconditionError",
)
# JAX raises some of them as ValueError, which then begins with the name of a status.
_STATUS = re.compile(
    r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): "
)
_WORDS = (
    "heartbeat",
    "coordination service",
    "coordinationservice",
    "collective",
    "gloo",
    "connection closed by peer",
    "connection reset",
    "socket closed",
    "nccl",
    "barrier",
)


def is_loss(error: BaseException) -> bool:
    """True where an engine's error means that another process is gone.

    By name: neither TensorFlow nor JAX is imported here.
    """
    kind, text = type(error).__name__, str(error)
    if kind in _NAMES:
        return True
    engines = kind in _ENGINES or (kind == "ValueError" and _STATUS.match(text))
    return bool(engines) and any(word in text.lower() for word in _WORDS)


@contextlib.contextmanager
def translated(workers):
    """Turns such errors into `WorkerLost`, where there are other processes."""
    try:
        yield
    except Exception as error:
        if workers.processes == 1 or not is_loss(error):
            raise
        first = " ".join(str(error).split())[:200]
        raise WorkerLost(
            f"Worker {workers.index} of {workers.processes}: another worker was lost ({first}). {_HOW}."
        ) from error


def leave(code: int) -> None:
    """Ends this process at once: an orderly end would wait for the workers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_on_abort(workers) -> None:
    """From here on `abort()` in this process ends it with exit code 75 and a line that says why.

    JAX's runtime aborts, from a thread of its own, where its coordination service says that another
    process is gone; it takes no function of ours to call instead (jaxlib 0.10: `std::bad_cast`).
    """
    global _aborted  # the handler must live as long as the process
    line = (
        f"error: Worker {workers.index} of {workers.processes}: another worker was lost. {_HOW}.\n"
    )

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def _aborted(_):
        os.write(2, line.encode())
        os._exit(WorkerLost.exit_code)

    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)  # type: ignore[name-defined]


def stall_seconds() -> float:
    """For how long nothing may move: `KERAS_TRANSFER_STALL_SECONDS`, or half an hour.

    Raises:
        InputError: it is no number above 0.
    """
    text = os.environ.get(STALL)
    if not text:
        return _STALL_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{STALL} is {text!r}: give a number of seconds above 0.")
    return seconds


class Watch:
    """Ends the process where, in `watching`, no step has been finished for too long.

    A worker that waits for a stuck one is stuck itself, so each needs no more than its own clock.
    """

    def __init__(self):
        self.limit = stall_seconds()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Something was done."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def watching(self):
        """From here to its end there must be beats."""
        ended = threading.Event()
        self.beat()
        threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _watch(self, ended):
        while not ended.wait(min(5.0, self.limit / 4)):
            still = time.monotonic() - self._last
            if still > self.limit:
                print(
                    f"error: no step was finished for {still:.0f} s ({STALL}={self.limit:g}): this "
                    f"worker is stuck, or waits for one that is. {_HOW}.",
                    file=sys.stderr,
                )
                leave(WorkerLost.exit_code)
