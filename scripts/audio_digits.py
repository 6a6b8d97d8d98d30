"""Spoken digits by speakers that are not in the training data: MFCC + SVM, and the closed form with taps.

    python scripts/audio_digits.py              three pairs of speakers held out, one line each
    python scripts/audio_digits.py --tune       the front end's range and padding, on the other speakers

Speakers are divided once: constants of the front end were chosen on TUNING alone, and the figures of the
first command are about speakers of REPORTED alone. It prints accuracies and the CPU seconds of the product's
part, from reading files to the fitted head. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import itertools
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
from scipy.fft import dct
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from keras_transfer.features.closed_form import logistic_regression
from keras_transfer.modalities.audio import decode, log_mel, preparation
from keras_transfer.modalities.audio.framing import ClipFraming, choose_framing
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.sources.backbones import build_backbone

TUNING, REPORTED = ("george", "jackson", "lucas"), ("nicolas", "theo", "yweweler")
BACKBONE, SIZE = "mobilenet_0.25", 96


def clips() -> list[Path]:
    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / "audio" / "spoken_digits"
    return sorted(folder.glob("*/*.wav"))


def speaker(file: Path) -> str:
    return file.name.split("_")[0]


def mfcc(file: Path) -> np.ndarray:
    """Return mean and standard deviation over time of 20 cepstral coefficients."""
    samples, rate = decode.decode(file.read_bytes())
    framing = ClipFraming(64, rate, max(0.1, len(samples) / rate))
    image = log_mel.image_of(preparation.window_of(samples, framing), framing)[..., 0]
    coefficients = dct(image[::-1].astype(float), axis=0, norm="ortho")[:20]
    return np.concatenate([coefficients.mean(axis=1), coefficients.std(axis=1)])


def baseline(train: list[Path], held: list[Path]) -> float:
    model = make_pipeline(StandardScaler(), SVC(C=10))
    model.fit([mfcc(file) for file in train], [file.parent.name for file in train])
    return model.score([mfcc(file) for file in held], [file.parent.name for file in held])


def closed_form(train: list[Path], held: list[Path], seed: int) -> float:
    """Train as `keras-transfer train --strategy feature_extraction --taps all` does."""
    from keras_transfer.data import from_directory
    from keras_transfer.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        for split, files in (("train", train), ("val", held)):
            for file in files:
                place = Path(folder) / "data" / split / file.parent.name / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file)
        data = from_directory(Path(folder) / "data", progress=False)
        model = build_model(BACKBONE, head_for(data), image_size=SIZE, taps="all")
        trainer = Trainer(model, "feature_extraction", seed=seed, cache="memory")
        return trainer.fit(data, Path(folder) / "run").metrics["val"]["accuracy"]


def report(seeds: int) -> None:
    files = clips()
    for held_out in itertools.combinations(REPORTED, 2):
        train = [file for file in files if speaker(file) not in held_out]
        held = [file for file in files if speaker(file) in held_out]
        svm = baseline(train, held)
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = [closed_form(train, held, seed) for seed in range(seeds)]
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{' and '.join(held_out)}: MFCC + SVM {100 * svm:.1f}, closed form with taps "
            f"{100 * np.mean(found):.1f} ({', '.join(f'{100 * x:.1f}' for x in found)}), "
            f"{seconds / seeds:.0f} CPU s each",
            flush=True,
        )


_PADDINGS = {
    "middle of zeros": preparation.window_of,
    "before zeros": lambda s, f: np.pad(s, (0, max(0, f.samples - len(s))))[: f.samples],
    "repeated": lambda s, f: np.resize(s, f.samples),
    "reflected": lambda s, f: preparation.window_of(
        np.pad(s, max(0, f.samples - len(s)) // 2, mode="symmetric"), f
    ),
}


def tune() -> None:
    files = clips()
    decoded = [decode.decode(file.read_bytes()) for file in files]
    labels = np.array([int(file.parent.name) for file in files])
    speakers = np.array([speaker(file) for file in files])
    backbone = build_backbone(BACKBONE, image_size=SIZE, taps="all")
    for decibels in (80.0, 60.0, 40.0, 30.0):
        log_mel._RANGE = decibels
        for padding in _PADDINGS if decibels == 40 else ("middle of zeros",):
            scores = []
            for held_out in itertools.combinations(TUNING, 2):
                held = np.isin(speakers, held_out)
                seconds = np.array([len(samples) / rate for samples, rate in decoded])
                framing, _ = choose_framing(seconds[~held], np.full((~held).sum(), 8000))
                framing = framing.at(SIZE)
                windows = [_PADDINGS[padding](samples, framing) for samples, _ in decoded]
                images = np.stack([log_mel.image_of(window, framing) for window in windows])
                features = backbone.predict(images, batch_size=64, verbose=0)
                rows = np.flatnonzero(~held)
                head = logistic_regression(features[rows], labels[rows], np.arange(len(rows)))
                predicted = (features[held] @ head.kernel + head.bias).argmax(axis=1)
                scores.append((predicted == labels[held]).mean())
            print(f"{decibels:g} dB, {padding}: {100 * np.mean(scores):.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="compare ranges and paddings")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    tune() if options.tune else report(options.seeds)
