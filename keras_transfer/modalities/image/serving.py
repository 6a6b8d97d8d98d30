"""Decode images in TensorFlow ops alone, as exported models do.

The pixels equal those of `decode.decode`. A file that TensorFlow cannot decode, or would decode wrongly,
is an error. The orientation follows the rules of `decode.orientation_of`.
"""

from functools import partial

import tensorflow as tf
from PIL import Image

from keras_transfer.modalities.image.bands import GRAY, NPY, RGB, TYPES, Reading
from keras_transfer.modalities.image.boxes import REDUCTIONS
from keras_transfer.modalities.image.decode import (
    DCT_METHOD,
    INTEGER_BYTES,
    ORIENTATION_TAG,
    TIFF_STARTS,
)

_HEADER = 34  # bytes of a file that contain all header fields read here
_MAX_PARTS = 4096  # segments or chunks that are searched; a file has a few, rarely hundreds
_ALPHA = {2: 4, 4: 6}  # channels → the type of such PNG files, with transparency as the last
_NPY_HEADER = (
    r"\{'descr': '(.{3})', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \}\s*"
)


def decode_in_graph(contents: tf.Tensor) -> tf.Tensor:
    """Decode a file whole: uint8 [height, width, 3], 0–255; see `open_in_graph`."""
    return open_in_graph(contents)[-1](tf.constant(0))


