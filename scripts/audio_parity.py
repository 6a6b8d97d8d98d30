"""Spoken digits in every format: whether each clip is given the same class, alone and among loud ones.

    python scripts/audio_parity.py [--backbone mobilenet_0.25] [--image-size 96x128]

Trains the closed form on all clips, exports it as a SavedModel, for LiteRT, ONNX and OpenVINO, and compares
the answers to all clips with those of the Keras model on inputs as in training. Each clip is then made ten
times quieter, and asked for alone and in a batch with loud clips. Needs KERAS_HOME and KERAS_TRANSFER_DATA.
"""

import argparse
import os
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_transfer.data import from_directory
from keras_transfer.export.converters import open_export
from keras_transfer.export.exporter import export_run
from keras_transfer.export.serving import scoring_model
from keras_transfer.models.builders import build_model, head_for
from keras_transfer.models.framing import framing_of, modality_of
from keras_transfer.training.trainer import Trainer

FORMATS = ("saved_model", "litert", "onnx", "openvino")
BATCH = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="mobilenet_0.25")
    parser.add_argument("--image-size", default="96")
    options = parser.parse_args()
    clips = Path(os.environ["KERAS_TRANSFER_DATA"]) / "audio" / "spoken_digits"
    keras.utils.set_random_seed(0)
    data = from_directory(clips, val_split=0.2, groups="([a-z]+)_[0-9]+", progress=False)
    model = build_model(options.backbone, head_for(data), image_size=options.image_size, taps="all")
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(model, "feature_extraction", cache="memory").fit(data, Path(folder) / "run")
        model = run.model
        modality, framing = modality_of(model), framing_of(model)
        decoded, contents, inputs = [], [], []
        for split, examples in data.examples.items():
            decoded += [examples.images.decoded(i) for i in range(len(examples))]
            contents += [examples.images.contents(i) for i in range(len(examples))]
            inputs += [x for x, _ in data.batches(split, image_size=framing, batch_size=64)]
        expected = scoring_model(model).predict(np.concatenate(inputs), verbose=0)["scores"]
        windows = modality.exported_inputs(decoded, framing)
        quiet = [(samples / 10, rate) for samples, rate in decoded]
        print(f"{len(decoded)} clips, {options.backbone} at {options.image_size}")
        for kind in FORMATS:
            out = export_run(run, kind, data=data).path
            if kind == "saved_model":
                loaded = tf.saved_model.load(str(out))
                ask = loaded.signatures["serve_bytes"]

                def predict(rows, ask=ask):
                    return ask(bytes=tf.constant(rows))["scores"].numpy()

                asked, softened = contents, [modality.encode(clip) for clip in quiet]
            else:
                answer = open_export(out)

                def predict(rows, answer=answer):
                    return answer(np.stack(rows))["scores"]

                asked, softened = list(windows), list(modality.exported_inputs(quiet, framing))
            compare(kind, predict, asked, softened, expected)


def compare(kind, predict, asked, softened, expected):
    starts = range(0, len(asked), BATCH)
    found = np.concatenate([predict(asked[start : start + BATCH]) for start in starts])
    alone = np.concatenate([predict([one]) for one in softened])
    # Each among the loud ones that precede it.
    half = BATCH // 2
    among = np.concatenate(
        [
            predict(asked[start : start + half] + softened[start : start + half])[-half:]
            for start in range(0, len(asked) - half + 1, half)
        ]
    )
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    alike = (alone[: len(among)].argmax(axis=1) == among.argmax(axis=1)).mean()
    print(
        f"{kind}: same class as Keras {100 * same:.2f} %, scores differ by at most "
        f"{np.abs(found - expected).max():.1e}; quiet clips alone and among loud ones: same class "
        f"{100 * alike:.2f} %, at most {np.abs(alone[: len(among)] - among).max():.1e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
