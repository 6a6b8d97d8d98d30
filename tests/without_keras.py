"""Imported first: this process finds neither Keras nor keras_transfer.

TensorFlow imports Keras where it finds it, so what is to run with TensorFlow alone must not find it.
"""

import importlib.machinery
import sys


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in ("keras", "keras_transfer")
        return None if hidden else super().find_spec(name, path, target)


sys.meta_path = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
