"""The command line: thin commands that read options, call the package and print.

The options of a training are generated from `training.config.TrainConfig`. A command validates its
input before it imports Keras. Modules here may import every other room.
"""

from keras_transfer.cli.main import app, main

__all__ = ["app", "main"]