def open_in_graph(contents: tf.Tensor, reading: Reading = RGB) -> tuple:
    """Read the header of one JPEG, PNG, GIF (first frame), 24-bit BMP, opaque WebP or NumPy file.

    Args:
        contents: string, the bytes of the file.
        reading: what the model reads of it. Two or four channels are in PNG files with transparency
            or in NumPy files, more than four in NumPy files.

    Returns:
        (height int64, width int64, whether it can be reduced while it is decoded, decode). Height
        and width are those of the upright image. `decode(halvings)`, with 0 to 3 halvings, int32,
        returns the pixels, upright: uint8 [height, width, channels] divided by 2^halvings, rounded up.

    Raises:
        tf.errors.InvalidArgumentError: if the bytes cannot be decoded, or have more pixels than
            Pillow's `MAX_IMAGE_PIXELS` when the graph was built.
    """
    data = tf.io.decode_raw(contents, tf.uint8)
    head = _window(data, 0, _HEADER)
    kinds = {
        "jpeg": _same(head[:3], b"\xff\xd8\xff"),
        "png": _same(head[:8], b"\x89PNG\r\n\x1a\n"),
        "gif": _same(head[:4], b"GIF8"),
        "bmp": _same(head[:2], b"BM"),
        "webp": _same(head[:4], b"RIFF") & _same(head[8:12], b"WEBP"),
        "npy": _same(head[:8], NPY + b"\x01\0"),
    }
    channels = reading.channels
    array = _npy_header(contents, head, kinds["npy"])
    width, height = _size(contents, head, kinds, array)
    checks = [*_checks(data, head, kinds, width * height), *_fitting(head, kinds, array, channels)]
    with tf.control_dependencies(checks):
        contents = tf.identity(contents)
    orientation = _orientation(data, kinds)

    def jpeg(ratio):
        return tf.io.decode_jpeg(contents, channels=3, ratio=ratio, dct_method=DCT_METHOD)

    def deep():
        gray = tf.io.decode_png(contents, channels=1, dtype=tf.uint16)
        return tf.repeat(_to_8_bits(gray, reading.depth), 3, axis=-1)

    def others():
        if channels in _ALPHA:
            return tf.io.decode_png(contents, channels=0)
        return tf.io.decode_image(contents, channels=3, expand_animations=False)

    def decode(halvings):
        cases = [(kinds["npy"], lambda: _npy_pixels(contents, array, reading))]
        if channels in (1, 3):
            reduced = [partial(jpeg, ratio) for ratio in (1, *REDUCTIONS)]
            cases.append((kinds["jpeg"], lambda: tf.switch_case(halvings, reduced)))
            cases.append((kinds["png"] & (head[24] == 16) & (head[25] == 0), deep))
        image = tf.case(cases, others)
        ratio = tf.gather(tf.constant([1, *REDUCTIONS], tf.int64), halvings)
        expected = tf.stack([height, width]) + ratio - 1
        same_size = tf.reduce_all(tf.shape(image, tf.int64)[:2] == expected // ratio)
        checked = tf.debugging.Assert(same_size, ["the size differs from the header"])
        with tf.control_dependencies([checked]):
            image = tf.identity(image)
        if channels == 1:
            image = tf.cond(tf.shape(image)[-1] == 1, lambda: image, lambda: _luminance(image))
        return _upright(tf.ensure_shape(image, [None, None, channels]), orientation)

    turned = orientation >= 5
    upright = tf.where(turned, width, height), tf.where(turned, height, width)
    return *upright, kinds["jpeg"], decode


def _checks(data, head, kinds, pixels):
    """Yield assertions: TensorFlow allocates any size, and reads every BMP as a plain one."""
    yield tf.debugging.Assert(
        tf.reduce_any(list(kinds.values())), ["no JPEG, PNG, GIF, BMP, WebP or NumPy data"]
    )
    bits, packing, header = map(_number, (head[28:30], head[30:34], head[14:18]))
    yield tf.debugging.Assert(
        ~kinds["bmp"] | ((bits == 24) & (packing == 0) & (header >= 40)),
        ["only plain 24-bit BMP files can be served"],
    )
    yield tf.debugging.Assert(
        tf.cond(kinds["gif"], lambda: _fills_canvas(data, head), lambda: True),
        ["only GIF files whose first image fills the canvas can be served"],
    )
    if Image.MAX_IMAGE_PIXELS is not None:
        yield tf.debugging.Assert(
            (pixels >= 0) & (pixels <= Image.MAX_IMAGE_PIXELS), ["too many pixels:", pixels]
        )


def _fitting(head, kinds, array, channels):
    """Yield assertions: whether the file has the channels that the model reads."""
    found = array[2]
    suits = (found == 1) | (found == 3) if channels in (1, 3) else found == channels
    text = f"the model reads {channels} channels; the NumPy file has"
    yield tf.debugging.Assert(~kinds["npy"] | suits, [text, found])
    if channels not in (1, 3):
        png = kinds["png"] & (head[24] == 8) & (head[25] == _ALPHA.get(channels, -1))
        only = " or PNG files with transparency" * (channels in _ALPHA)
        text = f"{channels} channels: only NumPy files{only} can be served"
        yield tf.debugging.Assert(kinds["npy"] | png, [text])


def _npy_header(contents, head, is_npy):
    """Return (height, width, channels, bytes of a value, start of the values), int64; zeros if none."""

    def parse():
        length = _number(head[8:10])
        text = tf.strings.substr(contents, 10, tf.cast(length, tf.int32))
        plain = tf.strings.regex_full_match(text, _NPY_HEADER)
        with tf.control_dependencies([tf.debugging.Assert(plain, ["unusual NumPy file:", text])]):
            text = tf.identity(text)
        parts = [tf.strings.regex_replace(text, _NPY_HEADER, rf"\{n}") for n in range(1, 5)]
        matches = [tf.equal(parts[0], name) for name in TYPES]
        size = tf.reduce_max(tf.where(matches, list(TYPES.values()), 0))
        known = tf.debugging.Assert(size > 0, ["NumPy files of", parts[0], "cannot be served"])
        sides = [tf.strings.to_number(part, tf.int64) for part in parts[1:]]
        end = 10 + length + tf.reduce_prod(sides) * tf.cast(size, tf.int64)
        whole = tf.debugging.Assert(
            end == tf.cast(tf.strings.length(contents), tf.int64), ["truncated NumPy file"]
        )
        with tf.control_dependencies([known, whole]):
            return tf.stack([*sides, tf.cast(size, tf.int64), 10 + length])

    return tf.unstack(tf.cond(is_npy, parse, lambda: tf.zeros([5], tf.int64)), 5)


def _npy_pixels(contents, array, reading):
    """Return the pixels of a NumPy file, as `bands.select` does."""
    height, width, channels, size, start = array
    body = tf.strings.substr(contents, tf.cast(start, tf.int32), -1)
    shape = tf.stack([height, width, channels])

    def as_bytes():
        return tf.reshape(tf.io.decode_raw(body, tf.uint8), shape)

    def wide(dtype):
        return lambda: _to_8_bits(tf.reshape(tf.io.decode_raw(body, dtype), shape), reading.depth)

    index = tf.cast(size, tf.int32) // 2  # 1, 2 or 4 bytes
    image = tf.switch_case(index, [as_bytes, wide(tf.uint16), wide(tf.int32)])
    if reading.channels == 3:
        image = tf.cond(channels == 1, lambda: tf.repeat(image, 3, axis=-1), lambda: image)
    return image


def _to_8_bits(values, depth):
    """Scale whole numbers of more than 8 bits to uint8, as `bands.to_8_bits` does."""
    wide = tf.cast(values, tf.int64)
    if depth == "full":
        return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(wide, 8), 0, 255), tf.uint8)
    low = tf.reduce_min(wide)
    span = tf.maximum(tf.constant(1, tf.int64), tf.reduce_max(wide) - low)
    return tf.cast((255 * (wide - low) + span // 2) // span, tf.uint8)


def _luminance(image):
    """Return the brightness of RGB pixels, as `bands.luminance` does."""
    summed = tf.reduce_sum(tf.cast(image, tf.int32) * list(GRAY), axis=-1, keepdims=True)
    return tf.cast((summed + 0x8000) // 65536, tf.uint8)


def _size(contents, head, kinds, array):
    jpeg = tf.cond(
        kinds["jpeg"],
        lambda: tf.cast(tf.image.extract_jpeg_shape(contents), tf.int64),
        lambda: tf.zeros([3], tf.int64),
    )
    lossy, lossless = _same(head[12:16], b"VP8 "), _same(head[12:16], b"VP8L")
    bits = _number(head[21:25])  # twice 14
    webp = tf.case(
        [
            (lossy, lambda: (_number(head[26:28]) % (1 << 14), _number(head[28:30]) % (1 << 14))),
            (lossless, lambda: (bits % (1 << 14) + 1, bits // (1 << 14) % (1 << 14) + 1)),
        ],
        lambda: (_number(head[24:27]) + 1, _number(head[27:30]) + 1),
    )
    rows = _number(head[22:26])  # negative in a BMP stored from top to bottom
    bmp = _number(head[18:22]), tf.minimum(rows, (1 << 32) - rows)
    return tf.case(
        [
            (kinds["png"], lambda: (_number(head[16:20], "big"), _number(head[20:24], "big"))),
            (kinds["gif"], lambda: (_number(head[6:8]), _number(head[8:10]))),
            (kinds["bmp"], lambda: bmp),
            (kinds["webp"], lambda: webp),
            (kinds["npy"], lambda: (array[1], array[0])),
        ],
        lambda: (jpeg[1], jpeg[0]),
    )


def _fills_canvas(data, head):
    """Return whether the first image of a GIF is as large as its canvas."""
    end = tf.size(data, tf.int64)
    table = tf.gather(tf.constant([3 << n for n in range(1, 9)], tf.int64), head[10] % 8)
    first = 13 + tf.where(head[10] >= 128, table, 0)  # after the color table

    def extends(at, inside, number):
        return (inside | (_window(data, at, 1)[0] == 0x21)) & (at < end) & (number < _MAX_PARTS)

    def block(at, inside, number):
        length = tf.cast(_window(data, at, 1)[0], tf.int64)
        return tf.where(inside, at + 1 + length, at + 2), ~inside | (length > 0), number + 1

    at, _, _ = tf.while_loop(extends, block, (first, tf.constant(False), 0))
    frame = _window(data, at, 9)
    return _same(frame[:5], b"\x2c\0\0\0\0") & tf.reduce_all(frame[5:] == head[6:10])


def _orientation(data, kinds):
    end = tf.size(data, tf.int64)
    nowhere = (end, end)  # the next part, the start of the EXIF block

    def next_marker(at):
        found = data[at:] == 0xFF
        return tf.where(tf.reduce_any(found), at + tf.argmax(tf.cast(found, tf.int32)), end)

    def segment(at):
        head = _window(data, at, 10)
        marker, continues = head[1], at + 4 <= end
        after = at + 2 + _number(head[2:4], "big")
        is_exif = (marker == 0xE1) & _same(head[4:], b"Exif\0\0")
        bare = (marker <= 0x01) | ((marker >= 0xD0) & (marker <= 0xD7))
        continues &= (marker != 0xD9) & (marker != 0xDA) | (head[0] != 0xFF)
        return tf.case(
            [
                (~continues, lambda: nowhere),
                (head[0] != 0xFF, lambda: (next_marker(at), end)),  # Pillow skips it, too
                (marker == 0xFF, lambda: (at + 1, end)),
                (bare, lambda: (at + 2, end)),
                (is_exif, lambda: (after, at + 4)),
            ],
            lambda: (after, end),
        )

    def chunk(at, wanted, order, after, even):
        head = _window(data, at, 8)
        size, kind = (head[:4], head[4:]) if order == "big" else (head[4:], head[:4])
        size = _number(size, order)
        following = at + 8 + size + after + (size % 2 if even else 0)
        return tf.case(
            [
                (at + 8 > end, lambda: nowhere),
                (_same(kind, wanted), lambda: (at + 8 + size, at + 8)),
            ],
            lambda: (following, end),
        )

    def part(at, start, number):
        after, start = tf.case(
            [
                (kinds["jpeg"], lambda: segment(at)),
                (kinds["png"], lambda: chunk(at, b"eXIf", "big", 4, False)),
            ],
            lambda: chunk(at, b"EXIF", "little", 0, True),
        )
        return after, start, number + 1

    first = end
    for kind, at in (("jpeg", 2), ("png", 8), ("webp", 12)):
        first = tf.where(kinds[kind], tf.constant(at, tf.int64), first)
    after, start, _ = tf.while_loop(
        lambda at, start, number: (at < end) & (start == end) & (number < _MAX_PARTS),
        part,
        (first, end, 0),
    )
    return _orientation_in(data[start : tf.minimum(after, end)])


def _orientation_in(block):
    """Return the orientation in a block of EXIF data: the last matching entry of the directory."""
    for _ in range(2):
        prefixed = _same(_window(block, 0, 6), b"Exif\0\0")
        block = tf.cond(prefixed, lambda: block[6:], lambda: block)  # noqa: B023
    head = _window(block, 0, 8)
    big = head[0] == ord("M")

    def number(digits):
        return tf.where(big, _number(digits, "big"), _number(digits))

    start = number(head[4:8])
    count = number(_window(block, start, 2))
    entries = tf.cast(block[start + 2 : start + 2 + 12 * count], tf.int32)
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    kind, values = number(entries[:, 2:4]), number(entries[:, 4:8])
    end = tf.size(block, tf.int64)
    inline = start + 10 + 12 * tf.range(tf.shape(entries, tf.int64)[0])
    padded = tf.pad(tf.cast(block, tf.int32), [[0, 4]])
    result = tf.zeros_like(kind)
    for code, size in INTEGER_BYTES.items():
        at = tf.where(values * size <= 4, inline, number(entries[:, 8:12]))
        complete = (kind == code) & (values >= 1) & (at + values * size <= end)
        digits = tf.gather(padded, tf.minimum(at, end)[:, None] + tf.range(size, dtype=tf.int64))
        result = tf.where(complete, number(digits), result)
    matches = (number(entries[:, :2]) == ORIENTATION_TAG) & (result > 0)
    found = tf.concat([[tf.constant(1, tf.int64)], tf.boolean_mask(result, matches)], 0)[-1]
    is_tiff = tf.reduce_any([_same(head[:4], known) for known in TIFF_STARTS])
    return tf.where(is_tiff & (found >= 1) & (found <= 8), found, 1)


def _upright(image, orientation):
    def turned(number):
        def turn():
            made = tf.transpose(image, [1, 0, 2]) if number >= 5 else image
            axes = [number in (3, 4, 7, 8), number in (2, 3, 6, 7)]
            return tf.reverse(made, [i for i, flips in enumerate(axes) if flips])

        return turn

    made = tf.switch_case(
        tf.cast(orientation - 1, tf.int32), [turned(number) for number in range(1, 9)]
    )
    return tf.ensure_shape(made, [None, None, image.shape[-1]])


def _window(data, start, count):
    """Return `count` bytes from `start` on as int32, padded with zeros."""
    piece = tf.cast(data[start : start + count], tf.int32)
    return tf.ensure_shape(tf.pad(piece, [[0, count - tf.size(piece)]]), [count])


def _same(values, expected: bytes):
    return tf.reduce_all(values == list(expected))


def _number(digits, order="little"):
    """Return the integers, int64 [...], of bytes [..., n]."""
    weights = [1 << 8 * i for i in range(digits.shape[-1])]
    weights = tf.constant(weights if order == "little" else weights[::-1], tf.int64)
    return tf.reduce_sum(tf.cast(digits, tf.int64) * weights, axis=-1)
