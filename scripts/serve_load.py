"""Load on an exported model, batched as TF Serving batches it, in a process without Keras.

    python scripts/serve_load.py [--requests 20000] [--clients 16] [--kinds image,audio,text]
        [--sweep [--trials 2000]]

Exports a model of each kind and calls `serve_bytes` from 16 clients at once. Their requests have 1 to 8
rows; 5 % of the rows cannot be read. As in TF Serving, a few threads join waiting requests into batches
(`serving/batching.config`). Prints the rows that were refused, wrong or lost, memory, latencies, and the
rate against bare `predict_on_batch` of the Keras model on prepared inputs. `--sweep` tries several
settings of the batching first, with `--trials` requests each, and prints the fastest as a
`batching.config`.
"""

import argparse
import io
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROWS = 8  # most rows of a request
BROKEN = 0.05
SETTINGS = {"max_batch_size": 32, "batch_timeout_micros": 1000, "num_batch_threads": 2}
SWEEP = [
    {"max_batch_size": size, "batch_timeout_micros": wait, "num_batch_threads": threads}
    for size in (8, 32, 64)
    for wait in (0, 1000, 5000)
    for threads in (1, 2)
]
CONFIG = """\
# Batching of TF Serving: --enable_batching --batching_parameters_file=batching.config
# `python scripts/serve_load.py --sweep` prints it; num_batch_threads is the number of cores.
max_batch_size {{ value: {max_batch_size} }}
batch_timeout_micros {{ value: {batch_timeout_micros} }}
num_batch_threads {{ value: {num_batch_threads} }}
max_enqueued_batches {{ value: 1000 }}
"""


# -- models and examples, with Keras ----------------------------------------------------------------


def photographs(rng):
    from PIL import Image

    for _ in range(64):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8))
        buffer = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def clips(rng):
    import soundfile

    for _ in range(64):
        pitch, seconds = rng.uniform(100, 2000), rng.uniform(0.3, 1.0)
        samples = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(8000 * seconds)) / 8000)
        buffer = io.BytesIO()
        soundfile.write(buffer, samples + rng.normal(0, 0.01, len(samples)), 8000, format="WAV")
        yield buffer.getvalue()


def texts(rng):
    words = [
        "how",
        "do",
        "i",
        "change",
        "the",
        "limit",
        "of",
        "my",
        "card",
        "when",
        "it",
        "was",
        "lost",
        "or",
        "stolen",
        "and",
        "where",
    ]
    for _ in range(64):
        yield " ".join(rng.choice(words, rng.integers(6, 20))).encode()


def image_model():
    import keras_transfer as kt

    return kt.build_model("mobilenet_0.25", classes(), image_size=128, weights=None)


def audio_model():
    import keras_transfer as kt
    from keras_transfer.modalities.audio.framing import ClipFraming
    from keras_transfer.models.framing import set_framing

    model = kt.build_model("mobilenet_0.25", classes(), image_size=96, weights=None)
    set_framing(model, ClipFraming(96, rate=8000, seconds=1.0))
    return model


def text_model():
    import keras_hub

    import keras_transfer as kt
    from keras_transfer.modalities.text.framing import TextFraming, WordPiece
    from keras_transfer.models.sources.keras_hub import backbone_from_hub

    words = [w.decode() for text in texts(np.random.default_rng(0)) for w in text.split()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(words))]
    encoder = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=128,
        intermediate_dim=512,
    )
    framing = TextFraming(128, WordPiece("\n".join(vocabulary)))
    return kt.build_model(backbone_from_hub(encoder, framing=framing), classes())


def classes():
    from keras_transfer.models.heads import Classification

    return Classification(["first", "second", "third"])


KINDS = {
    "image": (image_model, photographs, b"\xff\xd8\xff broken"),
    "audio": (audio_model, clips, b"RIFF broken"),
    "text": (text_model, texts, b"\xff\xfe not UTF-8"),
}


def bare(model, examples):
    """Return rows per second of `predict_on_batch` on prepared inputs, in batches of 32."""
    import tensorflow as tf

    from keras_transfer.models.framing import framing_of, modality_of

    modality, framing = modality_of(model), framing_of(model)
    decode = modality.decoder(framing)
    made = [np.asarray(decode(tf.constant(one))) for one in examples[:32]]
    longest = max(len(one) for one in made)
    inputs = np.stack([np.pad(m, [(0, longest - len(m))] + [(0, 0)] * (m.ndim - 1)) for m in made])
    model.predict_on_batch(inputs)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 5:
        model.predict_on_batch(inputs)
        done += len(inputs)
    return done / (time.perf_counter() - start)


