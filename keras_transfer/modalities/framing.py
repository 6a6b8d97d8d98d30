"""The base of framings: how a model reads examples, as plain data."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class Framing(ABC):
    """How a model reads examples: plain data, without TensorFlow.

    Attributes:
        modality: name of its modality.
        size: height and width of the model's input, such as 224 or `"96x192"`; None leaves it open.
    """

    modality: ClassVar[str]
    size: Any

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether everything but the size is decided."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int | None, ...]:
        """Shape of a model input; None where it differs from batch to batch."""

    @property
    def longest(self) -> tuple[int | None, ...]:
        """Shape of the largest model input."""
        return self.shape

    @property
    def built_size(self) -> Any:
        """The size for which a backbone is built; None where one backbone reads all sizes."""
        return self.size

    @property
    def built_channels(self) -> int | None:
        """Channels for which a backbone is built, if they are not those that it has by default."""
        return None

    @property
    def extent(self) -> str:
        """The size in words."""
        return f"{self.size} px"

    @abstractmethod
    def at(self, size: Any) -> "Framing":
        """Return the same framing for another size."""

    @abstractmethod
    def to_dict(self) -> dict:
        """Return everything but the size of the model's input, as plain data."""

    def recorded(self) -> dict:
        """Return what a run's settings contain of it."""
        return self.to_dict()

    def settings(self) -> dict:
        """Return the size and what `recorded` returns."""
        return {"image_size": self.size, **self.recorded()}

    def settled_as(self, chosen: "Framing") -> "Framing":
        """Return the framing that was chosen for some data, with what this open one says already."""
        return chosen

    @property
    def description(self) -> str:
        """All that is decided, in words: `128 px, crop 0.875`."""
        return f"{self.extent}, {self}" if self.settled else self.extent

    @abstractmethod
    def __str__(self) -> str:
        """Return everything but the size in words, such as `crop 0.875`."""
