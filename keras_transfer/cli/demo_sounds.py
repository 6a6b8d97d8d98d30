"""Generated sounds for the offline demo: tones that rise, fall or bend, held or pulsed."""

from pathlib import Path

import numpy as np

RATE = 8000
SECONDS = 0.5
# How many octaves higher the pitch becomes, over time from 0 to 1.
_BENDS = {
    "flat": lambda t: 0 * t,
    "rising": lambda t: t,
    "falling": lambda t: 1 - t,
    "hill": lambda t: np.sin(np.pi * t),
    "valley": lambda t: 1 - np.sin(np.pi * t),
}
_SOURCE = (*_BENDS, "pulsed flat")
_TARGET = tuple(f"pulsed {name}" for name in _BENDS if name != "flat")
_SOURCE_EACH, _TRAIN_EACH, _VAL_EACH = 60, 10, 50


def write_clips(folder: Path, seed: int) -> None:
    """Write WAV files to source/<sound>/ and target/{train,val}/<sound>/."""
    import soundfile

    rng = np.random.default_rng(seed)
    for part, names, count in (
        ("source", _SOURCE, _SOURCE_EACH),
        ("target/train", _TARGET, _TRAIN_EACH),
        ("target/val", _TARGET, _VAL_EACH),
    ):
        for name in names:
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                soundfile.write(place / f"{number:02}.wav", sound(name, rng), RATE)


def sound(name: str, rng: np.random.Generator) -> np.ndarray:
    """Return a sound of a kind, float64 [n], of any pitch, length, timbre and background noise."""
    pulsed, bend = name.startswith("pulsed"), _BENDS[name.split()[-1]]
    time = np.linspace(0, 1, int(RATE * SECONDS * rng.uniform(0.6, 1)))
    pitch = rng.uniform(200, 700) * 2 ** (rng.uniform(0.5, 1.2) * bend(time))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(rng.uniform(0.2, 1) / n * np.sin(n * phase) for n in (1, 2, 3))
    if pulsed:
        tone = tone * (np.sin(2 * np.pi * rng.uniform(5, 8) * time) > 0)
    noise = rng.normal(0, 0.05 * rng.uniform(0.2, 2), len(time))
    return 0.3 * np.sin(np.pi * time) ** 0.3 * tone + noise
