"""If a worker is lost or stuck, the others end soon, with a message.

Three mechanisms detect it. A process that dies closes its connections, so the collective operations
of the others fail within seconds. If a machine or link is gone, heartbeats stop, and the engine's
coordination service reports it after `HEARTBEAT_SECONDS`. A process that lives but does not proceed
(because of a hanging disk) is detected by its own `Watch` and those of the others.
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
    "are saved"
)
# Names and words of the engines' errors if another process is gone.
_NAMES = ("UnavailableError", "AbortedError", "DeadlineExceededError", "CancelledError")
_ENGINES = (
    "JaxRuntimeError",
    "XlaRuntimeError",
    "InternalError",
    "UnknownError",
    "FailedPreconditionError",
)
# JAX raises some of them as a ValueError that begins with the name of a status.
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
    """Return True if an engine's error means that another process is gone.

    It compares names, because neither TensorFlow nor JAX is imported here.
    """
    kind, text = type(error).__name__, str(error)
    if kind in _NAMES:
        return True
    engines = kind in _ENGINES or (kind == "ValueError" and _STATUS.match(text))
    return bool(engines) and any(word in text.lower() for word in _WORDS)


@contextlib.contextmanager
def translated(workers):
    """Turn such errors into `WorkerLost` if there are other processes."""
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
    """End this process at once, because an orderly end would wait for the lost workers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_on_abort(workers) -> None:
    """Make `abort()` end this process with exit code 75 and an explanation.

    JAX's runtime aborts from its own thread when its coordination service reports a lost process;
    it accepts no Python function to call instead (jaxlib 0.10: `std::bad_cast`).
    """
    global _aborted  # the handler must exist as long as the process
    line = (
        f"error: Worker {workers.index} of {workers.processes}: another worker was lost. {_HOW}.\n"
    )

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def _aborted(_):
        os.write(2, line.encode())
        os._exit(WorkerLost.exit_code)

    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)  # type: ignore[name-defined]


def stall_seconds() -> float:
    """Return the longest time without a step: `KERAS_TRANSFER_STALL_SECONDS`, or half an hour.

    Raises:
        InputError: if it is not a number above 0.
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
    """Ends the process if no step finishes for too long while it is watching.

    A worker that waits for a stuck one is stuck too, so each only needs its own clock.
    """

    def __init__(self):
        self.limit = stall_seconds()
        self._last = time.monotonic()

    def beat(self) -> None:
        """Report that a step finished."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def watching(self):
        """A context in which `beat` must be called regularly."""
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
                    f"error: no step finished for {still:.0f} s ({STALL}={self.limit:g}): this worker is "
                    f"stuck, or waits for one that is stuck. {_HOW}.",
                    file=sys.stderr,
                )
                leave(WorkerLost.exit_code)
