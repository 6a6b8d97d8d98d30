"""The command line: thin commands that read options, call the package and print."""

from keras_transfer.cli.main import app, main

__all__ = ["app", "main"]
