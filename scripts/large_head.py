"""Fit a head in closed form on more features than memory may hold.

    python scripts/large_head.py [--rows 1000000] [--features 1280] [--classes 100] [--compare] [--folder F]

Writes synthetic features as float16 rows of a feature store, fits them in blocks, and prints accuracy on
held-out rows, time and peak memory. `--compare` fits them in memory as well. A million rows take 2.6 GB of
disk; the features need as much memory again only if the system has it to spare for its file cache.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_transfer.features.blocks import Rows
from keras_transfer.features.closed_form import solve
from keras_transfer.features.extraction import Activations
from keras_transfer.features.store import Store, Writer

_HELD_OUT, _SHARD = 5000, 16384


def write(folder, rows, features, classes):
    """Return (activations, labels) of rows around one center for each class, some of them mislabeled."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, features)).astype("float32") * 0.12
    mixing = rng.normal(size=(features, 64)).astype("float32") / 8
    table = Store(folder).table({"rows": rows}, {})
    writer, labels = Writer(table), rng.integers(0, classes, rows)
    for start in range(0, rows, _SHARD):
        own = labels[start : start + _SHARD]
        common = rng.normal(size=(len(own), 64)).astype("float32") @ mixing.T
        values = centers[own] + common + rng.normal(size=(len(own), features)).astype("float32")
        names = [n.to_bytes(16, "little") for n in range(start, start + len(own))]
        writer.add(names, values.astype("float16"))
    writer.flush()
    places = table.locate(n.to_bytes(16, "little") for n in range(rows))
    return Activations((table,), places[None], "keras"), labels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument(
        "--folder", help="where the store is written; by default a temporary folder"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found, labels = write(Path(folder), options.rows, options.features, options.classes)
        train, test = np.split(np.arange(options.rows), [options.rows - _HELD_OUT])
        held_out = found.gather(test).astype("float32")
        stored = Rows((len(train), options.features), found.gather)
        print("| features | accuracy | time | peak memory |")
        print("|---|---|---|---|")
        kinds = {"in blocks": stored}
        for kind in [*kinds, *(["in memory"] if options.compare else [])]:
            features = kinds.get(kind)
            started = time.perf_counter()
            if features is None:
                features = stored.take(train)
            head = solve("single_label", features, labels[train], train)
            seconds = time.perf_counter() - started
            right = ((held_out @ head.kernel + head.bias).argmax(1) == labels[test]).mean()
            # The peak never falls, so the fit in memory is the second.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            size = f"{len(train):,} × {options.features:,}, {options.classes} classes, {kind}"
            print(
                f"| {size} | {100 * right:.2f} % | {seconds:.0f} s | {peak:.2f} GiB |", flush=True
            )


if __name__ == "__main__":
    main()
