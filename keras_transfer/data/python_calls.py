"""Calls from tf.data's threads into Python, which must end before the interpreter does."""

import atexit
import threading
import time


class PythonCalls:
    """Counts the calls that are under way, and refuses new ones at the end.

    A stream prefetches for as long as it lives. Python kills a thread that asks for the
    interpreter while it shuts down; the dataset then waits for that call for ever, and the
    program hangs at its end (4 of 6 runs that kept a training iterator did).
    """

    def __init__(self):
        self.closing = False
        self.running = set()
        self.last = -float("inf")

    def __enter__(self):
        self.last = time.monotonic()
        if self.closing:
            # TensorFlow takes this for the end of the data: no warning, no more work.
            raise StopIteration("Python is shutting down")
        self.running.add(threading.get_ident())

    def __exit__(self, *_):
        self.running.discard(threading.get_ident())
        self.last = time.monotonic()

    def close(self, quiet_seconds: float = 0.1, most_seconds: float = 10.0) -> None:
        """Refuse new calls; return when none has come for a while."""
        self.closing = True
        end = time.monotonic() + most_seconds
        while time.monotonic() < end and (
            self.running or time.monotonic() < self.last + quiet_seconds
        ):
            time.sleep(0.01)


python_calls = PythonCalls()
# What is registered last is called first at the end, and this is to come before what TensorFlow has
# registered: who imports this module has imported TensorFlow before.
atexit.register(python_calls.close)
