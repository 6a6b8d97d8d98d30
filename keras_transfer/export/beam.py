"""Predict more files than one process should, with Apache Beam: on this machine, Dataflow, Flink or Spark.

The files are divided into shards. A worker loads the exported SavedModel once, predicts one shard after the
other, and writes each as a Parquet file under a temporary name. A shard whose file exists is done, so a
pipeline that was stopped goes on where it was when it is run again.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.data.evaluation_data import list_images
from keras_transfer.errors import InputError
from keras_transfer.export.exporter import saved_model, temperatures_of
from keras_transfer.modalities.registry import find_modality
from keras_transfer.models.framing import modality_of
from keras_transfer.utils.console import counted, first_line, say
from keras_transfer.utils.extras import require
from keras_transfer.utils.files import write_file, write_text

MODEL, PLAN = Path("model") / "1", "plan.json"
_BATCH = 32  # examples of a request to the model


@dataclass(frozen=True)
class Counts:
    """Result of `predict_files`: the number of predicted and of skipped files, and of shards."""

    predicted: int
    skipped: int
    shards: int


@dataclass(frozen=True)
class _Shard:
    """Files that are predicted together, and the end of the names of their Parquet files."""

    name: str
    files: tuple[str, ...]


def predict_files(
    run, paths: Sequence, out: str | Path, *, shard_size: int = 500, arguments: Sequence[str] = ()
) -> Counts:
    """Predict files with Apache Beam and write sharded Parquet.

    `out` gets `predictions-*.parquet` with the path, and the label and score of each single-label head
    or else the score or value of each name; `skipped-*.parquet` with the path and the reason; the exported
    model, which the workers load; and `plan.json`. Workers read the files and write into `out`, so all of
    them must see both.

    Args:
        run: a `Run`.
        paths: files and folders.
        out: a folder; one that such a call has begun is finished.
        shard_size: files per shard, and thus what a stop can cost a worker, ≥ 1.
        arguments: pipeline options of Beam, such as `["--direct_num_workers=2",
            "--direct_running_mode=multi_processing"]`.

    Raises:
        InputError: Apache Beam or pyarrow is missing, no files are given, `out` belongs to other files
            or another run, or the pipeline failed.
    """
    require("apache_beam", "Predicting with Beam")
    require("pyarrow", "Writing Parquet")
    if shard_size < 1:
        raise InputError(f"Invalid shard size {shard_size}. Pass 1 or more.")
    files, folder = list_images(paths), Path(out).absolute()
    shards = list(_shards([str(Path(file).absolute()) for file in files], shard_size))
    temperatures = temperatures_of(run)
    _claim(folder, run, temperatures, shards)
    if not (folder / MODEL).exists():
        saved_model(run.model, folder / MODEL, temperatures=temperatures)
    for begun in folder.glob(".*.parquet"):  # by a worker that was killed
        begun.unlink(missing_ok=True)
    left = [shard for shard in shards if not _predictions(folder, shard).exists()]
    say(
        f"{len(left)} of {counted(len(shards), 'shard')} to predict, {counted(len(files), 'file')} in all"
    )
    if left:
        _pipeline(left, folder, modality_of(run.model).name, arguments)
    predicted, skipped = (
        sum(map(_rows, folder.glob(f"{kind}-*.parquet"))) for kind in ("predictions", "skipped")
    )
    return Counts(predicted, skipped, len(shards))


def _shards(files, size) -> Iterator[_Shard]:
    starts = range(0, len(files), size)
    for number, start in enumerate(starts):
        name = f"{number:05d}-of-{len(starts):05d}"
        yield _Shard(name, tuple(files[start : start + size]))


def _claim(folder, run, temperatures, shards):
    """Record what a folder is for; raise InputError if it is for something else."""
    digest = hashlib.sha256(repr(shards).encode()).hexdigest()
    plan = {
        "run": str(run.path.absolute()),
        "model": _digest_of(run.model_path, temperatures),
        "shards": len(shards),
        "files": digest,
    }
    place = folder / PLAN
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty. Choose another --out.") from None
        folder.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(plan, indent=2) + "\n")
        return
    except ValueError:
        found = None
    if isinstance(found, dict):
        found.setdefault("model", plan["model"])  # of older versions
    if found != plan:
        raise InputError(
            f"{folder} has predictions of other files, another run (or this one before it was trained or "
            "calibrated again), or another shard size. Choose another --out, or delete it."
        )


def _digest_of(model: Path, temperatures) -> str:
    """Return the digest of all on which a run's answers depend."""
    with model.open("rb") as file:
        found = hashlib.file_digest(file, "sha256")
    found.update(json.dumps(temperatures, sort_keys=True).encode())
    return found.hexdigest()


