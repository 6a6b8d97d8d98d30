"""Calls from tf.data's threads into Python, which must end before the interpreter does."""

import atexit
import gc
import sys
import threading
import time


class PythonCalls:
    """Counts the calls in progress, and refuses new ones when Python shuts down.

    A stream prefetches as long as it exists. Python kills a thread that requests the interpreter
    during shutdown; the dataset then waits for that call forever, and the program hangs (4 of 6
    runs that held a training iterator did).
    """

    def __init__(self):
        self.closing = False
        self.running = set()
        self.last = -float("inf")

    def __enter__(self):
        self.last = time.monotonic()
        if self.closing:
            # TensorFlow treats this as the end of the data, without a warning.
            raise StopIteration("Python is shutting down")
        self.running.add(threading.get_ident())

    def __exit__(self, *_):
        self.running.discard(threading.get_ident())
        self.last = time.monotonic()

    def close(self, quiet_seconds: float = 0.1, most_seconds: float = 10.0) -> None:
        """Refuse new calls, end all streams, and return when no call has arrived for a while."""
        self.closing = True
        _end_streams()
        # A stream may have been missed, for example in a frame of a traceback.
        end = time.monotonic() + most_seconds
        while time.monotonic() < end and (
            self.running or time.monotonic() < self.last + quiet_seconds
        ):
            time.sleep(0.01)


def _end_streams():
    """Delete all iterators of tf.data, each of which waits for its calls while Python still runs.

    A call may have started and not be counted yet; on a busy machine that can take longer than any
    timeout.
    """
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    gc.unfreeze()
    everything = gc.get_objects()
    bases = {tf.data.Iterator, tf.distribute.DistributedIterator}
    kinds = {kind for kind in set(map(type, everything)) if bases & set(kind.__mro__)}
    streams = [item for item in everything if type(item) in kinds]
    del everything
    if streams:
        for stream in streams:
            vars(stream).clear()
        gc.collect()  # handles in the cycles of frames that an exception leaves


python_calls = PythonCalls()
# Functions registered last are called first, and this one must run before TensorFlow's: import
# TensorFlow before this module.
atexit.register(python_calls.close)
