"""Images of an evaluation as thumbnails, with where the model looked laid over them."""

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from keras_transfer.reporting import page
from keras_transfer.utils.tables import printable

MOST_BYTES = 3_200_000  # of all thumbnails of a page, as they stand in it
_SIDES = ((60, 176), (250, 128), (None, 80))  # (up to so many thumbnails, pixels of a side)
_QUALITY = 72
_LEVELS = 16  # of heat: four bits a point
_HEAT_SIDE = 14  # points; browsers smooth what they enlarge
_MILD, _HOT = np.array((255, 215, 0, 0)), np.array((225, 0, 70, 185))  # colour and opacity
_MOST_LISTED = 1000  # without an image

STYLE = """
.shots { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) }
.shot { position: relative; aspect-ratio: 1; overflow: hidden; border-radius: .4rem; background: var(--box) }
.shot img { position: absolute; inset: 0; width: 100%; height: 100% } .shot .heat { display: none }
.gallery[data-heat=answer] .heat.answer, .gallery[data-heat=truth] .heat.truth { display: block }
.shots li { content-visibility: auto; contain-intrinsic-size: auto 8.5rem auto 12rem }
.shots figcaption { font-size: .85rem; line-height: 1.35; margin-top: .25rem }
.shots small { display: block } .choice { border: 0; padding: 0; margin: .5rem 0 .8rem }
.choice legend { float: left; padding: 0; margin-right: .75rem }
.choice label { display: inline-block; margin-right: .9rem; padding: .2rem 0; white-space: nowrap }
"""

SCRIPT = """
for (const gallery of document.querySelectorAll(".gallery"))
  for (const choice of gallery.querySelectorAll("input[type=radio]"))
    choice.addEventListener("change", () => { gallery.dataset.heat = choice.value; });
"""


@dataclass(frozen=True)
class Item:
    """An image that is shown, and what is said of it.

    Attributes:
        path: what it is called.
        text: what happened, plain text.
        heats: what may be laid over it → the position of the model's output that it is for: `answer`,
            `truth`.
    """

    path: str
    text: str
    heats: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shot:
    """The pixels of an item.

    Attributes:
        image: as the model sees it, uint8 [S, S, 3].
        heats: name → float [h, w] in 0–1, as `grad_cam` gives it.
    """

    image: np.ndarray
    heats: dict[str, np.ndarray] = field(default_factory=dict)


def items_of(head: dict, kind: str) -> list[Item]:
    """The entries of `mistakes` or `unsure` of an evaluation's head."""
    place = {name: i for i, name in enumerate(head["names"])}
    describe = {"single_label": _class, "multi_label": _label, "regression": _value}[head["task"]]
    return [describe(entry, place) for entry in head.get(kind, ())]


def _class(entry, place):
    label, predicted = entry["label"], entry["predicted"]
    first = f"{printable(predicted)} ({entry['score']:.2f})"
    if label == predicted:
        others = [top for top in entry["top"] if top["label"] != predicted][:1]
        second = "".join(f", {printable(o['label'])} ({o['score']:.2f})" for o in others)
        return Item(entry["path"], f"{first}{second}: right", {"answer": place[predicted]})
    text = f"{first}, but it is {printable(label)} ({entry['label_score']:.2f})"
    return Item(entry["path"], text, {"answer": place[predicted], "truth": place[label]})


def _label(entry, place):
    name, score = printable(entry["name"]), f"{entry['score']:.2f}"
    text = f"misses {name} ({score})" if entry["there"] else f"sees {name} ({score}): not there"
    return Item(entry["path"], text, {"answer": place[entry["name"]]})


def _value(entry, place):
    name = printable(entry["name"])
    text = f"{name}: {entry['value']:.4g} instead of {entry['label']:.4g}"
    return Item(entry["path"], text, {"answer": place[entry["name"]]})


