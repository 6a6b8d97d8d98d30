"""Utilities: atomic file writes, the console and its tables, statistics, the machine, looked-up names.

Nothing here knows about models or data. Modules may import only `errors`, and import TensorFlow or
rich inside functions.
"""
