"""What only some modalities offer: by default, nothing."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_transfer.modalities.sketch import Oddity


class Offers:
    """A base of `Modality`: what other code uses only where a modality has it."""

    typed = False  # whether an example can be typed on a command line
    beside = False  # whether such files often lie beside examples of another kind
    equal: str = "equal files"  # what duplicates are
    taps: Sequence[str] = ("last", "all")  # what a head may read, see `models.taps`
    # Name of the features of a simple model that users would try first; None without one.
    baseline: str | None = None
    # A digest of the bytes of an example that near-duplicates share; None where only a model sees them.
    alike: Callable[[bytes], bytes] | None = None
    # The version of what `sketch` returns: increase it when that changes.
    sketched = 0
    sketched_by: str | None = None  # an optional package
    near: float = 1.1  # likeness of near-duplicates, see `diagnosis.near.near_pairs`
    oddities: Sequence[Oddity] = ()
    # Why exported files cannot have 8 bits; None if they can.
    not_in_8_bits: str | None = None
    # The script that reads examples on a web page, see `export.page`; None without one.
    page: Path | None = None

    def excerpt(self, reader, index: int, most: int = 70) -> str:
        """Return the first `most` characters of what an example says; "" if it is not written."""
        return ""

    def drawn(self, examples) -> Callable | None:
        """Return a function from a position to an image for people, uint8 [H, W, 3], or None."""
        return None

    def sketch(self, opened) -> Any:
        """Return the `modalities.sketch.Sketch` of an example as `Modality.open` returns it."""
        raise NotImplementedError

    def notes(self, data, framing: Any) -> Iterator[str]:
        """Yield what is worth knowing about a model that reads these data with a settled framing.

        Args:
            data: an `ImageData`, or `Examples`.
        """
        yield from ()

    def baseline_features(self, examples: Sequence) -> Any:
        """Return what makes the features of the baseline, which a linear model reads.

        Args:
            examples: decoded, for training.

        Returns:
            An unfitted transformer of scikit-learn from decoded examples to a matrix.
        """
        raise NotImplementedError

    def occluded(self, example, framing: Any) -> tuple[list[str], Any] | None:
        """Return the parts of an example, and what a model reads without each of them.

        Args:
            example: decoded.

        Returns:
            (the P parts in words, model inputs [1 + P, …] of the whole and without each part); None where
            an example has no parts that can be written.
        """
        return None

    def batch_decoder(self, framing: Any) -> Callable | None:
        """Return a graph function from bytes [N] to (model inputs [N, …], error [N], "" for valid ones).

        None, by default: each example is decoded by `decoder`.
        """
        return None

    def longest_inputs(self, inputs, framing: Any) -> Any:
        """Return model inputs of the shape `framing.longest`."""
        return inputs

    def write_preparation(self, folder: Path, framing: Any) -> None:
        """Write files beside an exported file that say how to make its input."""

    def page_input(self, framing: Any, examples: Sequence = ()) -> dict:
        """Return what this script needs to know, as plain data.

        Args:
            examples: a few of those that the model was trained for, decoded, if they were found.
        """
        raise NotImplementedError
