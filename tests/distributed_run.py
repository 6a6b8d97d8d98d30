"""One process of a distributed training, for the tests: trains each named schedule, one after another.

    python distributed_run.py IMAGES OUT KIND SCHEDULE… [--resume] [--slow SECONDS] [--scaling NAME]

KIND is `none` or what `start_workers` takes. The first worker writes the final weights to
OUT/<schedule>.npz, and each the ids of the examples that weigh anything in its part of three epochs of
10, 13 and 17 images to OUT/ids-<worker>.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from conftest import tiny_backbone


def schedules():
    from keras_transfer.schedules.phases import Phase, Schedule
    from keras_transfer.schedules.recipes import resolve_schedule

    rates = Phase(
        "all",
        "none",
        2,
        0.05,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9},
        rates={"head": 4.0, "stage:1": 0.5},
        lowest_rate=0.3,
        clip_norm=0.5,
        l2_sp=0.01,
    )
    return {
        "feature_extraction": resolve_schedule("feature_extraction", {}, examples=14),
        "lp_ft": resolve_schedule("lp_ft", {"epochs": 2, "head_epochs": 1}, examples=14),
        "gradual_unfreeze": resolve_schedule(
            "gradual_unfreeze", {"epochs": 3, "stages": 1, "head_epochs": 1}, examples=14
        ),
        "rates": Schedule("rates", (rates,)),
        "watched": Schedule(
            "watched",
            (
                Phase("lowered", "none", 4, 1e-6, shape="plateau", patience=1),
                Phase("stopped", "none", 6, 1e-12, optimizer="sgd", early_stopping=1),
            ),
        ),
        "weighted": Schedule(
            "weighted", (Phase("all", "none", 1, 0.01, class_weights={"green": 1.0, "red": 3.0}),)
        ),
        "mixed": Schedule("mixed", (Phase("all", "none", 2, 1e-3, mix="mixup"),)),
        "accumulated": Schedule("accumulated", (Phase("all", "none", 2, 1e-3, accumulate=2),)),
        "statistics": Schedule(
            "statistics", (Phase("all", "none", 1, 0.01, optimizer="sgd", batch_norm="train"),)
        ),
        "averaged": Schedule("averaged", (Phase("all", "none", 2, 1e-3, ema=0.9),)),
        "long": Schedule("long", (Phase("all", "none", 40, 1e-3, shape="constant"),)),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind")
    parser.add_argument("schedules", nargs="+")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds after each epoch")
    parser.add_argument("--scaling", default="none")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args(arguments)

    from keras_transfer.errors import WorkerLost
    from keras_transfer.training.distributed import faults
    from keras_transfer.training.distributed.environment import start_workers

    devices = None
    if options.kind == "mirrored":  # one processor stands for two devices
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        devices = ["CPU:0", "CPU:1"]
    workers = start_workers(options.kind, devices=devices)
    try:
        with workers.translated():
            if workers.distributed:
                write_ids(workers, options.out)
            for name in options.schedules:
                train(name, workers, options)
    except WorkerLost as error:
        print(f"error: {error}", flush=True)
        faults.leave(error.exit_code)
    print("done", flush=True)


def write_ids(workers, out):
    from keras_transfer.data.arrays import Arrays
    from keras_transfer.data.batches import batches
    from keras_transfer.data.examples import Examples

    found = []
    for count in (10, 13, 17):
        examples = Examples(Arrays(np.zeros((count, 8, 8, 3), "uint8")), np.arange(count))
        share = workers.share
        stream = batches(examples, image_size=8, batch_size=4, training=True, share=share)
        pieces = 1 if share.joined else share.local
        epoch = stream.take(-(-count // 4) * pieces)
        found.append([int(i) for _, ids, weights in epoch for i in ids[weights > 0]])
    (out / f"ids-{workers.index}.json").write_text(json.dumps(found))


def train(name, workers, options):
    import keras

    from keras_transfer.data import from_directory
    from keras_transfer.models.builders import build_model
    from keras_transfer.models.heads import Classification
    from keras_transfer.training.trainer import Trainer

    class Slow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            print(f"epoch {epoch + 1} is kept", flush=True)
            time.sleep(options.slow)

    keras.config.set_dtype_policy(options.precision)
    data = from_directory(options.images, progress=False)
    keras.utils.set_random_seed(0)

    with workers.scope():
        head = Classification(data.class_names, dropout=0.0)
        model = build_model(tiny_backbone(), head, image_size=32)
    trainer = Trainer(
        model,
        schedules()[name],
        batch_size=6,
        augment="light",
        scaling=options.scaling,
        cache=options.cache,
    )
    run = trainer.fit(
        data, options.out / name, resume=options.resume, callbacks=[Slow()] if options.slow else []
    )
    if workers.chief:
        weights = {str(i): w for i, w in enumerate(model.get_weights())}
        np.savez(options.out / f"{name}.npz", **weights)
        print(name, {k: v for k, v in run.metrics["val"].items() if k in ("accuracy", "loss")})
        print(name, [(row["epoch"], row.get("loss"), row.get("val_loss")) for row in run.history])


if __name__ == "__main__":
    main()
