"""Run the command line with `python -m keras_transfer.cli`."""

from keras_transfer.cli.main import main

main()