def gallery(name: str, items: Sequence[Item], shots: dict[str, Shot], room: int) -> tuple[str, int]:
    """HTML: a list of images, and of those without room the words.

    Args:
        name: of this list in the page, letters and digits.
        items: in order.
        shots: path → its pixels; items without are listed in words.
        room: most characters for images.

    Returns:
        The list, and how many characters are left.
    """
    imaged, listed = [], []
    count = sum(item.path in shots for item in items)
    side = next(pixels for most, pixels in _SIDES if most is None or count <= most)
    heats, places = set(), None
    for item in items:
        shot = shots.get(item.path) if room else None
        drawn = "" if shot is None else _drawn(item, shot, side)
        if shot is None or len(drawn) > room:
            room = room if shot is None else 0  # in order: none after the first without room
            listed.append(item)
            continue
        room -= len(drawn)
        heats |= shot.heats.keys() & item.heats.keys()
        places = places or next((heat.shape for heat in shot.heats.values()), None)
        imaged.append(drawn)
    parts = []
    if imaged:
        choice = _choice(name, heats, places) if heats else ""
        shown = "\n".join(imaged)
        parts.append(
            f'<div class="gallery" data-heat="answer">{choice}<ol class="shots">\n{shown}\n</ol></div>'
        )
    if listed:
        rows = [(printable(item.path), item.text) for item in listed[:_MOST_LISTED]]
        made = page.table(("image", "what happened"), rows, f"{name}, without images")
        more = f"{len(listed)} more in words" if imaged else f"{len(listed)} images in words"
        parts.append(f"<details><summary>{more}</summary>{made}</details>")
    return "\n".join(parts), room


def _choice(name, heats, places):
    choices = [("answer", "the answer")]
    if "truth" in heats:
        choices.append(("truth", "the true class"))
    choices.append(("none", "nothing (the bare image)"))
    made = "".join(
        f'<label><input type="radio" name="heat-{name}" value="{value}"'
        f"{' checked' * (value == 'answer')}> {text}</label>"
        for value, text in choices
    )
    note = f"Grad-CAM, {places[0]} × {places[1]} places: yellow speaks for it a little, red most."
    return (
        f'<fieldset class="choice"><legend>Mark what speaks for:</legend>{made}</fieldset>'
        + page.paragraph(note, soft=True)
    )


def _drawn(item, shot, side):
    path, text = html.escape(printable(item.path)), html.escape(item.text)
    photo = page.data_uri("image/jpeg", _jpeg(shot.image, side))
    places = "; ".join(
        f"{_SAID[kind]} most at the {_place(heat)}"
        for kind, heat in sorted(shot.heats.items())
        if kind in item.heats and heat.max() > 0
    )
    alt = f"{text}" + (f". {places}" if places else "")
    layers = "".join(
        f'<img class="heat {kind}" src="{page.data_uri("image/png", _heat_png(heat))}" alt="" decoding="async">'
        for kind, heat in sorted(shot.heats.items())
        if kind in item.heats
    )
    name = html.escape(printable(item.path).replace("\\", "/").rpartition("/")[2])
    return (
        f'<li><figure><div class="shot"><img src="{photo}" alt="{alt}" decoding="async">{layers}</div>'
        f'<figcaption>{text}<small class="soft" title="{path}">{name}</small></figcaption>'
        "</figure></li>"
    )


_SAID = {"answer": "The answer is seen", "truth": "the true class is seen"}


def _jpeg(image, side):
    image = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _heat_png(heat):
    """From yellow to red, the more opaque the more heat: a few hundred bytes."""
    if max(heat.shape) > _HEAT_SIDE:
        image = Image.fromarray(heat.astype("float32")).resize((_HEAT_SIDE,) * 2)
        heat = np.asarray(image)
    levels = np.round(np.clip(heat, 0, 1) * (_LEVELS - 1)).astype("uint8")
    image = Image.fromarray(levels, "P")
    ramp = np.linspace(0, 1, _LEVELS)[:, None]
    colours = np.round(_MILD + (_HOT - _MILD) * ramp**1.5).astype("uint8")
    image.putpalette(colours[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=4, transparency=colours[:, 3].tobytes(), optimize=True)
    return buffer.getvalue()


def _place(heat):
    """Where the most heat is, in words."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    row, column = (min(2, int(3 * (i + 0.5) / n)) for i, n in zip((y, x), heat.shape))
    if row == column == 1:
        return "centre"
    words = (("top", "", "bottom")[row], ("left", "", "right")[column])
    return " ".join(word for word in words if word)
