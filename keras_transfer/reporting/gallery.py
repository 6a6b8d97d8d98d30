"""Thumbnails of images with Grad-CAM maps, and texts with marked words, within a limit on the page's size."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from keras_transfer.modalities.image.bands import select
from keras_transfer.reporting.page import data_uri
from keras_transfer.utils.console import Table, printable

MOST_BYTES = 3_200_000  # of all thumbnails of a page, base64-encoded
_SIDES = ((60, 176), (250, 128), (None, 80))  # (up to this many thumbnails, side in pixels)
_QUALITY = 72
_HEAT_LEVELS = 16  # four bits per point
_HEAT_SIDE = 14  # points; browsers interpolate when they enlarge
_COLD, _HOT = np.array((255, 215, 0, 0)), np.array((225, 0, 70, 185))  # RGB and opacity
_MARK = 60  # bytes of the markup of a word
_STRONGEST, _CLEAR = 4, 0.3  # words that are named, of at least this weight
_MOST_LISTED = 1000  # without a thumbnail


@dataclass(frozen=True)
class Item:
    """An image in a gallery, and what the model predicted for it.

    Attributes:
        path: name of the image.
        text: description of the prediction, plain text.
        outputs: Grad-CAM map that can be shown, `prediction` or `truth` → position of the output
            that it is for.
    """

    path: str
    text: str
    outputs: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Shot:
    """What a page shows of an item.

    Attributes:
        image: as the model sees it, uint8 [S, S, 3]; None if it has parts.
        heats: `prediction` or `truth` → Grad-CAM map, float [h, w] in 0–1, or the weight of each part, float
            [P] in −1 … 1.
        media: (MIME type, bytes) of what can be played, or None.
        parts: such as the words of a text.
    """

    image: np.ndarray | None
    heats: dict[str, np.ndarray] = field(default_factory=dict)
    media: tuple[str, bytes] | None = None
    parts: tuple[str, ...] = ()


class Budget:
    """The size that is left for thumbnails in a page."""

    def __init__(self, left: int = MOST_BYTES):
        self.left = left

    def spend(self, size: int) -> bool:
        """Return whether `size` fits; once something does not fit, nothing else does."""
        self.left = self.left - size if size <= self.left else 0
        return self.left > 0


def gallery_items(head: dict, kind: str) -> list[Item]:
    """Return the `mistakes` or `unsure` entries of one head of an evaluation's document."""
    position = {name: i for i, name in enumerate(head["names"])}
    describe = {"single_label": _class, "multi_label": _label, "regression": _value}[head["task"]]
    return [describe(entry, position) for entry in head.get(kind, ())]


def _class(entry, position):
    label, predicted = entry["label"], entry["predicted"]
    text = f"{printable(predicted)} ({entry['score']:.2f})"
    if label == predicted:
        others = [top for top in entry["top"] if top["label"] != predicted][:1]
        text += "".join(f", {printable(o['label'])} ({o['score']:.2f})" for o in others)
        return Item(entry["path"], f"{text}: correct", {"prediction": position[predicted]})
    text += f", but the label is {printable(label)} ({entry['label_score']:.2f})"
    return Item(entry["path"], text, {"prediction": position[predicted], "truth": position[label]})


def _label(entry, position):
    name, score = printable(entry["name"]), f"{entry['score']:.2f}"
    text = f"misses {name} ({score})" if entry["there"] else f"wrongly predicts {name} ({score})"
    return Item(entry["path"], text, {"prediction": position[entry["name"]]})


def _value(entry, position):
    name = printable(entry["name"])
    text = f"{name}: {entry['value']:.4g} instead of {entry['label']:.4g}"
    return Item(entry["path"], text, {"prediction": position[entry["name"]]})