def _pipeline(shards, folder, modality, arguments):
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    predict = functools.partial(_write_shard, folder=folder, modality=modality)
    try:
        with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            made = pipeline | beam.Create(shards) | beam.Reshuffle()
            made | beam.Map(predict)
    except Exception as error:  # of many types, from Beam and its runners
        left = sum(not _predictions(folder, shard).exists() for shard in shards)
        raise InputError(
            f"The pipeline stopped with {left} of {counted(len(shards), 'shard')} left: {first_line(error)[:300]}. "
            "Run the same command again to finish them."
        ) from error


# -- in a worker --------------------------------------------------------------------------------------


@functools.cache
def _loaded(folder: Path):
    """Return the signature of a SavedModel, loaded once in each worker process."""
    import tensorflow as tf

    return tf.saved_model.load(str(folder)).signatures["serve_bytes"]


def _write_shard(shard: _Shard, folder: Path, modality: str) -> str:
    """Predict a shard and write its files, those that were skipped first; return its name."""
    if _predictions(folder, shard).exists():
        return shard.name  # another worker was faster
    rows, skipped = [], []
    for start in range(0, len(shard.files), _BATCH):
        files, contents = [], []
        for file in shard.files[start : start + _BATCH]:
            try:
                contents.append(_served(file, modality))
                files.append(file)
            except (OSError, ValueError) as error:
                skipped.append({"path": _text(file), "reason": _text(first_line(error))})
        for file, row, error in zip(files, *_answers(contents, folder / MODEL)):
            if error:
                skipped.append({"path": _text(file), "reason": error})
            else:
                rows.append({"path": _text(file), **row})
    if skipped:
        _write(folder / f"skipped-{shard.name}.parquet", skipped)
    _write(_predictions(folder, shard), rows)
    return shard.name


def _text(name: str) -> str:
    r"""Return a name that is not UTF-8 with `\xff` for each other byte: Parquet has only UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _served(file, modality):
    return find_modality(modality).for_server(Path(file).read_bytes())


def _answers(contents, folder) -> tuple[list[dict], list[str]]:
    """Return the columns of each example, and its error, or ""."""
    if not contents:
        return [], []
    import tensorflow as tf

    outputs = {k: v.numpy() for k, v in _loaded(folder)(tf.constant(contents)).items()}
    rows: list[dict] = [{} for _ in contents]
    taken = {"path"}
    for output in sorted(outputs):
        if not output.startswith("scores"):
            continue
        end = output.removeprefix("scores")
        before = f"{end[1:]}_" if end else ""
        if f"label{end}" in outputs:
            columns = {"label": outputs[f"label{end}"], "score": outputs[f"score{end}"]}
        else:
            names = outputs[f"class_names{end}"][0]
            columns = {name.decode(): outputs[output][:, n] for n, name in enumerate(names)}
        for name, values in columns.items():
            column = before + name
            while column in taken:  # such as a label called `path`
                column += "_"
            taken.add(column)
            for row, value in zip(rows, values):
                row[column] = value.decode() if isinstance(value, bytes) else float(value)
    return rows, [error.decode() for error in outputs["error"]]


def _predictions(folder, shard) -> Path:
    return folder / f"predictions-{shard.name}.parquet"


def _write(path, rows):
    import pyarrow
    from pyarrow import parquet

    write_file(path, lambda file: parquet.write_table(pyarrow.Table.from_pylist(rows), file))


def _rows(path) -> int:
    from pyarrow import parquet

    return parquet.read_metadata(path).num_rows
