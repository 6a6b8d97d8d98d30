"""Decode and resample clips in TensorFlow ops alone, as exported models do.

`tf.audio.decode_wav` reads 16-bit files only and stops at unusual headers, so WAV is parsed here: whole
numbers of 8 to 32 bits and floats, of any number of channels. Other files are errors.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_transfer.modalities.audio.framing import RATES, ClipFraming
from keras_transfer.modalities.audio.layer import LogMel

NOT_FINITE = "has values that are not finite"
WRONG_RATE = f"has a sample rate outside {RATES[0]} to {RATES[1]} Hz"

_MOST_CHUNKS = 256
# Like soxr's "HQ": shades differ by at most 5 of 255 (tests).
_ZEROS = 48  # zero crossings of the resampling kernel, to each side
_CUTOFF = 0.957  # of the lower Nyquist frequency


def decoder(framing: ClipFraming) -> Callable:
    """Return a graph function from the bytes of a WAV file to its log-mel image, uint8."""
    front_end = LogMel(framing.side, framing.rate, framing.seconds)

    def decode(contents):
        samples, rate = decode_wav(contents)
        return tf.cast(front_end(window_in_graph(samples, rate, framing)[None])[0], tf.uint8)

    return decode


def requests(framing: ClipFraming) -> dict[str, tuple[list[tf.TensorSpec], Callable]]:
    """Return the signature of samples with their rates, see `Modality.requests`."""
    front_end = LogMel(framing.side, framing.rate, framing.seconds)

    def prepare(samples, rate):
        finite = tf.reduce_all(tf.math.is_finite(samples), axis=1)
        possible = (rate >= RATES[0]) & (rate <= RATES[1])
        valid = finite & possible
        samples = tf.where(valid[:, None], samples, tf.zeros_like(samples))
        windows = tf.map_fn(
            lambda row: window_in_graph(row[0], row[1], framing),
            (samples, tf.where(valid, rate, framing.rate)),
            fn_output_signature=tf.TensorSpec([framing.samples], tf.float32),
        )
        error = tf.where(possible, tf.where(finite, "", NOT_FINITE), WRONG_RATE)
        return tf.cast(front_end(windows), tf.uint8), error

    specs = [
        tf.TensorSpec([None, None], tf.float32, "samples"),
        tf.TensorSpec([None], tf.int32, "rate"),
    ]
    return {"serving_default": (specs, prepare)}


def window_in_graph(samples, rate, framing: ClipFraming) -> tf.Tensor:
    """Return the window of a clip at the framing's rate, like `preparation.window_of`.

    Only the window is resampled, by a windowed sinc, so a long clip costs no more than a short one.

    Args:
        samples: float32 [n].
        rate: of the samples, an integer.

    Returns:
        float32 [framing.samples].
    """
    count = tf.shape(samples)[0]
    ratio = tf.cast(rate, tf.float64) / framing.rate
    length = tf.cast(tf.round(tf.cast(count, tf.float64) / ratio), tf.int32)
    place = tf.range(framing.samples) - (framing.samples - length) // 2
    inside = (place >= 0) & (place < length)

    def same():
        return tf.gather(samples, tf.clip_by_value(place, 0, tf.maximum(count - 1, 0)))

    def resampled(place):
        cutoff = tf.cast(_CUTOFF / tf.maximum(ratio, 1.0), tf.float32)
        reach = tf.cast(tf.math.ceil(_ZEROS / cutoff), tf.int32)
        at = tf.cast(place, tf.float64) * ratio
        first = tf.floor(at)
        near = tf.cast(first, tf.int32)[:, None] + tf.range(1 - reach, reach + 1)
        away = tf.cast(at - first, tf.float32)[:, None] - tf.cast(
            tf.range(1 - reach, reach + 1), tf.float32
        )
        phase = np.pi * cutoff * away
        sinc = tf.where(tf.abs(phase) < 1e-6, 1.0, tf.sin(phase) / tf.where(phase == 0, 1.0, phase))
        window = tf.square(tf.cos(phase / (2 * _ZEROS)))
        weights = tf.where(tf.abs(phase) < np.pi * _ZEROS, cutoff * sinc * window, 0.0)
        known = (near >= 0) & (near < count)
        values = tf.gather(samples, tf.clip_by_value(near, 0, tf.maximum(count - 1, 0)))
        return tf.reduce_sum(tf.where(known, values, 0.0) * weights, axis=1)

    # An empty clip has nothing to gather.
    samples = tf.pad(samples, [[0, tf.cast(count == 0, tf.int32)]])
    # In pieces: each sample of a long window has a hundred neighbors or more.
    pieces = tf.reshape(place, [framing.size, -1])
    made = tf.cond(
        tf.equal(rate, framing.rate),
        same,
        lambda: tf.reshape(tf.map_fn(resampled, pieces, fn_output_signature=tf.float32), [-1]),
    )
    return tf.ensure_shape(tf.where(inside, made, 0.0), [framing.samples])


def decode_wav(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decode a WAV file: (float32 [n], -1 to 1, the mean of its channels; its sample rate, int32).

    Where the header states more data than there are, those that are there are read, as libsndfile does.

    Raises:
        tf.errors.InvalidArgumentError: if the bytes are not such a file, or have no samples.
    """
    data = tf.io.decode_raw(contents, tf.uint8)
    end = tf.size(data)
    is_wav = tf.reduce_all(_bytes(data, 0, 4) == list(b"RIFF"))
    is_wav &= tf.reduce_all(_bytes(data, 8, 4) == list(b"WAVE"))

    def further(at, form, start, size, number):
        return (at + 8 <= end) & (start == 0) & (number < _MOST_CHUNKS)

    def chunk(at, form, start, size, number):
        head = _bytes(data, at, 8)
        length = _number(head[4:])
        is_form = tf.reduce_all(head[:4] == list(b"fmt "))
        is_data = tf.reduce_all(head[:4] == list(b"data"))
        start = tf.where(is_data, at + 8, start)
        size = tf.where(
            is_data, tf.cast(tf.minimum(length, tf.cast(end - at - 8, tf.int64)), tf.int32), size
        )
        step = tf.minimum(length + length % 2, tf.cast(end, tf.int64))
        return (
            at + 8 + tf.cast(step, tf.int32),
            tf.where(is_form, at + 8, form),
            start,
            size,
            number + 1,
        )

    _, form, start, size, _ = tf.while_loop(further, chunk, (12, 0, 0, 0, 0))
    head = _bytes(data, form, 26)
    kind, channels, rate, bits = (
        tf.cast(_number(head[a:b]), tf.int32) for a, b in ((0, 2), (2, 4), (4, 8), (14, 16))
    )
    kind = tf.where(kind == 0xFFFE, tf.cast(_number(head[24:26]), tf.int32), kind)  # extensible
    known = tf.constant([[1, 8], [1, 16], [1, 24], [1, 32], [3, 32], [3, 64]])
    matches = tf.reduce_all(known == tf.stack([kind, bits]), axis=1)
    width = bits // 8
    frames = size // tf.maximum(1, width * channels)
    checks = [
        tf.debugging.Assert(is_wav & (form > 0) & (start > 0), ["not a WAV file"]),
        tf.debugging.Assert(tf.reduce_any(matches), ["only WAV files of whole numbers or floats"]),
        tf.debugging.Assert((channels > 0) & (frames > 0), ["no samples"]),
        tf.debugging.Assert((rate >= RATES[0]) & (rate <= RATES[1]), ["the sample rate", rate]),
    ]
    with tf.control_dependencies(checks):
        body = tf.strings.substr(contents, start, frames * width * channels)

    def raw(dtype, divisor=1.0, offset=0.0):
        return lambda: (tf.cast(tf.io.decode_raw(body, dtype), tf.float32) - offset) / divisor

    def three_bytes():
        parts = tf.cast(tf.reshape(tf.io.decode_raw(body, tf.uint8), [-1, 3]), tf.int32)
        value = parts[:, 0] + 256 * parts[:, 1] + 65536 * parts[:, 2]
        return tf.cast(tf.where(value >= 1 << 23, value - (1 << 24), value), tf.float32) / (1 << 23)

    values = tf.switch_case(
        tf.argmax(tf.cast(matches, tf.int32), output_type=tf.int32),
        [
            raw(tf.uint8, 128.0, 128.0),
            raw(tf.int16, 32768.0),
            three_bytes,
            raw(tf.int32, float(1 << 31)),
            raw(tf.float32),
            raw(tf.float64),
        ],
    )
    samples = tf.reduce_mean(tf.reshape(values, [frames, channels]), axis=1)
    finite = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(samples)), [NOT_FINITE])
    with tf.control_dependencies([finite]):
        return tf.identity(samples), rate


def _bytes(data, start, count):
    """Return `count` bytes from `start` on as int32, padded with zeros."""
    piece = tf.cast(data[start : start + count], tf.int32)
    return tf.ensure_shape(tf.pad(piece, [[0, count - tf.size(piece)]]), [count])


def _number(digits):
    """Return the integer, int64, of little-endian bytes."""
    weights = tf.constant([1 << 8 * i for i in range(digits.shape[-1])], tf.int64)
    return tf.reduce_sum(tf.cast(digits, tf.int64) * weights)
