"""Calls from tf.data's threads into Python, which must end before the interpreter does."""

import atexit
import gc
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
        """Refuse new calls, end all streams, and return when no call has come for a while."""
        self.closing = True
        _end_streams()
        # A stream whose handle is kept where it was not found, in a frame of a traceback say.
        end = time.monotonic() + most_seconds
        while time.monotonic() < end and (
            self.running or time.monotonic() < self.last + quiet_seconds
        ):
            time.sleep(0.01)


def _end_streams():
    """Takes the iterators of tf.data from whoever has them: each waits for its calls, while Python lives.

    A call may be on its way and not yet counted; on a busy machine that takes longer than any wait.
    """
    import tensorflow as tf

    gc.unfreeze()
    everything = gc.get_objects()
    bases = {tf.data.Iterator, tf.distribute.DistributedIterator}
    kinds = {kind for kind in set(map(type, everything)) if bases & set(kind.__mro__)}
    streams = [found for found in everything if type(found) in kinds]
    del everything
    if streams:
        for stream in streams:
            vars(stream).clear()
        gc.collect()  # handles in the circles of frames that an exception leaves


python_calls = PythonCalls()
# What is registered last is called first at the end, and this is to come before what TensorFlow has
# registered: who imports this module has imported TensorFlow before.
atexit.register(python_calls.close)
