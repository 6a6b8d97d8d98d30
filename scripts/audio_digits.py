"""Spoken digits by speakers that are not in the training data: MFCC + SVM, and what the product trains.

    python scripts/audio_digits.py                       three pairs of speakers held out
    python scripts/audio_digits.py --pairs 1 --methods closed_form lp_ft --seeds 1
    python scripts/audio_digits.py --methods closed_form --sizes 96 64x128 --seeds 1
    python scripts/audio_digits.py --tune                the front end's range and padding
    python scripts/audio_digits.py --tune --sizes 96 64x128 96x192   heights and widths of the image
    python scripts/audio_digits.py --tune --methods lp_ft --seeds 1    the rate of fine-tuning
    python scripts/audio_digits.py --tune --methods auto --seeds 1     rules of the advisor

Speakers are divided once. Constants of the front end and of fine-tuning were chosen on held-out speakers of
TUNING, where those of REPORTED were only trained on; --tune repeats the comparisons of range, padding and rate.
The first command holds out speakers of REPORTED, which decide nothing: the last epoch is measured. It prints
accuracies, and CPU seconds from reading files to the trained model. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import itertools
import os
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
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
SPEAKER, MINUTES = r"/([a-z]+)_\d+\.wav", 3


def clips() -> list[Path]:
    folder = Path(os.environ["KERAS_TRANSFER_DATA"]) / "audio" / "spoken_digits"
    return sorted(folder.glob("*/*.wav"))


def speaker(file: Path) -> str:
    return file.name.split("_")[0]


def mfcc(file: Path) -> np.ndarray:
    """Return mean and standard deviation over time of 20 cepstral coefficients, over 80 dB."""
    samples, rate = decode.decode(file.read_bytes())
    framing = ClipFraming(64, rate, max(0.1, len(samples) / rate))
    fourier, mel, _ = log_mel._matrices(framing)
    spectra = np.lib.stride_tricks.sliding_window_view(
        preparation.window_of(samples, framing), len(fourier)
    )
    waves = spectra[:: framing.hop] @ fourier
    power = (waves[:, : len(mel)] ** 2 + waves[:, len(mel) :] ** 2) @ mel
    levels = 10 * np.log10(np.maximum(power, power.max() * 1e-8))
    coefficients = dct(levels.T, axis=0, norm="ortho")[:20]
    return np.concatenate([coefficients.mean(axis=1), coefficients.std(axis=1)])


def baseline(train: list[Path], held: list[Path]) -> float:
    model = make_pipeline(StandardScaler(), SVC(C=10))
    model.fit([mfcc(file) for file in train], [file.parent.name for file in train])
    return model.score([mfcc(file) for file in held], [file.parent.name for file in held])


@contextmanager
def arranged(train: list[Path], held: list[Path], name: str = "val"):
    """Yield a folder with train/<class>/ and another split of the held-out clips, and a place for runs."""
    with tempfile.TemporaryDirectory() as folder:
        for split, files in (("train", train), (name, held)):
            for file in files:
                place = Path(folder) / "data" / split / file.parent.name / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file)
        yield Path(folder) / "data", Path(folder) / "run"


def trained(strategy: str, backbone=BACKBONE, **options):
    """Return a method: it trains as `keras-transfer train` does, and measures the last epoch."""

    def method(train, held, seed, size=SIZE):
        from keras_transfer.data import from_directory
        from keras_transfer.training.trainer import Trainer

        keras.utils.set_random_seed(seed)
        weights = None if strategy == "from_scratch" else "imagenet"
        taps = "last" if strategy == "from_scratch" else "all"
        with arranged(train, held) as (folder, out):
            data = from_directory(folder, progress=False)
            model = build_model(
                backbone, head_for(data), image_size=size, taps=taps, weights=weights
            )
            trainer = Trainer(
                model,
                strategy,
                seed=seed,
                cache="memory",
                keep="last",
                validate_every=100,
                **options,
            )
            return trainer.fit(data, out).metrics["val"]["accuracy"]

    return method


def chosen(train, held, seed, size=None):
    """Return the accuracy of `auto` in three minutes, which validates on one of the training speakers."""
    from keras_transfer.advisor.auto import train_best
    from keras_transfer.data import from_directory
    from keras_transfer.evaluation import evaluate
    from keras_transfer.training.config import TrainConfig

    with arranged(train, held, "test") as (folder, out):
        data = from_directory(folder, groups=SPEAKER, val_split=0.25, seed=seed, progress=False)
        run = train_best(data, out, TrainConfig(minutes=MINUTES, seed=seed, image_size=size))
        return evaluate(run.model, data, "test")["accuracy"]


METHODS = {
    "closed_form": trained("feature_extraction"),
    "closed_form_both": trained("feature_extraction", [BACKBONE, "mobilenet_v2_0.35"]),
    "lp_ft": trained("lp_ft"),
    "auto": chosen,
    # By default twice the epochs of lp_ft.
    "from_scratch": trained("from_scratch"),
}


def pairs(speakers, count: int):
    for held_out in list(itertools.combinations(speakers, 2))[:count]:
        train = [file for file in clips() if speaker(file) not in held_out]
        yield held_out, train, [file for file in clips() if speaker(file) in held_out]


def report(options, speakers) -> None:
    for held_out, train, held in pairs(speakers, options.pairs):
        print(f"{' and '.join(held_out)}: MFCC + SVM {100 * baseline(train, held):.1f}", flush=True)
        for name in options.methods or METHODS:
            for size in options.sizes or ("",):
                method = partial(METHODS[name], size=size) if size else METHODS[name]
                measured(f"{name} {size}".strip(), method, train, held, options.seeds)


def measured(name, method, train, held, seeds):
    before = time.process_time()
    found = [100 * method(train, held, seed) for seed in range(seeds)]
    each = ", ".join(f"{x:.1f}" for x in found)
    print(
        f"  {name}: {np.mean(found):.1f} ({each}), {(time.process_time() - before) / seeds:.0f} CPU s each",
        flush=True,
    )


def tune_rate(options) -> None:
    for held_out, train, held in pairs(TUNING, options.pairs):
        print(" and ".join(held_out), flush=True)
        for rate in (4e-4, 1e-3, 2e-3):
            method = trained("lp_ft", learning_rate=rate)
            measured(f"lp_ft at {rate:g}", method, train, held, options.seeds)


_PADDINGS = {
    "middle of zeros": preparation.window_of,
    "before zeros": lambda s, f: np.pad(s, (0, max(0, f.samples - len(s))))[: f.samples],
    "repeated": lambda s, f: np.resize(s, f.samples),
    "reflected": lambda s, f: preparation.window_of(
        np.pad(s, max(0, f.samples - len(s)) // 2, mode="symmetric"), f
    ),
}


def tune(sizes) -> None:
    """Print the closed form's accuracy by range and padding, or by size, on pairs of TUNING."""
    decoded = [decode.decode(file.read_bytes()) for file in clips()]
    if sizes:
        for size in sizes:
            print(f"{size}: {tuned(decoded, size, 'middle of zeros'):.1f}", flush=True)
        return
    for decibels in (60.0, 40.0, 30.0, 25.0, 20.0):
        log_mel._RANGE = decibels
        for padding in _PADDINGS if decibels == 30 else ("middle of zeros",):
            print(f"{decibels:g} dB, {padding}: {tuned(decoded, SIZE, padding):.1f}", flush=True)


