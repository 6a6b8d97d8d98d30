"""Check and decode audio files (WAV, FLAC, OGG, MP3 and others that libsndfile reads)."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_transfer.errors import InputError
from keras_transfer.modalities.audio.framing import RATES
from keras_transfer.utils.extras import require

EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
_SIGNATURES = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM", b".snd", b"caff", b"RIFX", b"RF64")
_SERVED = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # of WAV
_MOST_SECONDS = 600
_SILENT = 1e-4  # of full scale: 80 dB below it
_FULL = 0.999


class Facts(NamedTuple):
    """What checking an audio file found.

    Attributes:
        samples: number of samples of each channel; 0 if the file cannot be read.
        rate: samples per second.
        channels: number of channels.
        format: such as `WAV PCM_16`.
        digest: BLAKE2b of the whole file, 16 bytes; empty if the file was not read.
        fault: why the file cannot be used; None if it can.
        peak: the highest absolute value of the mono clip, in thousandths of full scale, rounded up.
        clipped: share of the samples at full scale, in thousandths.
        served: whether a served model reads the file, 0 or 1.
    """

    samples: int = 0
    rate: int = 0
    channels: int = 0
    format: str = ""
    digest: bytes = b""
    fault: str | None = None
    peak: int = 1000
    clipped: int = 0
    served: int = 1

    @property
    def flaw(self) -> str | None:
        """Why the model hears nothing in a usable clip; None if it hears something."""
        return None if self.peak else "silent"


def require_decoder() -> None:
    """Raise InputError if soundfile or soxr is not installed."""
    for module in ("soundfile", "soxr"):
        require(module, "Reading audio")


def starts_like_audio(start: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of a supported format."""
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WAVE")


class Clip:
    """A clip whose header has been read.

    Attributes:
        rate: samples per second, as stored.
        seconds: its length.
    """

    def __init__(self, rate: int, seconds: float, decode: Callable[[], np.ndarray]):
        self.rate, self.seconds = rate, seconds
        self._decode = decode

    def samples(self, rate: int) -> np.ndarray:
        """Return the mono samples at a rate: float32 [n], -1 to 1.

        Raises:
            ValueError: if the clip cannot be decoded.
        """
        return resampled(self._decode(), self.rate, rate)


def open_contents(contents: bytes) -> Clip:
    """Return an encoded clip of which only the header is read.

    Raises:
        ValueError: if that cannot be read.
    """
    with _opened(contents) as file:
        frames, rate = file.frames, file.samplerate
    return Clip(rate, frames / rate, lambda: decode(contents)[0])


def decode(contents: bytes) -> tuple[np.ndarray, int]:
    """Decode a file: (float32 [n], -1 to 1, the mean of all channels; its sample rate).

    Raises:
        ValueError: if the bytes cannot be read, or the clip is longer than ten minutes.
    """
    with _opened(contents) as file:
        if file.frames > _MOST_SECONDS * file.samplerate:
            raise ValueError(_too_long(file))
        try:
            samples = mono(file.read(file.frames, dtype="float32", always_2d=True))
        except RuntimeError as error:
            raise ValueError(f"not readable audio: {error}") from error
        rate = file.samplerate
    if not len(samples):
        raise ValueError("not readable audio: it has no samples")
    if not np.isfinite(samples).all():
        raise ValueError("not readable audio: it has values that are not finite")
    return samples, rate


def mono(samples: np.ndarray) -> np.ndarray:
    """Return the mean of all channels, float32 [n], of samples [n] or [n, channels]."""
    return samples if samples.ndim == 1 else samples.mean(axis=1)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return samples at another rate, float32 [n]."""
    if rate == wanted:
        return samples
    import soxr

    return soxr.resample(samples, rate, wanted)


def examine(contents: bytes) -> Facts:
    """Return the facts about the bytes of an audio file, without a digest."""
    if not contents:
        return Facts(fault="empty file")
    facts = Facts()
    try:
        with _opened(contents) as file:
            kind = f"{file.format} {file.subtype}"
            served = file.format in ("WAV", "WAVEX") and file.subtype in _SERVED
            facts = Facts(file.frames, file.samplerate, file.channels, kind, served=int(served))
            if not RATES[0] <= file.samplerate <= RATES[1]:
                return facts._replace(fault=f"has a sample rate of {file.samplerate} Hz")
            if file.frames > _MOST_SECONDS * file.samplerate:
                return facts._replace(fault=_too_long(file))
        samples, _ = decode(contents)
    except InputError:
        raise
    except ValueError as error:
        return facts._replace(fault=str(error))
    if len(samples) < facts.samples:
        fault = f"truncated: {len(samples):,} of {facts.samples:,} samples"
        return facts._replace(fault=fault)
    loud = np.abs(samples)
    peak = float(loud.max())
    return facts._replace(
        peak=0 if peak < _SILENT else max(1, min(1000, int(1000 * peak))),
        clipped=int(1000 * float((loud >= _FULL).mean())),
    )


def _opened(contents):
    require_decoder()
    import soundfile

    try:
        return soundfile.SoundFile(io.BytesIO(contents))
    except (RuntimeError, TypeError, ValueError) as error:  # also what damaged headers cause
        reason = " ".join(str(error).split()).removeprefix("Error opening ").split(": ", 1)[-1]
        raise ValueError(f"not readable audio: {reason}") from error


def _too_long(file):
    minutes = file.frames / file.samplerate / 60
    return f"too long: {minutes:.0f} minutes, the limit is {_MOST_SECONDS // 60}; cut it into clips"