def gallery(items: Sequence[Item], shots: dict[str, Shot], budget: Budget) -> dict:
    """Return the data of a gallery, for the template.

    Args:
        items: in order.
        shots: path → its pixels.
        budget: of the page; items beyond it, or without pixels, are listed as text.

    Returns:
        `thumbnails` (each `photo` or `words`, `alt`, `heats`, `media`, `text`, `path`, `name`), `kinds` of
        evidence, the `shape` of Grad-CAM maps, or None, and `rest`, a table of the other items, or None.
    """
    count = sum(item.path in shots for item in items)
    side = next(pixels for most, pixels in _SIDES if most is None or count <= most)
    thumbnails, rest, kinds, shape = [], [], set(), None
    for item in items:
        shot = shots.get(item.path)
        thumbnail = _thumbnail(item, shot, side) if shot and budget.left else None
        if shot is None or thumbnail is None or not budget.spend(_size(thumbnail)):
            rest.append(item)
            continue
        thumbnails.append(thumbnail)
        kinds |= {kind for kind, _ in thumbnail["heats"]}
        shape = shape or next((h.shape for h in shot.heats.values() if h.ndim == 2), None)
    rows = [(item.path, item.text) for item in rest[:_MOST_LISTED]]
    return {
        "thumbnails": thumbnails,
        "kinds": sorted(kinds),
        "shape": shape,
        "rest": Table(("example", "prediction"), rows) if rest else None,
        "rest_count": len(rest),
    }


def _size(thumbnail):
    uris = [thumbnail["photo"] or "", thumbnail["media"] or ""]
    uris += [uri for _, uri in thumbnail["heats"] if isinstance(uri, str)]
    return sum(map(len, uris)) + sum(len(word) + _MARK for word, _ in thumbnail["words"])


def _thumbnail(item, shot, side):
    heats = {kind: heat for kind, heat in sorted(shot.heats.items()) if kind in item.outputs}
    if shot.parts:
        return _marked(item, shot, heats)
    places = "; ".join(
        f"{_ALT[kind]} mostly at the {_location(heat)}"
        for kind, heat in heats.items()
        if heat.max() > 0
    )
    path = printable(item.path)
    return {
        "photo": data_uri("image/jpeg", jpeg(shot.image, side)),
        "ratio": shot.image.shape[1] / shot.image.shape[0],
        "words": (),
        "alt": f"{item.text}. {places}" if places else item.text,
        "heats": [(kind, data_uri("image/png", _heat_png(heat))) for kind, heat in heats.items()],
        "media": shot.media and data_uri(*shot.media),
        "text": item.text,
        "path": path,
        "name": path.replace("\\", "/").rpartition("/")[2],
    }


def _marked(item, shot, heats):
    """Return a text whose words are marked by their weight, as a style and in words."""
    words = [
        (
            part,
            "; ".join(f"--{kind}:{max(0.0, float(heat[i])):.2f}" for kind, heat in heats.items()),
        )
        for i, part in enumerate(shot.parts)
    ]
    strongest = {
        kind: [shot.parts[i].strip() for i in np.argsort(-heat)[:_STRONGEST] if heat[i] > _CLEAR]
        for kind, heat in heats.items()
    }
    said = [f"{_ALT[kind]}: {', '.join(found)}" for kind, found in strongest.items() if found]
    path = printable(item.path)
    return {
        "photo": None,
        "words": words,
        "alt": "; ".join(said),
        "heats": [(kind, None) for kind in heats],
        "media": None,
        "text": item.text,
        "path": path,
        "name": path.replace("\\", "/").rpartition("/")[2],
    }


_ALT = {"prediction": "Evidence for the prediction", "truth": "evidence for the true class"}


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    """Return an image, uint8 [H, W, 3], whose longer side has so many pixels, as a JPEG file."""
    pixels = select(pixels, None)  # of other than three channels, the first ones
    height, width = pixels.shape[:2]
    size = round(side * min(1, width / height)), round(side * min(1, height / width))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def _heat_png(heat):
    """Return a PNG of a few hundred bytes, from transparent yellow to opaque red."""
    if max(heat.shape) > _HEAT_SIDE:
        image = Image.fromarray(heat.astype("float32")).resize((_HEAT_SIDE,) * 2)
        heat = np.asarray(image)
    levels = np.round(np.clip(heat, 0, 1) * (_HEAT_LEVELS - 1)).astype("uint8")
    image = Image.fromarray(levels, "P")
    ramp = np.linspace(0, 1, _HEAT_LEVELS)[:, None]
    colors = np.round(_COLD + (_HOT - _COLD) * ramp**1.5).astype("uint8")
    image.putpalette(colors[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=4, transparency=colors[:, 3].tobytes(), optimize=True)
    return buffer.getvalue()


def _location(heat):
    """Return the position of the maximum in words."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    row, column = (min(2, int(3 * (i + 0.5) / n)) for i, n in zip((y, x), heat.shape))
    if row == column == 1:
        return "center"
    words = (("top", "", "bottom")[row], ("left", "", "right")[column])
    return " ".join(word for word in words if word)