def measure(kind, options):
    """Export a model, measure the bare one here and the export in a process without Keras."""
    import keras

    from keras_transfer.export import saved_model

    build, make, broken = KINDS[kind]
    keras.utils.set_random_seed(0)
    model, examples = build(), list(make(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "1"
        saved_model(model, exported)
        for name, data in [*((f"{i:03d}", one) for i, one in enumerate(examples)), ("x", broken)]:
            (Path(folder) / f"{name}.example").write_bytes(data)
        rate = bare(model, examples)
        command = [sys.executable, __file__, "--child", folder, *options]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return rate, found


# -- the served model, without Keras ----------------------------------------------------------------


class Server:
    """Joins requests as TF Serving does, and answers them with a SavedModel."""

    def __init__(self, call, max_batch_size, batch_timeout_micros, num_batch_threads):
        self.call, self.most, self.wait = call, max_batch_size, batch_timeout_micros / 1e6
        self.waiting: queue.Queue = queue.Queue()
        self.lock, self.left = threading.Lock(), None
        self.threads = [
            threading.Thread(target=self.run, daemon=True) for _ in range(num_batch_threads)
        ]
        for thread in self.threads:
            thread.start()

    def ask(self, rows):
        """Return the answers of one request."""
        done = threading.Event()
        box: dict = {}
        self.waiting.put((rows, box, done))
        done.wait()
        return box

    def run(self):
        while (batch := self.gather()) is not None:
            answers = self.call([row for rows, _, _ in batch for row in rows])
            start = 0
            for rows, box, done in batch:
                box.update({k: v[start : start + len(rows)] for k, v in answers.items()})
                start += len(rows)
                done.set()

    def gather(self):
        with self.lock:  # one thread forms a batch at a time
            first = self.left or self.waiting.get()
            self.left = None
            if first is None:
                self.waiting.put(None)
                return None
            batch, count = [first], len(first[0])
            end = time.perf_counter() + self.wait
            while count < self.most:
                try:
                    more = self.waiting.get(timeout=max(0, end - time.perf_counter()))
                except queue.Empty:
                    break
                if more is None:
                    self.waiting.put(None)
                    break
                if count + len(more[0]) > self.most:
                    self.left = more
                    break
                batch.append(more)
                count += len(more[0])
            return batch

    def close(self):
        self.waiting.put(None)
        for thread in self.threads:
            thread.join()


def memory() -> float:
    """Return the resident memory of this process in MiB."""
    text = Path("/proc/self/statm").read_text() if Path("/proc/self/statm").exists() else "0 0"
    return int(text.split()[1]) * 4096 / 2**20


def load(server, examples, broken, expected, requests, clients):
    """Send requests from all clients; return what happened."""
    latencies: list[float] = []
    found = {"rows": 0, "refused": 0, "wrongly refused": 0, "wrongly answered": 0, "other": 0}
    seen: list[float] = []
    lock = threading.Lock()

    def client(number):
        rng = np.random.default_rng(number)
        for _ in range(requests // clients):
            picked = rng.integers(0, len(examples), rng.integers(1, ROWS + 1))
            bad = rng.random(len(picked)) < BROKEN
            rows = [broken if b else examples[i] for i, b in zip(picked, bad)]
            start = time.perf_counter()
            answer = server.ask(rows)
            elapsed = time.perf_counter() - start
            errors = np.array([bool(e) for e in answer["error"]])
            near = np.abs(answer["scores"] - expected[picked]).max(axis=1) < 1e-3
            with lock:
                latencies.append(elapsed)
                found["rows"] += len(rows)
                found["refused"] += int(errors.sum())
                found["wrongly refused"] += int((errors & ~bad).sum())
                found["wrongly answered"] += int((~errors & bad).sum())
                found["other"] += int((~errors & ~bad & ~near).sum())
                if len(latencies) % max(1, requests // 40) == 0:
                    seen.append(memory())

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return found | {
        "requests": len(latencies),
        "rate": found["rows"] / seconds,
        "p50": float(np.percentile(latencies, 50)) * 1000,
        "p99": float(np.percentile(latencies, 99)) * 1000,
        "memory": [seen[len(seen) // 2], max(seen[len(seen) // 2 :])],
    }


def child(options):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import without_keras  # noqa: F401 (before TensorFlow)

    # isort: split
    import tensorflow as tf

    folder = Path(options.child)
    load_operations(tf)
    signature = tf.saved_model.load(str(folder / "1")).signatures["serve_bytes"]
    files = sorted(folder.glob("*.example"))
    *examples, broken = (file.read_bytes() for file in files)

    def call(rows):
        answers = signature(bytes=tf.constant(rows))
        return {name: answers[name].numpy() for name in ("scores", "error")}

    expected = np.concatenate([call([one])["scores"] for one in examples])

    def run(settings, requests):
        server = Server(call, **settings)
        found = load(server, examples, broken, expected, requests, options.clients)
        server.close()
        return found

    run(SETTINGS, 400)  # traces and fills memory pools
    settings = SETTINGS
    if options.sweep:
        rates = []
        for one in SWEEP:
            found = run(one, options.trials)
            rates.append(found["rate"])
            print(
                *one.values(),
                f"{found['rate']:.0f} rows/s, p99",
                f"{found['p99']:.0f} ms",
                file=sys.stderr,
            )
        settings = SWEEP[int(np.argmax(rates))]
    print(json.dumps(run(settings, options.requests) | {"settings": settings}))


def load_operations(tf):
    """Load the ops of tensorflow-text, whose package would import Keras."""
    import importlib.util

    if (spec := importlib.util.find_spec("tensorflow_text")) is not None:
        for file in sorted((Path(spec.origin).parent / "python" / "ops").glob("_*.so")):
            tf.load_op_library(str(file))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--trials", type=int, default=2000, help="requests of each setting")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    passed = ["--requests", str(options.requests), "--clients", str(options.clients)]
    passed += ["--trials", str(options.trials), *["--sweep"] * options.sweep]
    print(
        "| kind | requests | rows | refused | refused wrongly | other faults | p50, p99 ms | "
        "rows/s | bare rows/s | MiB at half, highest after |"
    )
    print("|---|" + "---:|" * 9)
    for kind in options.kinds.split(","):
        rate, found = measure(kind, passed)
        middle, highest = found["memory"]
        print(
            f"| {kind} | {found['requests']:,} | {found['rows']:,} | {found['refused']:,} | "
            f"{found['wrongly refused']} | {found['wrongly answered'] + found['other']} | "
            f"{found['p50']:.0f}, {found['p99']:.0f} | {found['rate']:.0f} | {rate:.0f} | "
            f"{middle:.0f}, {highest:.0f} |",
            flush=True,
        )
        if options.sweep:
            print(f"\n{CONFIG.format(**found['settings'])}", flush=True)


if __name__ == "__main__":
    main()
