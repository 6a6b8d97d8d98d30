"""Check damaged image files: no crash, no hang, and the same pixels in prediction and serving.

    python scripts/fuzz_images.py --count 5000

Prints the number of files per outcome. Small JPEG, PNG, GIF, BMP and WebP files (with EXIF, palettes,
several frames) are changed at random: bytes are flipped, removed, repeated or moved between files, numbers
in headers are set to extremes, ends are cut off. Each file is checked, decoded, and decoded by the graph of
the exported model, in a separate process that is killed if a file takes more than 20 seconds. Files with
errors are saved in --keep, and the exit code is then 1.

The script asserts that a file without a fault decodes to the size that the check found, and that a file
that can be served has the same pixels in prediction.
"""

import argparse
import faulthandler
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS = 20


def seeds(rng) -> list[bytes]:
    """Return valid files of every kind that the decoders accept."""
    y, x = np.mgrid[0:23, 0:37]
    smooth = np.stack([x * 6, y * 10, (x + y) * 4], -1)
    pixels = np.clip(smooth + rng.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    grey, palette = rgb.convert("L"), rgb.quantize(16)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a note"
    turned = rgb.rotate(180)
    frames = dict(save_all=True, append_images=[turned.quantize(16)], duration=50)
    made = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (grey, "JPEG", {"exif": exif}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {"exif": exif}),
        (Image.fromarray(np.asarray(grey).astype(np.uint16) * 256), "PNG", {}),
        (palette, "PNG", {"transparency": bytes(range(0, 256, 16))}),
        (alpha, "PNG", {}),
        (grey.point(lambda v: v > 99, "1"), "PNG", {}),
        (palette, "GIF", {}),
        (palette, "GIF", {"transparency": 3, **frames}),
        (rgb, "BMP", {}),
        (palette, "BMP", {}),
        (rgb, "WEBP", {"exif": exif}),
        (alpha, "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [turned]}),
    ]
    files = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def mutated(files: list[bytes], rng) -> bytes:
    """Return one of the files, changed in one place or a few."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.geometric(0.6)):
        if not data:
            break
        # Prefer headers.
        end = len(data) if rng.random() < 0.7 else min(len(data), 64)
        at, length = int(rng.integers(end)), int(rng.geometric(0.1))
        match rng.choice(8, p=[0.25, 0.25, 0.1, 0.08, 0.08, 0.08, 0.08, 0.08]):
            case 0:
                data[at] ^= 1 << rng.integers(8)
            case 1:
                data[at] = rng.integers(256)
            case 2:
                data[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff"])
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                other = files[rng.integers(len(files))]
                data[at : at + length] = other[at : at + length]
            case 6:
                data[at : at + length] = rng.bytes(length)
            case 7:
                del data[at:]
    return bytes(data)


def outcome(data: bytes, served, decode, examine) -> str:
    """Return the result of check, decoding and serving; it begins with WRONG if they disagree."""
    from tensorflow.errors import OpError

    facts = examine(data)
    try:
        graph = served(data).numpy()
    except OpError:
        graph = None
    if facts.fault is not None:
        # Prediction rejects it, so serving need not agree.
        return "faulty, " + ("refused" if graph is None else "served")
    try:
        pixels = decode(data)
    except ValueError as error:
        return f"WRONG: without a fault, but {error}"
    stored = (facts.height, facts.width)
    if pixels.shape[:2] != (stored if facts.orientation < 5 else stored[::-1]):
        return f"WRONG: {facts} was decoded to {pixels.shape}"
    if graph is None:
        return "usable, not served"
    if graph.shape != pixels.shape or not np.array_equal(graph, pixels):
        if damaged_exif(data):
            return "damaged EXIF, served in another orientation"
        return f"WRONG: served as other pixels ({graph.shape}, {pixels.shape})"
    return "usable, served"


def damaged_exif(data: bytes) -> bool:
    """Return whether Pillow stops reading the EXIF block before its end."""
    from keras_transfer.modalities.image.decode import open_image, orientation_of

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        orientation_of(open_image(data), data)
    return bool(caught)


def work(count: int, seed: int, first: int, state: Path) -> None:
    """Process the files from `first` on; `state` is the file in progress."""

    import tensorflow as tf

    from keras_transfer.modalities.image.decode import decode, examine
    from keras_transfer.modalities.image.serving import decode_in_graph

    warnings.simplefilter("ignore")
    spec = tf.TensorSpec([], tf.string)
    served = tf.function(decode_in_graph, input_signature=[spec], autograph=False)
    files = seeds(np.random.default_rng(0))
    for data in files:
        assert not outcome(data, served, decode, examine).startswith("WRONG"), data[:20]
    for number in range(first, count):
        data = mutated(files, np.random.default_rng([seed, number]))
        state.write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        started = time.perf_counter()
        said = outcome(data, served, decode, examine)
        seconds = time.perf_counter() - started
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([number, said, seconds]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files with errors")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.count, args.seed, int(args.work[0]), Path(args.work[1]))
        return 0
    said, wrong, slowest, number = Counter(), [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        while number < args.count:
            command = [sys.executable, "-X", "faulthandler", __file__, "--count", str(args.count)]
            command += ["--seed", str(args.seed), "--work", str(number), str(state)]
            env = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
            with (
                (Path(folder) / "errors").open("w+") as errors,
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
                ) as process,
            ):
                for line in process.stdout:
                    at, word, seconds = json.loads(line)
                    number, slowest = at + 1, max(slowest, seconds)
                    said[word.split(":")[0]] += 1
                    if word.startswith("WRONG"):
                        wrong.append((at, word))
                        _keep(args, at, None)
                process.wait()
                errors.seek(0)
                traceback = errors.read()[-2000:]
            if process.returncode and number < args.count:
                if not state.exists():
                    raise RuntimeError(traceback)
                wrong.append((number, f"CRASH ({process.returncode}): {traceback}"))
                _keep(args, number, state.read_bytes())
                number += 1
    print(f"{args.count} files: " + ", ".join(f"{k} {n}" for k, n in sorted(said.items())))
    print(f"slowest: {slowest:.2f} s; not right: {len(wrong)}")
    for at, word in wrong:
        print(f"file {at}: {word}")
    return 1 if wrong else 0


def _keep(args, number, data):
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        if data is None:
            files = seeds(np.random.default_rng(0))
            data = mutated(files, np.random.default_rng([args.seed, number]))
        (args.keep / f"{args.seed}-{number}").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
