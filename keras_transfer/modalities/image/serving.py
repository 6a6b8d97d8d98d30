"""Encoded image bytes to RGB pixels in TensorFlow's ops alone: what an exported model does.

It gives the pixels of `decode.decode`, or an error where TensorFlow's decoder cannot read the file or
would read it wrongly. EXIF's orientation is read as Pillow reads it.
"""

import tensorflow as tf
from PIL import Image

from keras_transfer.modalities.image.check import ORIENTATION

MOST_PARTS = 4096  # of a file that are searched; an image has a few or some hundred
WIDTHS = {3: 2, 4: 4}  # TIFF's SHORT and LONG → bytes
_HEAD = 34  # bytes that hold what is looked at of a header


def decode_in_graph(contents: tf.Tensor) -> tf.Tensor:
    """Decode one JPEG, PNG, GIF (first frame), 24-bit BMP or opaque WebP file, upright.

    Args:
        contents: string, the bytes of the file.

    Returns:
        uint8 [height, width, 3], 0-255.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, where the bytes cannot be decoded, or are more
            pixels than Pillow's `MAX_IMAGE_PIXELS` was when the graph was built.
    """
    data = tf.io.decode_raw(contents, tf.uint8)
    head = _window(data, 0, _HEAD)
    kinds = {
        "jpeg": _same(head[:3], b"\xff\xd8\xff"),
        "png": _same(head[:8], b"\x89PNG\r\n\x1a\n"),
        "gif": _same(head[:4], b"GIF8"),
        "bmp": _same(head[:2], b"BM"),
        "webp": _same(head[:4], b"RIFF") & _same(head[8:12], b"WEBP"),
    }
    width, height = _size(contents, head, kinds)
    with tf.control_dependencies(list(_checks(data, head, kinds, width * height))):
        image = tf.io.decode_image(tf.identity(contents), channels=3, expand_animations=False)
    as_said = tf.reduce_all(tf.shape(image, tf.int64)[:2] == tf.stack([height, width]))
    with tf.control_dependencies([tf.debugging.Assert(as_said, ["not of the size it says"])]):
        image = tf.ensure_shape(tf.identity(image), [None, None, 3])
    return _upright(image, _orientation(data, kinds))


def _checks(data, head, kinds, pixels):
    """TensorFlow's decoders allocate whatever a header asks for, and take any BMP for plain."""
    yield tf.debugging.Assert(
        tf.reduce_any(list(kinds.values())), ["no JPEG, PNG, GIF, BMP or WebP data"]
    )
    bits, packing, header = map(_number, (head[28:30], head[30:34], head[14:18]))
    yield tf.debugging.Assert(
        ~kinds["bmp"] | ((bits == 24) & (packing == 0) & (header >= 40)),
        ["of BMP files only plain ones of 24 bits are served"],
    )
    yield tf.debugging.Assert(
        tf.cond(kinds["gif"], lambda: _fills_canvas(data, head), lambda: True),
        ["of GIF files only those are served whose first image fills the canvas"],
    )
    if Image.MAX_IMAGE_PIXELS is not None:
        yield tf.debugging.Assert(
            (pixels >= 0) & (pixels <= Image.MAX_IMAGE_PIXELS), ["too many pixels:", pixels]
        )


