"""Speed of a SavedModel of texts: strings in, labels out, in this process.

    python scripts/text_serving.py ENCODER

ENCODER is the name or the folder of an encoder; the head has 77 classes and random weights. Texts have 16
tokens. It prints wall and CPU milliseconds of a request of 32 texts and of one text (median of the
requests), and texts per second. On a busy machine, only the CPU times mean something.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_transfer.export import saved_model
from keras_transfer.models.builders import build_model
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Classification

TOKENS, CLASSES, REQUESTS = 16, 77, 30


def texts_of(model, count: int) -> list[str]:
    """Return texts of 14 words of the vocabulary, and two special tokens."""
    words = [word for word in framing_of(model).required.vocabulary if word.isalpha()]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, TOKENS - 2)) for _ in range(count)]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("encoder")
    options = parser.parse_args()
    head = Classification([f"class {number}" for number in range(CLASSES)])
    model = build_model(options.encoder, head)
    with tempfile.TemporaryDirectory() as folder:
        exported = saved_model(model, Path(folder) / "1")
        serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    for size in (32, 1):
        requests = [tf.constant(texts_of(model, size)) for _ in range(REQUESTS)]
        serve(texts=requests[0])
        wall, cpu = [], []
        for request in requests:
            started = time.perf_counter(), cpu_seconds()
            serve(texts=request)["scores"].numpy()
            wall.append(time.perf_counter() - started[0])
            cpu.append(cpu_seconds() - started[1])
        wall_ms, cpu_ms = (1000 * float(np.median(x)) for x in (wall, cpu))
        print(
            f"{size} texts: {wall_ms:.1f} ms, {cpu_ms:.1f} CPU ms; {1000 * size / wall_ms:.0f} texts/s, "
            f"{1000 * size / cpu_ms:.0f} per CPU second"
        )


if __name__ == "__main__":
    main()
