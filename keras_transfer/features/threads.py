"""How fits of linear models share the cores."""

import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import joblib
from threadpoolctl import ThreadpoolController, threadpool_limits


@contextmanager
def parallel_fits():
    """Run joblib's jobs side by side, each on one core, without convergence warnings.

    This takes a sixth of the time that BLAS needs to share such small products among cores for
    which TensorFlow's threads compete.
    """
    with (
        _quiet(),
        threadpool_limits(1, "blas"),
        joblib.parallel_config("threading", n_jobs=os.cpu_count()),
    ):
        yield


@contextmanager
def shared_fits():
    """Share the products of one large fit among all cores, without convergence warnings.

    SciPy, which makes the steps between two products, has a BLAS of its own. Its threads wait busily for the
    next step, on the cores that NumPy's products need: fits would take twice as long.
    """
    controller = ThreadpoolController()
    paths = [pool["filepath"] for pool in controller.info()]
    of_scipy = [path for path in paths if Path(path).parent.name.startswith("scipy")]
    with _quiet(), controller.select(filepath=of_scipy).limit(limits=1):
        yield


@contextmanager
def _quiet():
    """The weakest regularizations, which cause the warnings, are not chosen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