def _size(contents, head, kinds):
    jpeg = tf.cond(
        kinds["jpeg"],
        lambda: tf.cast(tf.image.extract_jpeg_shape(contents), tf.int64),
        lambda: tf.zeros([3], tf.int64),
    )
    lossy, lossless = _same(head[12:16], b"VP8 "), _same(head[12:16], b"VP8L")
    bits = _number(head[21:25])  # two times 14
    webp = tf.case(
        [
            (lossy, lambda: (_number(head[26:28]) % (1 << 14), _number(head[28:30]) % (1 << 14))),
            (lossless, lambda: (bits % (1 << 14) + 1, bits // (1 << 14) % (1 << 14) + 1)),
        ],
        lambda: (_number(head[24:27]) + 1, _number(head[27:30]) + 1),
    )
    below = _number(head[22:26])  # a BMP from top to bottom has a negative height
    bmp = _number(head[18:22]), tf.minimum(below, (1 << 32) - below)
    return tf.case(
        [
            (kinds["png"], lambda: (_number(head[16:20], "big"), _number(head[20:24], "big"))),
            (kinds["gif"], lambda: (_number(head[6:8]), _number(head[8:10]))),
            (kinds["bmp"], lambda: bmp),
            (kinds["webp"], lambda: webp),
        ],
        lambda: (jpeg[1], jpeg[0]),
    )


def _fills_canvas(data, head):
    """Whether the first image of a GIF is as large as its canvas."""
    end = tf.size(data, tf.int64)
    table = tf.gather(tf.constant([3 << n for n in range(1, 9)], tf.int64), head[10] % 8)
    first = 13 + tf.where(head[10] >= 128, table, 0)  # after the colours

    def extends(at, inside, number):
        return (inside | (_window(data, at, 1)[0] == 0x21)) & (at < end) & (number < MOST_PARTS)

    def block(at, inside, number):
        length = tf.cast(_window(data, at, 1)[0], tf.int64)
        return tf.where(inside, at + 1 + length, at + 2), ~inside | (length > 0), number + 1

    at, _, _ = tf.while_loop(extends, block, (first, tf.constant(False), 0))
    found = _window(data, at, 9)
    return _same(found[:5], b"\x2c\0\0\0\0") & tf.reduce_all(found[5:] == head[6:10])


def _orientation(data, kinds):
    end = tf.size(data, tf.int64)
    nowhere = (end, end)  # where to go on, where EXIF's block begins

    def segment(at):
        head = _window(data, at, 10)
        marker, goes_on = head[1], at + 4 <= end
        after = at + 2 + _number(head[2:4], "big")
        is_exif = (marker == 0xE1) & _same(head[4:], b"Exif\0\0")
        bare = (marker == 0x01) | ((marker >= 0xD0) & (marker <= 0xD7))
        goes_on &= (head[0] == 0xFF) & (marker != 0xD9) & (marker != 0xDA)
        return tf.case(
            [
                (~goes_on, lambda: nowhere),
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
        lambda at, start, number: (at < end) & (start == end) & (number < MOST_PARTS),
        part,
        (first, end, 0),
    )
    return _orientation_in(data[start : tf.minimum(after, end)])


def _orientation_in(block):
    block = tf.cond(_same(_window(block, 0, 6), b"Exif\0\0"), lambda: block[6:], lambda: block)
    head = _window(block, 0, 8)
    little, big = _same(head[:2], b"II"), _same(head[:2], b"MM")

    def number(digits):
        return tf.where(big, _number(digits, "big"), _number(digits))

    at = number(head[4:8])
    count = number(_window(block, at, 2))
    entries = tf.cast(block[at + 2 : at + 2 + 12 * count], tf.int32)
    entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
    kind = number(entries[:, 2:4])
    count = number(entries[:, 4:8])
    values = tf.zeros_like(kind)
    for code, width in WIDTHS.items():
        values = tf.where(kind == code, number(entries[:, 8 : 8 + width]), values)
    # Of two values Pillow takes the first; two LONGs lie where the entry points to.
    two, end = (kind == 4) & (count == 2), tf.size(block, tf.int64)
    inside = values + 8 <= end
    places = tf.where(two & inside, values, 0)[:, None] + tf.range(4, dtype=tf.int64)
    padded = tf.pad(tf.cast(block, tf.int32), [[0, 4]])
    values = tf.where(two, number(tf.gather(padded, places)), values)
    fits = (count == 1) | ((count == 2) & (~two | inside))
    wanted = (number(entries[:, :2]) == ORIENTATION) & fits
    wanted &= tf.reduce_any([kind == code for code in WIDTHS], axis=0)
    found = tf.concat([[tf.constant(1, tf.int64)], tf.boolean_mask(values, wanted)], 0)[-1]
    return tf.where((little | big) & (found >= 1) & (found <= 8), found, 1)


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
    return tf.ensure_shape(made, [None, None, 3])


def _window(data, start, count):
    """`count` bytes from `start` on as int32, zeros where there are none."""
    piece = tf.cast(data[start : start + count], tf.int32)
    return tf.ensure_shape(tf.pad(piece, [[0, count - tf.size(piece)]]), [count])


def _same(values, expected: bytes):
    return tf.reduce_all(values == list(expected))


def _number(digits, order="little"):
    """The whole number, int64 [...], of bytes [..., n]."""
    weights = [1 << 8 * i for i in range(digits.shape[-1])]
    weights = tf.constant(weights if order == "little" else weights[::-1], tf.int64)
    return tf.reduce_sum(tf.cast(digits, tf.int64) * weights, axis=-1)
