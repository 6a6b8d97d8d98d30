"""The interface between one kind of example and all other code."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_transfer.errors import InputError
from keras_transfer.modalities.framing import Framing
from keras_transfer.modalities.offers import Offers
from keras_transfer.modalities.registry import find_modality, open_framing
from keras_transfer.utils.image_sizes import sides, size_of


class Modality(Offers, ABC):
    """Everything that other code must know about one kind of example.

    Attributes:
        name: in models, runs and messages: `"image"`.
        one, many: nouns for messages: `"image"`, `"images"`.
        extensions: of files, lower case, with the dot.
        formats: the same in words, for messages.
        facts: the NamedTuple that `examine` returns. It has `digest` (bytes), `fault` (why the file
            cannot be used, or None) and `flaw` (why the model sees nothing in it, or None); and
            `served` (1, or 0 if a served model cannot read it) where files differ in that.
        framed_by: settings of a training that say how examples become inputs.
        mirrors: whether an example may be mirrored.
        rate_scale: of the default learning rates: higher for what is unlike the backbone's training.
        image_size: for which networks of the table are built by default; None is that of their
            pretraining.
        unreadable: what a served model answers for bytes that it cannot read.
        axes: number of axes of a batch of model inputs.
        any_length: whether inputs may differ in length from batch to batch.
        reads: the kind of backbone that reads them, one of `models.sources.presets.KINDS`.
        input_name: of the model's input.
        input_dtype: dtype in which the examples are prepared.
        decoded: (dtype, shape) of each part of a whole decoded example, see `whole`.
    """

    name: str
    one: str
    many: str
    extensions: frozenset[str]
    formats: str
    facts: Any
    framed_by: tuple[str, ...]
    mirrors: bool
    rate_scale: float = 1.0
    image_size: int | None = None
    unreadable: str
    axes: int = 4
    any_length: bool = False
    reads: str = "image"
    input_name: str = "images"
    input_dtype: str = "uint8"
    decoded: Sequence[tuple[str, list]]

    # -- files

    @property
    @abstractmethod
    def rules(self) -> str:
        """What the facts depend on besides the file, such as a decoder's version."""

    def require(self) -> None:
        """Raise InputError if a package that reads such files is not installed."""

    @abstractmethod
    def examine(self, contents: bytes) -> Any:
        """Return the facts about the bytes of a file, without a digest; nothing is raised."""

    @abstractmethod
    def statistics(self, columns: Mapping) -> dict[str, dict]:
        """Return statistics of checked files, as plain data.

        Args:
            columns: name of a fact → its values, see `data.files.Checked`.
        """

    @abstractmethod
    def describe_statistics(self, statistics: dict) -> Iterator[str]:
        """Yield these statistics as lines of text."""

    @abstractmethod
    def sizes(self, columns: Mapping) -> list[str]:
        """Return the bin of each checked example by its size, such as `"64–127 px"`; see `statistics`."""

    @abstractmethod
    def looks_right(self, start: bytes) -> bool:
        """Return whether a file that begins with these 12 bytes is of this kind, whatever its name."""

    @abstractmethod
    def open(self, contents: bytes) -> Any:
        """Return an example of which only the header is read, if possible, for `preparation`.

        Raises:
            ValueError: if the bytes cannot be read.
        """

    @abstractmethod
    def whole(self, opened, framing: Any = None) -> Any:
        """Return an opened example decoded, as `trial` and `exported_inputs` take it.

        Args:
            framing: of the model that reads it; None for the example as it is shown.
        """

    @abstractmethod
    def open_decoded(self, example) -> Any:
        """Return a decoded example, as `whole` returns it, like `open`."""

    @abstractmethod
    def check_decoded(self, example) -> str | None:
        """Return why a decoded example cannot be used; None if it can."""

    @abstractmethod
    def encode(self, example) -> bytes:
        """Return a decoded example as a file from which nothing is lost."""

    def for_server(self, contents: bytes) -> bytes:
        """Return a file that a served model reads: the same, or the same example encoded otherwise."""
        facts = self.examine(contents)
        if facts.fault is not None or getattr(facts, "served", True):
            return contents
        return self.encode(self.whole(self.open(contents)))

    def misfits(self, columns: Mapping, framing: Any) -> dict[int, str]:
        """Return row → why a model with a framing cannot read a checked file that is not faulty.

        Args:
            columns: see `statistics`.
        """
        return {}

    def reading_notes(self, columns: Mapping, framing: Any) -> Iterator[str]:
        """Yield facts about how a model with a framing reads checked files."""
        yield from ()

    @abstractmethod
    def digest(self, example) -> bytes:
        """Return a digest of a decoded example, 16 bytes."""

    @abstractmethod
    def caster(self, split: str, **facts) -> Any:
        """Return what turns values in memory into decoded examples, see `image.arrays.Cast`."""

    def holds(self, values: Sequence, facts: Mapping) -> bool:
        """Return whether values in memory, of which some facts are given, are such examples.

        Images are what no other modality takes.
        """
        return False

    # -- framing

    @abstractmethod
    def framing(self, values: Mapping) -> Framing:
        """Return the framing that `Framing.to_dict` wrote."""

    def open_framing(self, size: Any) -> Framing:
        """Return the framing of a model of which nothing else is known."""
        return open_framing(size)

    @abstractmethod
    def choose_framing(self, data, size: Any) -> tuple[Framing, str]:
        """Return the framing that suits the training examples, and the reason in words.

        Args:
            data: an `ImageData`, or `Examples`.
        """

    @abstractmethod
    def default_framing(self, data, size: Any) -> Framing:
        """Return the framing for data if none is given: as it was in 0.1 for images."""

    def other_framings(self, data, framing: Any) -> Sequence[Framing]:
        """Return framings of the same size that are worth comparing with one, for some data."""
        return ()

    def larger_framings(self, framing: Any) -> Sequence[Framing]:
        """Return framings of larger sizes that are worth comparing with the default one."""
        return ()

    def smaller_framings(self, framing: Any) -> Sequence[Framing]:
        """Return framings of smaller sizes that are worth comparing with one, the largest first."""
        return ()

    # -- tensors

    def model_input(self, name: str, shape: Sequence, size: Any) -> tuple:
        """Return (shape without the first axis, dtype or None for Keras's default, name) of a model's input.

        Args:
            name, shape: of the backbone and of its input, [N, …].
            size: as requested.

        Raises:
            InputError: if the backbone does not take that size.
        """
        built = size_of(shape)
        size = size or built
        if size is None:
            raise InputError(f"Pass image_size: '{name}' accepts any.")
        if built not in (None, size):
            raise InputError(f"This backbone was built for image size {built}, not {size}.")
        return (*sides(size), *shape[-1:]), None, self.input_name

    @abstractmethod
    def preparation(self, reader, views: Sequence, framing: Any, memory=None) -> Any:
        """Return what makes model inputs, see `modalities.image.preparation.Preparation`."""

    @abstractmethod
    def resolve_augmentation(self, augmentation) -> Any:
        """Return the augmentation that a name, a file or an object stands for.

        It has `flip` (whether it may mirror examples) and `to_dict`, and can be a key of a dict.

        Raises:
            InputError: if it is for another modality, or invalid.
        """

    @abstractmethod
    def default_augmentation(self, data, size: Any) -> str:
        """Return the name of the augmentation that suits data if none is given."""

    @abstractmethod
    def stronger_augmentation(self, augmentation) -> Any:
        """Return a stronger variant of an augmentation, for consistency between the two."""

    @abstractmethod
    def mixer(self, mix) -> Callable:
        """Return a graph function (inputs [B, …], labels [B, C], seed [2]) → the same, mixed."""

    def varier(self, variation, framing: Any) -> Callable:
        """Return a graph function (bytes of a file, seed int64 [2]) → model input.

        Args:
            variation: result of `resolve_augmentation`; None for the input as in evaluation.

        Raises:
            InputError: if the modality cannot do that without Python.
        """
        raise InputError(f"The tf.data service prepares images, not {self.many}.")

    # -- export

    @abstractmethod
    def decoder(self, framing: Any) -> Callable:
        """Return a graph function from the bytes of a file to one model input.

        It raises `tf.errors.InvalidArgumentError` for bytes that it cannot read.
        """

    @abstractmethod
    def requests(self, framing: Any) -> dict[str, tuple[list, Callable]]:
        """Return the signatures that take decoded examples.

        Returns:
            Name → (the `tf.TensorSpec`s of its inputs, graph function from these to (model inputs
            [N, …], error [N], "" for valid examples)).
        """

    @abstractmethod
    def trial(self, example, framing: Any) -> tuple[Any, dict]:
        """Return a decoded example as (model input, signature → its inputs, without a first axis).

        The signatures are those of `requests`, and `serve_bytes`.
        """

    @abstractmethod
    def noise(self, framing: Any, count: int = 2) -> list:
        """Return decoded examples that look like nothing, the same each time."""

    def front_end(self, framing: Any) -> tuple[Any, Any] | None:
        """Return (`keras.Input`, model input) of exported files that start before the model input.

        None, by default, where they start from the model input.
        """
        return None

    def exported_inputs(self, examples: Iterable, framing: Any) -> Any:
        """Return the inputs of such a file for decoded examples, [N, …]; None without a front end."""
        return None

    # -- words of a model card

    served: str  # what `serve_bytes` takes
    served_decoded: str  # a sentence about the other signatures
    file_example: str

    @abstractmethod
    def describe_input(self, framing: Any, count: str) -> str:
        """Return a sentence about the input of an exported file: `count` is "1" or "N"."""

    @abstractmethod
    def describe_preparation(self, framing: Any) -> str:
        """Return how to make this input from a file, in Markdown."""

    @abstractmethod
    def describe_limits(self, framing: Any) -> str:
        """Return a sentence about what the model cannot see."""

    # -- reports

    def media(self, contents: bytes) -> tuple[str, bytes] | None:
        """Return (MIME type, bytes) of what a page plays for an example, or None."""
        return None

    # -- framings

    def require_framing(self, framing: Framing) -> None:
        """Raise InputError if a model reads another kind of example.

        While its framing is open, a model for images may become one of any kind that becomes images.
        """
        other = find_modality(framing.modality)
        if other.name != self.name and (framing.settled or other.axes != self.axes):
            raise InputError(
                f"The model reads {other.many}, but these are {self.many}: build a model for them."
            )

    def framing_for(self, framing: "int | str | Framing", data) -> Framing:
        """Return an image size or a framing as a framing that suits some data.

        Raises:
            InputError: if the framing is for another modality.
        """
        framing = open_framing(framing)
        self.require_framing(framing)
        if framing.settled:
            return framing
        return framing.settled_as(self.default_framing(data, framing.size))
