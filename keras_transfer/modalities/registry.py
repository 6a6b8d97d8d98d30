"""Which modalities there are, and which one files, values or settings have."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_transfer.errors import InputError
from keras_transfer.modalities.framing import Framing
from keras_transfer.utils.image_sizes import size_of

if TYPE_CHECKING:
    from keras_transfer.modalities.modality import Modality

_MOST = 0.9  # of the files that have a known extension
# Name → module that defines MODALITY.
_ROOMS = {
    "image": "keras_transfer.modalities.image.modality",
    "audio": "keras_transfer.modalities.audio.modality",
    "text": "keras_transfer.modalities.text.modality",
}


def find_modality(name: str) -> "Modality":
    """Return a modality by its name."""
    return importlib.import_module(_ROOMS[name]).MODALITY


def modalities() -> "list[Modality]":
    """Return all modalities."""
    return [find_modality(name) for name in _ROOMS]


def modality_in_memory(values: Sequence, facts: Mapping) -> "Modality":
    """Return the modality of values in memory, about which some facts are given, such as `rate`."""
    return next(
        (room for room in modalities() if room.holds(values, facts)), find_modality("image")
    )


def open_framing(
    image_size: "int | str | Framing | None" = None,
    crop: float | None = None,
    tokens: int | None = None,
    **reading,
) -> Framing:
    """Return an image size as a framing of which nothing else is known, and a framing as it is.

    Args:
        crop: what the user wants to see of images; None leaves the framing open.
        reading: `depth` and `channels` of images, see `image.framing.Framing`.
        tokens: largest number of tokens of a text; None for examples of other kinds, or to leave it open.
    """
    from keras_transfer.modalities.image import framing

    if tokens is not None:
        return find_modality("text").open_framing(tokens)
    if isinstance(image_size, Framing):
        return image_size
    return framing.Framing(image_size, crop, **reading)


def framing_of_shape(shape: Sequence) -> Framing:
    """Return the framing of which nothing is known but the shape of the model's input, [N, …].

    That of images stands for all modalities that become images.
    """
    name = next((name for name in _ROOMS if find_modality(name).axes == len(shape)), "image")
    framing = find_modality(name).open_framing(size_of(shape))
    if name == "image" and len(shape) == 4 and shape[-1] is not None:
        from keras_transfer.modalities.image.framing import Framing as Images

        return Images(size_of(shape), channels=None if shape[-1] == 3 else shape[-1])
    return framing


def framing_from(values: Mapping) -> Framing:
    """Return the framing in a run's or a model's settings, which are those of images by default."""
    return find_modality(values.get("modality", "image")).framing(values)


def kinds_of_files(paths: Sequence[str | os.PathLike]) -> dict[str, list]:
    """Return name of a modality → the files that have one of its extensions.

    Notes and captions beside a dataset do not count: kinds that are found there (`Offers.beside`) are
    left out, unless there is hardly anything else.
    """
    known = {end: name for name in _ROOMS for end in find_modality(name).extensions}
    kinds: dict[str, list] = {}
    for path in paths:
        if (name := known.get(os.path.splitext(path)[1].lower())) is not None:  # noqa: PTH122 - fast
            kinds.setdefault(name, []).append(path)
    main = {name: files for name, files in kinds.items() if not find_modality(name).beside}
    enough = (1 - _MOST) * sum(map(len, kinds.values()))
    return main if sum(map(len, main.values())) > enough else kinds


def modality_of_files(paths: Sequence[str | os.PathLike]) -> "Modality":
    """Return the modality that the extensions of files tell; that of images if none is known.

    A few files of another kind, such as the cover of a record, do not count.

    Raises:
        InputError: if no modality has most of the files, or a package that reads them is missing.
    """
    kinds = kinds_of_files(paths)
    most = max(kinds, key=lambda name: len(kinds[name]), default="image")
    modality = find_modality(most)
    if len(kinds) > 1 and len(kinds[most]) < _MOST * sum(map(len, kinds.values())):
        found = " and ".join(
            f"{len(files)} {find_modality(name).many} ({Path(files[0]).name}, …)"
            for name, files in kinds.items()
        )
        folder = os.path.commonpath([Path(path).parent for path in paths])
        raise InputError(
            f"{folder} contains {found}: a dataset has one kind; move the others away."
        )
    modality.require()
    return modality


def known_extensions() -> frozenset[str]:
    """Return the extensions of files of all modalities, lower case, with the dot."""
    return frozenset().union(*(find_modality(name).extensions for name in _ROOMS))


def kinds_of_examples(paths: Sequence[str | os.PathLike] = ()) -> str:
    """Return what some files contain, such as `image`; all that they could if no extension tells it."""
    names = [find_modality(name).one for name in kinds_of_files(paths) or _ROOMS]
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def resolve_augmentation(augmentation) -> Any:
    """Return an augmentation of any modality: checks a setting before the data are known.

    Raises:
        InputError: if no modality knows it; the message is that of images.
    """
    first: InputError | None = None
    for name in _ROOMS:
        try:
            return find_modality(name).resolve_augmentation(augmentation)
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def plain_augmentation(augmentation) -> str | dict:
    """Return the value for a config file: a name as it is, else a dict."""
    resolved = resolve_augmentation(augmentation)
    named = isinstance(augmentation, str) and not augmentation.endswith((".yaml", ".yml", ".json"))
    return augmentation if named else resolved.to_dict()
