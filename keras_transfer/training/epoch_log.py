"""The numbers of each epoch as event files for TensorBoard."""

import os
from pathlib import Path


class EpochLog:
    """Writes the numbers of each epoch as event files for TensorBoard, which need not be installed.

    Training and validation have two folders, `train` and `validation`, so that TensorBoard draws a
    metric of both into one plot. Learning rate and seconds are in the first.

    Args:
        folder: created if it does not exist; a resumed run adds to it.
    """

    def __init__(self, folder: Path):
        import tensorflow as tf

        self._writers = {
            part: tf.summary.create_file_writer(os.fsencode(folder / part))
            for part in ("train", "validation")
        }

    def __call__(self, row: dict) -> None:
        """Write a row of the history."""
        for key, value in row.items():
            if key in ("epoch", "phase") or value == "":
                continue
            part = "validation" if key.startswith("val_") else "train"
            with self._writers[part].as_default(step=row["epoch"]):
                _scalar(key.removeprefix("val_"), value)
        for writer in self._writers.values():
            writer.flush()


def _scalar(name, value):
    """Write the same as `tf.summary.scalar`, which needs the package tensorboard."""
    import tensorflow as tf

    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