def tuned(decoded, size, padding) -> float:
    """Return the mean accuracy of the closed form with taps on pairs of TUNING, in percent."""
    labels = np.array([int(file.parent.name) for file in clips()])
    speakers = np.array([speaker(file) for file in clips()])
    backbone = build_backbone(BACKBONE, image_size=size, taps="all")
    seconds = np.array([len(samples) / rate for samples, rate in decoded])
    scores = []
    for held_out in itertools.combinations(TUNING, 2):
        held = np.isin(speakers, held_out)
        framing, _ = choose_framing(seconds[~held], np.full((~held).sum(), 8000))
        framing = framing.at(size)
        windows = [_PADDINGS[padding](samples, framing) for samples, _ in decoded]
        images = np.stack([log_mel.image_of(window, framing) for window in windows])
        features = backbone.predict(images, batch_size=64, verbose=0)
        rows = np.flatnonzero(~held)
        head = logistic_regression(features[rows], labels[rows], np.arange(len(rows)))
        predicted = (features[held] @ head.kernel + head.bias).argmax(axis=1)
        scores.append((predicted == labels[held]).mean())
    return 100 * float(np.mean(scores))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tune", action="store_true", help="compare constants on other speakers")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all")
    parser.add_argument("--sizes", nargs="+", help="of log-mel images")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if not options.tune:
        report(options, REPORTED)
    elif options.methods == ["auto"]:
        report(options, TUNING)
    elif options.methods == ["lp_ft"]:
        tune_rate(options)
    else:
        tune(options.sizes)
