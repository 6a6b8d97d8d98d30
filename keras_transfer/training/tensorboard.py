"""Epochs as TensorBoard shows them. TensorFlow alone writes them; TensorBoard need not be installed."""

from pathlib import Path

import tensorflow as tf

_PLAIN = ("epoch", "phase")


class EpochLog:
    """Writes the numbers of each epoch as event files, to be seen while it trains.

    Training and validation lie in two folders, `train` and `validation`, so that TensorBoard draws
    each measure of both into one figure; the learning rate and the seconds are in the first.

    Args:
        folder: is made; what is there stays (a resumed run goes on).
    """

    def __init__(self, folder: Path):
        self._writers = {
            part: tf.summary.create_file_writer(str(folder / part))
            for part in ("train", "validation")
        }

    def __call__(self, row: dict) -> None:
        """Keeps a row of the history."""
        for key, value in row.items():
            if key in _PLAIN or value == "":
                continue
            part = "validation" if key.startswith("val_") else "train"
            with self._writers[part].as_default(step=row["epoch"]):
                _scalar(key.removeprefix("val_"), value)
        for writer in self._writers.values():
            writer.flush()


def _scalar(name, value):
    """What `tf.summary.scalar` writes, which the package tensorboard brings along."""
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    )
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
