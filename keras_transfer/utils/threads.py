"""Work that the threads of this process share."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def for_each(function: Callable[[int], None], count: int) -> None:
    """Call `function` with 0 to `count` - 1, in this thread and others, and return when all calls have.

    An error of one call ends the others and is raised.
    """
    numbers = iter(
        range(count)
    )  # each number is taken once, because one thread at a time runs Python

    def work():
        try:
            for number in numbers:
                function(number)
        except BaseException:
            for _ in numbers:  # leaves none for the other threads
                pass
            raise

    helpers = []
    try:
        for _ in range(min(count, os.cpu_count() or 1) - 1):
            helpers.append(_pool().submit(work))
    except RuntimeError:  # Python shuts down: this thread does it alone
        pass
    try:
        work()
    finally:
        errors = [helper.exception() for helper in helpers]
    for error in filter(None, errors):
        raise error


@cache
def _pool():
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "keras_transfer")
