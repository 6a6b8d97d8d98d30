"""Audio clips as a `Modality`."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_transfer.modalities import Modality
from keras_transfer.modalities.audio import augment, decode
from keras_transfer.modalities.audio.framing import ClipFraming, choose_framing
from keras_transfer.modalities.audio.sketch import NEAR, ODDITIES
from keras_transfer.modalities.reading import digest
from keras_transfer.modalities.statistics import binned, counted, described, spread
from keras_transfer.utils.console import verb

_RULES = 3  # of checking: increase it when `examine` changes what it finds in the same file
_CLIPPED = 10  # thousandths of the samples
_SLICES = (1, 2, 5, 10, 30, 60)  # seconds
_LARGER = (128, "96x192")  # a window of seconds has more columns than one of words
_SAMPLE = 200  # clips whose headers are read
_DRAWN = "96x192"  # pixels of a spectrogram for people
_PLAYED_SECONDS, _PLAYED_RATE = 10, 16_000


class Audio(Modality):
    """Clips: decoded to mono, resampled, cut to a window and turned into a log-mel image."""

    name, one, many = "audio", "clip", "clips"
    extensions = frozenset(decode.EXTENSIONS)
    formats = "WAV, FLAC, OGG or MP3"
    facts = decode.Facts
    framed_by = ("image_size",)
    mirrors = False
    rate_scale = 2.5  # see docs/audio.md
    image_size = 96  # of 64 bands; larger images of them are worse and slower, see docs/audio.md
    sketched = 1
    near = NEAR
    oddities = ODDITIES
    not_in_8_bits = "it would round the samples before they become an image"
    decoded = (("float32", [None]), ("int32", []))
    served = "WAV files of whole numbers or floats, resamples them,"
    served_decoded = "`serving_default` takes mono samples (float32, -1 to 1, clips of one length) and their rate."
    file_example = "clip.wav"
    unreadable = "cannot be read as audio (WAV of whole numbers or floats)"
    page = Path(__file__).with_name("page.js")

    @property
    def rules(self) -> str:
        import soundfile

        return f"{_RULES}, soundfile {soundfile.__version__}"

    def require(self) -> None:
        decode.require_decoder()

    def examine(self, contents: bytes) -> decode.Facts:
        return decode.examine(contents)

    def statistics(self, columns: Mapping) -> dict[str, dict]:
        known = columns["rate"] > 0
        seconds = columns["samples"][known] / columns["rate"][known]
        return {
            "seconds": spread(seconds, lambda value: round(float(value), 3)),
            "rates": counted(columns["rate"][known]),
            "channels": counted(columns["channels"][known]),
            "formats": counted(columns["format"][known]),
            "clipped": {"clips": int((columns["clipped"] > _CLIPPED).sum())},
        }

    def describe_statistics(self, statistics: dict) -> Iterator[str]:
        if seconds := statistics["seconds"]:
            yield ""
            names = {"least": "minimum", "median": "median", "greatest": "maximum"}
            yield f"seconds: {', '.join(f'{n} {seconds[k]:g}' for k, n in names.items())}"
        titles = {"rates": "sample rate (Hz)", "channels": "channels", "formats": "format"}
        yield from described(statistics, titles)
        if count := statistics["clipped"]["clips"]:
            yield f"clipped (over {_CLIPPED / 10:g} % of the samples at full scale): {count} {verb(count, 'clip', 'clips')}"

    def sizes(self, columns: Mapping) -> list[str]:
        return binned(columns["samples"] / np.maximum(1, columns["rate"]), _SLICES, "s")

    def looks_right(self, start: bytes) -> bool:
        return decode.starts_like_audio(start)

    def open(self, contents: bytes) -> decode.Clip:
        return decode.open_contents(contents)

    def whole(self, opened: decode.Clip, framing=None) -> tuple:
        return opened.samples(opened.rate), np.int32(opened.rate)

    def open_decoded(self, example) -> decode.Clip:
        samples, rate = example
        return decode.Clip(rate, len(samples) / rate, lambda: samples)

    def check_decoded(self, example) -> str | None:
        samples, _ = example
        if not len(samples):
            return "without samples"
        return None if np.isfinite(samples).all() else "not finite"

    def encode(self, example) -> bytes:
        samples, rate = example
        return _wav(samples, rate, "FLOAT")

    def digest(self, example) -> bytes:
        samples, rate = example
        return digest(str(rate).encode(), np.ascontiguousarray(samples).data)

    def caster(self, split: str, **facts):
        from keras_transfer.modalities.audio.arrays import Cast

        return Cast(split, **facts)

    def holds(self, values: Sequence, facts: Mapping) -> bool:
        return "rate" in facts

    def framing(self, values: Mapping) -> ClipFraming:
        return ClipFraming(rate=values["rate"], seconds=values["seconds"])

    def choose_framing(self, data, size: int | str) -> tuple[ClipFraming, str]:
        splits = getattr(data, "examples", {"train": data})
        clips = splits.get("train", next(iter(splits.values()))).images
        # Spread over the classes, which follow one another.
        rows = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), _SAMPLE)).astype(int))
        found = [clips.read(row, lambda clip: (clip.seconds, clip.rate)) for row in rows]
        framing, reason = choose_framing(*np.array(found or np.zeros((0, 2))).T)
        return framing.at(size), reason

    def default_framing(self, data, size) -> ClipFraming:
        return self.choose_framing(data, size)[0]

    def larger_framings(self, framing) -> Sequence[ClipFraming]:
        return [framing.at(size) for size in _LARGER] if framing.size == self.image_size else []

    def smaller_framings(self, framing) -> Sequence[ClipFraming]:
        from keras_transfer.modalities.image.framing import smaller_sizes

        return [framing.at(size) for size in smaller_sizes(framing.size)]

    def preparation(self, reader, views: Sequence, framing, memory=None):
        from keras_transfer.modalities.audio.preparation import Preparation

        return Preparation(reader, views, framing, memory)

    def resolve_augmentation(self, augmentation) -> augment.ClipAugmentation:
        return augment.resolve_augmentation(augmentation)

    def default_augmentation(self, data, size: int | str) -> str:
        return "light"

    def stronger_augmentation(self, augmentation) -> augment.ClipAugmentation:
        return augment.PRESETS["heavy"]

    def mixer(self, mix) -> Callable:
        """Mix log-mel images like other images."""
        from keras_transfer.modalities.image.prepare import mixer

        return mixer(mix)

    def decoder(self, framing) -> Callable:
        from keras_transfer.modalities.audio.serving import decoder

        return decoder(framing)

    def sketch(self, opened: decode.Clip):
        from keras_transfer.modalities.audio.sketch import sketch

        return sketch(opened)

    def requests(self, framing) -> dict:
        from keras_transfer.modalities.audio.serving import requests

        return requests(framing)

    def trial(self, example, framing) -> tuple:
        import tensorflow as tf

        from keras_transfer.modalities.audio.layer import LogMel

        samples, rate = example
        window = self.exported_inputs([example], framing)
        front_end = LogMel(framing.size, framing.rate, framing.seconds)
        requests = {
            "serving_default": {"samples": samples, "rate": np.int32(rate)},
            "serve_bytes": {"bytes": _wav(samples, rate, "FLOAT")},
        }
        return tf.cast(front_end(window)[0], tf.uint8), requests

    def noise(self, framing, count: int = 2) -> list:
        """Return tones in noise that become louder and softer."""
        rng = np.random.default_rng(0)
        time = np.arange(framing.samples) / framing.rate
        found = []
        for low in rng.uniform(0.02, 0.2, count) * framing.rate:
            tones = sum(np.sin(2 * np.pi * low * n * time) / n for n in (1, 1.5, 2))
            loudness = np.sin(np.pi * time / time[-1] * rng.integers(1, 4)) ** 2
            clip = 0.2 * loudness * tones + rng.normal(0, 0.005, len(time))
            found.append((clip.astype("float32"), framing.rate))
        return found

    def front_end(self, framing) -> tuple:
        import keras

        from keras_transfer.modalities.audio.layer import LogMel

        inputs = keras.Input((framing.samples,), name="samples")
        return inputs, LogMel(framing.size, framing.rate, framing.seconds)(inputs)

    def exported_inputs(self, examples: Iterable, framing) -> np.ndarray:
        from keras_transfer.modalities.audio.preparation import window_of

        windows = [
            window_of(decode.resampled(samples, rate, framing.rate), framing)
            for samples, rate in examples
        ]
        return np.stack(windows)

    def page_input(self, framing, examples=()) -> dict:
        return {"rate": framing.rate, "samples": framing.samples}

    def describe_input(self, framing, count: str) -> str:
        batch = "one clip at a time, [1" if count == "1" else "[N"
        return f"Input `samples`: float32 {batch}, {framing.samples}], -1 to 1, mono."

    def describe_preparation(self, framing) -> str:
        return (
            "Prepare clips as in training:\n"
            f"resample them to {framing.rate} Hz, then cut the middle or add zeros on both sides:\n\n"
            "```python\n"
            "import numpy as np, soundfile, soxr\n\n"
            "samples, rate = soundfile.read(path, dtype='float32', always_2d=True)\n"
            f"samples = soxr.resample(samples.mean(axis=1), rate, {framing.rate})\n"
            f"start = ({framing.samples} - len(samples)) // 2\n"
            f"samples = samples[max(0, -start):][:{framing.samples}]\n"
            f"before = max(0, start)\n"
            f"samples = np.pad(samples, (before, {framing.samples} - before - len(samples)))\n"
            "```"
        )

    def describe_limits(self, framing) -> str:
        return (
            f"Of a clip longer than {framing.samples / framing.rate:.1f} s only the middle is heard, and "
            f"nothing above {framing.rate // 2} Hz."
        )

    def drawn(self, examples) -> Callable:
        from keras_transfer.modalities.audio.log_mel import image_of
        from keras_transfer.modalities.audio.preparation import window_of

        framing, clips = self.default_framing(examples, _DRAWN), examples.images

        def draw(index):
            samples = clips.read(index, lambda clip: clip.samples(framing.rate))
            return image_of(window_of(samples, framing), framing)

        return draw

    def media(self, contents: bytes) -> tuple[str, bytes]:
        samples, rate = decode.decode(contents)
        played = min(rate, _PLAYED_RATE)
        samples = decode.resampled(samples[: _PLAYED_SECONDS * rate], rate, played)
        return "audio/wav", _wav(samples, played, "PCM_16")


def _wav(samples, rate, form):
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, form, format="WAV")
    return buffer.getvalue()


MODALITY = Audio()
