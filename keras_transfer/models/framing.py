"""How a model reads examples: its framing, and who decides it."""

from collections.abc import Callable

import keras

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, find_modality, framing_from, framing_of_shape
from keras_transfer.models.stages import Backbone, require_model
from keras_transfer.models.tokens import TextEmbedding
from keras_transfer.utils.console import say
from keras_transfer.utils.image_sizes import size_of


def framing_of(model: keras.Model, image_size: int | str | None = None, data=None) -> Framing:
    """Return how examples are turned into inputs of a model or a backbone.

    Args:
        image_size: by default the model's.
        data: decides the framing of a model that was built without one; the model stays as it is.
    """
    require_model(model)
    size = image_size or size_of(model.input_shape)
    known = (backbone.framing for backbone in _backbones(model))
    known = [one for one in known if one is not None]
    framing = next((one for one in known if one.settled), None)
    if framing is None:
        framing = (known or [framing_of_shape(model.input_shape)])[0]
        if data is not None:
            chosen, _ = data.modality.choose_framing(data, size_of(model.input_shape))
            framing = framing.settled_as(chosen)
    return framing.at(size)


def settle_framing(
    model: keras.Model, data, decide: Callable[[Callable], tuple] = lambda choose: choose()
) -> None:
    """Let the data decide the framing of a model that was built without one, and print why.

    Args:
        model: from `build_model`.
        data: an `ImageData` or `Examples`.
        decide: calls the function it gets, for example on one worker only.
    """

    def choose():
        framing, reason = data.modality.choose_framing(data, size_of(model.input_shape))
        return known.settled_as(framing).to_dict(), reason

    known = framing_of(model)
    data.modality.require_framing(known)
    _require_first(data, known)
    if known.settled:
        for note in data.modality.notes(data, known):
            say(note)
        return
    values, reason = decide(choose)
    framing = framing_from(values)
    say(f"{framing}: {reason}")
    set_framing(model, framing)


def _require_first(data, framing):
    """Raise InputError if the model cannot read the first example of some data, before it is trained."""
    for part in getattr(data, "examples", {"all": data}).values():
        if not len(part):
            continue
        try:
            part.images.read(0, lambda one: data.modality.whole(one, framing))
        except InputError:
            raise
        except ValueError as error:
            name, text = part.images.names[0], str(error)
            raise InputError(text if text.startswith(name) else f"{name}: {text}.") from None


def set_framing(model: keras.Model, framing: Framing) -> None:
    """Set how examples are turned into a model's inputs."""
    for backbone in _backbones(model):
        backbone.framing = framing.at(None)


def limit_tokens(model: keras.Model, tokens: int) -> None:
    """Set how many tokens a model reads of a text.

    Raises:
        InputError: the model does not read texts, or not so many tokens.
    """
    framing = framing_of(model)
    modality = find_modality(framing.modality)
    if not modality.any_length:
        raise InputError(
            f"tokens is for texts, but '{model.name}' reads {modality.many}: leave it out."
        )
    layers = (layer for part in _backbones(model) for layer in part.layers)
    known = [x.settings["length"] for x in layers if isinstance(x, TextEmbedding)]
    if known and tokens > min(known):
        raise InputError(
            f"'{model.name}' reads at most {min(known)} tokens of a text, not {tokens}."
        )
    set_framing(model, framing.at(tokens))


def modality_of(model: keras.Model):
    """Return the `Modality` of the examples that a model reads; that of images if it is open."""
    return find_modality(framing_of(model).modality)


def _backbones(model):
    return [part for part in [model, *model.layers] if isinstance(part, Backbone)]
