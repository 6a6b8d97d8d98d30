"""Images as a `Modality`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from keras_transfer.errors import InputError
from keras_transfer.modalities import Framing, Modality
from keras_transfer.modalities.image import augment, decode
from keras_transfer.modalities.image import framing as framings
from keras_transfer.modalities.image.bands import RGB, fits, is_type, misfit
from keras_transfer.modalities.image.formats import (
    EXTENSIONS,
    NAMES,
    SERVED,
    format_of,
    reader_versions,
)
from keras_transfer.modalities.image.sketch import NEAR, ODDITIES
from keras_transfer.modalities.reading import digest
from keras_transfer.modalities.statistics import binned, counted, described, histogram, spread
from keras_transfer.utils.image_sizes import sides

_SIDES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # bins of the histogram, in pixels
_SLICES = (64, 128, 256, 512, 1024, 2048)
RULES = 7  # of checking: increase it when `examine` changes what it finds in the same file


class Images(Modality):
    """Images: decoded, turned upright, cropped to a square and resized."""

    name, one, many = "image", "image", "images"
    extensions = EXTENSIONS
    formats = NAMES
    facts = decode.Facts
    framed_by = ("image_size", "crop", "channels", "depth")
    mirrors = True
    decoded = (("uint8", [None, None, 3]),)
    served = "encoded images, rotates them according to EXIF,"
    served_decoded = (
        "`serving_default` (float32) and `serve_uint8` take pixel values 0–255, not scaled to 0–1."
    )
    file_example = "image.jpg"
    sketched = 1
    sketched_by = "imagehash"
    near = NEAR
    oddities = ODDITIES
    unreadable = f"cannot be read as an image ({SERVED})"
    page = Path(__file__).with_name("page.js")

    @property
    def rules(self) -> str:
        return f"{RULES}, {reader_versions()}, {Image.MAX_IMAGE_PIXELS} pixels"

    def examine(self, contents: bytes) -> decode.Facts:
        return decode.examine(contents)

    def statistics(self, columns: Mapping) -> dict[str, dict]:
        turned = columns["orientation"] >= 5
        widths = np.where(turned, columns["height"], columns["width"])
        heights = np.where(turned, columns["width"], columns["height"])
        orientations = counted(columns["orientation"])
        return {
            "shorter_side": histogram(np.minimum(widths, heights), _SIDES),
            "width": spread(widths),
            "height": spread(heights),
            "formats": counted(columns["format"]),
            "modes": counted(columns["mode"]),
            "bits": counted(columns["bits"]),
            "channels": counted(columns["channels"]),
            "exif_orientations": {str(value): count for value, count in orientations.items()},
        }

    def describe_statistics(self, statistics: dict) -> Iterator[str]:
        width, height = statistics["width"], statistics["height"]
        if width:
            yield ""
            names = {"least": "minimum", "median": "median", "greatest": "maximum"}
            sizes = ", ".join(f"{n} {width[k]} x {height[k]}" for k, n in names.items())
            yield f"width x height: {sizes}"
        titles = {"shorter_side": "shorter side", "formats": "format", "modes": "mode"}
        yield from described(statistics, {**titles, "exif_orientations": "EXIF orientation"})

    def sizes(self, columns: Mapping) -> list[str]:
        return binned(np.minimum(columns["width"], columns["height"]), _SLICES, "px")

    def looks_right(self, start: bytes) -> bool:
        return format_of(start) is not None

    def open(self, contents: bytes):
        from keras_transfer.modalities.image.opened import open_contents

        return open_contents(contents)

    def whole(self, opened, framing=None) -> np.ndarray:
        return opened.pixels(1, framing and framing.reading)

    def drawn(self, examples) -> Callable:
        return examples.images.decoded

    def open_decoded(self, example):
        from keras_transfer.modalities.image.opened import open_pixels

        return open_pixels(example)

    def check_decoded(self, example) -> str | None:
        if getattr(example, "dtype", None) != np.uint8:
            return f"not uint8 but {getattr(example, 'dtype', type(example).__name__)}"
        if example.ndim != 3 or 0 in example.shape:
            return f"not of shape [height, width, channels] but {list(example.shape)}"
        return None

    def encode(self, example) -> bytes:
        return decode.encode(example)

    def for_server(self, contents: bytes) -> bytes:
        facts = decode.examine(contents)
        if facts.fault is not None or facts.served:
            return contents
        return decode.lossless(contents)

    def misfits(self, columns: Mapping, framing) -> dict[int, str]:
        channels = framing.reading.channels
        found = zip(columns["channels"].tolist(), columns["mode"].tolist())
        return {
            row: misfit(count, channels)
            for row, (count, mode) in enumerate(found)
            if not fits(count, is_type(mode.decode()), channels)
        }

    def digest(self, example) -> bytes:
        return digest(repr(example.shape).encode(), np.ascontiguousarray(example).data)

    def caster(self, split: str, **facts):
        from keras_transfer.modalities.image.arrays import Cast

        return Cast(split)

    def framing(self, values: Mapping) -> Framing:
        # Models of 0.1 had no other depth and number of channels.
        return framings.Framing(
            crop=values.get("crop", framings.DEFAULT_CROP),
            depth=values.get("depth", "full"),
            channels=values.get("channels"),
        )

    def choose_framing(self, data, size: int | str) -> tuple[Framing, str]:
        crop, reason = framings.choose_crop(data, size)
        return framings.Framing(size, crop), reason

    def default_framing(self, data, size) -> Framing:
        return framings.Framing(size, framings.DEFAULT_CROP)

    def other_framings(self, data, framing) -> Sequence[Framing]:
        crops = framings.crops(data, framing.size)
        return [replace(framing, crop=crop) for crop in crops if crop != framing.crop]

    def smaller_framings(self, framing) -> Sequence[Framing]:
        return [framing.at(size) for size in framings.smaller_sizes(framing.size)]

    def preparation(self, reader, views: Sequence, framing, memory=None):
        from keras_transfer.modalities.image.preparation import Preparation

        return Preparation(reader, views, framing, memory)

    def resolve_augmentation(self, augmentation):
        return augment.resolve_augmentation(augmentation)

    def default_augmentation(self, data, size: int | str) -> str:
        """Leave the crops out where images are enlarged twofold or more: few pixels tell little."""
        side = framings.median_side(data)
        return "flip" if side is not None and 2 * side <= min(sides(size)) else "light"

    def stronger_augmentation(self, augmentation):
        variation = augment.resolve_augmentation(augmentation)
        if isinstance(variation, augment.Augmentation):
            return replace(variation, rand_augment=1.0)
        return "randaugment"  # for a layer or a transform of albumentations

    def mixer(self, mix) -> Callable:
        from keras_transfer.modalities.image.prepare import mixer

        return mixer(mix)

    def varier(self, variation, framing) -> Callable:
        from keras_transfer.modalities.image.prepare import vary_in_graph
        from keras_transfer.modalities.image.transforms import Albumentations

        if isinstance(variation, Albumentations):
            raise InputError(
                "The tf.data service runs without Python and thus without albumentations: choose a "
                "preset, an Augmentation or a Keras layer."
            )
        if variation is None:
            decode = self.decoder(framing)
            return lambda contents, seed: decode(contents)
        return lambda contents, seed: vary_in_graph(contents, variation, framing, seed)

    def decoder(self, framing) -> Callable:
        from keras_transfer.modalities.image.prepare import fit_center_in_graph

        size, crop = framing.square
        return lambda contents: fit_center_in_graph(contents, size, crop, framing.reading)

    def reading_notes(self, columns: Mapping, framing) -> Iterator[str]:
        bits = columns["bits"][columns["bits"] > 8]
        if len(bits):
            depth = framing.reading.depth
            how = "the range that each uses" if depth == "auto" else "that of 16 bits"
            yield (
                f"{len(bits)} greyscale images of more than 8 bits, of which {bits.min()} to "
                f"{bits.max()} are used, are scaled by {how} (depth {depth})"
            )

    def sketch(self, opened):
        from keras_transfer.modalities.image.sketch import sketch

        return sketch(opened)

    def requests(self, framing) -> dict:
        from keras_transfer.modalities.image.requests import requests

        return requests(framing)

    def trial(self, example, framing) -> tuple:
        from keras_transfer.modalities.image.requests import trial

        return trial(example, framing)

    def noise(self, framing, count: int = 2) -> list:
        rows, columns, channels = framing.shape
        rng = np.random.default_rng(0)
        down, across = -(-rows // 8), -(-columns // 8)
        coarse = rng.uniform(0, 255, (count, 8, 8, channels)).repeat(down, 1).repeat(across, 2)
        fine = coarse[:, :rows, :columns] + rng.normal(0, 20, (count, rows, columns, channels))
        return list(np.clip(fine, 0, 255).astype("uint8"))

    def page_input(self, framing, examples=()) -> dict:
        if framing.reading.channels != RGB.channels:
            raise InputError(
                f"A web page takes photographs, but the model reads {framing.reading.channels} "
                "channels: choose another --format."
            )
        (rows, columns, _), (_, crop) = framing.shape, framing.square
        return {"rows": rows, "columns": columns, "share": rows / round(rows / crop)}

    def describe_input(self, framing, count: str) -> str:
        batch = "one image at a time, [1" if count == "1" else "[N"
        kind = (
            "RGB"
            if framing.reading.channels == RGB.channels
            else "the channels in the files' order"
        )
        return f"Input `images`: uint8 {batch}, {', '.join(map(str, framing.shape))}], {kind}."

    def describe_preparation(self, framing) -> str:
        (rows, columns, channels), (_, crop) = framing.shape, framing.square
        resize = f"resize(({columns}, {rows}), Image.Resampling.BILINEAR, box=box)"
        first, before, after = (
            "rotate them according to EXIF, then crop the center and scale it in one step:",
            "from PIL import Image, ImageOps\n\n"
            'image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")\n',
            f"image = image.{resize}\n",
        )
        if channels != RGB.channels:
            first, before, after = (
                "crop the center and scale it in one step, one channel after the other:",
                "import numpy as np\nfrom PIL import Image\n\n"
                f"values = np.load(path)  # uint8 [height, width, {channels}]\n"
                "bands = [Image.fromarray(band) for band in np.moveaxis(values, -1, 0)]\n"
                "image = bands[0]\n",
                f"image = np.stack([band.{resize} for band in bands], axis=-1)\n",
            )
        return (
            f"Prepare images as in training:\n{first}\n\n"
            f"```python\n{before}"
            f"unit = min(image.width / {columns}, image.height / {rows}) * {rows} / {round(rows / crop)}\n"
            f"width, height = {columns} * unit, {rows} * unit\n"
            "left, top = (image.width - width) / 2, (image.height - height) / 2\n"
            "box = (left, top, left + width, top + height)\n"
            f"{after}```"
        )

    def describe_limits(self, framing) -> str:
        return (
            f"Images are cropped to their center and scaled to {framing.size} px, so small "
            "objects and objects near the edge may be missed."
        )


MODALITY = Images()
