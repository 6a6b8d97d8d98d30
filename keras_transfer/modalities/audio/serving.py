"""Decode and resample clips in TensorFlow ops alone, as exported models do.

`tf.audio.decode_wav` reads 16-bit files only and stops at unusual headers, so WAV is parsed here: whole
numbers of 8 to 32 bits and floats, of any number of channels. Other files are errors.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.modalities.audio import log_mel
from keras_transfer.modalities.audio.framing import RATES, ClipFraming

NOT_FINITE = "has values that are not finite"
WRONG_RATE = f"has a sample rate outside {RATES[0]} to {RATES[1]} Hz"

_MOST_CHUNKS = 256
# Like soxr's "HQ": shades differ by at most 5 of 255 (tests).
_ZEROS = 48  # zero crossings of the resampling kernel, to each side
_PIECE = 1024  # samples that are resampled at once
_CUTOFF = 0.957  # of the lower Nyquist frequency


def decoder(framing: ClipFraming) -> Callable:
    """Return a graph function from the bytes of a WAV file to its log-mel image, uint8."""

    def decode(contents):
        samples, rate = decode_wav(contents)
        return images_in_graph(window_in_graph(samples, rate, framing)[None], framing)[0]

    return decode


def images_in_graph(windows, framing: ClipFraming) -> tf.Tensor:
    """Return log-mel images, uint8 [N, height, width, 3], like `LogMel`, by a fast transform."""
    hann = log_mel.hann_window(framing)

    def power(padded):
        pieces = tf.signal.frame(padded, len(hann), framing.hop) * hann
        found = tf.signal.rfft(pieces, [log_mel.points_of(hann)])
        return tf.square(tf.math.real(found)) + tf.square(tf.math.imag(found))

    image = tf.cast(tf.round(log_mel.shades(windows, framing, keras.ops, power)), tf.uint8)
    return tf.repeat(image[..., None], 3, axis=-1)


def requests(framing: ClipFraming) -> dict[str, tuple[list[tf.TensorSpec], Callable]]:
    """Return the signature of samples with their rates, see `Modality.requests`."""

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
        return images_in_graph(windows, framing), error

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
    count, rate = tf.size(samples), tf.cast(rate, tf.int64)
    length = tf.cast(tf.round(tf.cast(count, tf.int64) * framing.rate / rate), tf.int32)
    pieces = -(-framing.samples // _PIECE)
    place = tf.range(pieces * _PIECE) - (framing.samples - length) // 2
    padded = tf.pad(samples, [[1, 1]])

    def at(places):
        return tf.gather(padded, tf.clip_by_value(places + 1, 0, count + 1))

    def resampled():
        ratio = tf.cast(rate, tf.float32) / framing.rate
        cutoff = _CUTOFF / tf.maximum(ratio, 1.0)
        reach = tf.cast(tf.math.ceil(_ZEROS / cutoff), tf.int32)
        neighbors = tf.range(1 - reach, reach + 1)
        # Places that are a period apart lie equally between samples.
        products = tf.range(1, framing.rate + 1, dtype=tf.int64) * rate
        period = 1 + tf.argmax(products % framing.rate == 0, output_type=tf.int32)
        distinct = tf.minimum(period, _PIECE)

        def kernel(away):
            phase = np.pi * cutoff * away
            sinc = tf.where(
                tf.abs(phase) < 1e-6, 1.0, tf.sin(phase) / tf.where(phase == 0, 1.0, phase)
            )
            window = tf.square(tf.cos(phase / (2 * _ZEROS)))
            return tf.where(tf.abs(phase) < np.pi * _ZEROS, cutoff * sinc * window, 0.0)

        def piece(places):
            product = tf.cast(places, tf.int64) * rate
            first = tf.cast(product // framing.rate, tf.int32)
            share = tf.cast(product % framing.rate, tf.float32)[:distinct] / framing.rate
            weights = kernel(share[:, None] - tf.cast(neighbors, tf.float32))
            weights = tf.gather(weights, tf.range(_PIECE) % distinct)
            return tf.reduce_sum(at(first[:, None] + neighbors) * weights, axis=1)

        # In pieces, because each sample of a long window has a hundred neighbors or more.
        made = tf.map_fn(piece, tf.reshape(place, [pieces, _PIECE]), fn_output_signature=tf.float32)
        return tf.reshape(made, [-1])

    made = tf.cond(tf.equal(rate, framing.rate), lambda: at(place), resampled)
    made = tf.where((place >= 0) & (place < length), made, 0.0)
    return tf.ensure_shape(made[: framing.samples], [framing.samples])


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
    # The rate too: resampling from an absurd one allocates gigabytes before the error stops it.
    with tf.control_dependencies(checks):
        body = tf.strings.substr(contents, start, frames * width * channels)
        rate = tf.identity(rate)

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
