"""Run all benchmarks in turn on one machine; their output is the source of the tables in the docs.

    KERAS_HOME=… KERAS_TRANSFER_DATA=… python scripts/run_benchmarks.py [NAME…] [--torch PYTHON] [--list]

The output of each benchmark is printed and saved as `docs/measured/NAME.txt`, below its command, date,
duration, machine and versions; `scripts/readme_tables.py` then writes the tables. Without names, all of
`BENCHMARKS` run, which takes about two hours on an otherwise idle machine. If one fails, its earlier
output remains, the others still run, and the failure is reported at the end.

`STUDIES` measure accuracy, not time. They take many hours, resume if interrupted, and save rows in
`docs/`. They run only if they are named.
"""

import argparse
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from keras_transfer.utils.console import progress_bar
from keras_transfer.utils.files import write_file, write_text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MEASURED = ROOT / "docs" / "measured"
PACKAGES = ("keras", "tensorflow", "openvino", "jax", "scikit-learn", "albumentations")

# Each needs the whole machine. DATA is `KERAS_TRANSFER_DATA`, TEMPORARY a temporary folder.
BENCHMARKS = {
    "whole": "benchmark.py whole --rounds 2",
    "steps": "benchmark.py step extraction again advise --rounds 2",
    "cache": "benchmark.py cache --rounds 1",
    "cuts": "benchmark.py cuts",
    "torch": "benchmark.py torch --rounds 3 --torch TORCH",
    "files": "benchmark.py pipeline growth --rounds 5",
    "starts": "benchmark.py starts --rounds 3",
    "workers": "distributed_speed.py extraction --backbone resnet50 --image-size 96 --images 1500 --rounds 1",
    "workers_steps": "distributed_speed.py steps --steps 30",
    "formats": "export_formats.py DATA/sign_digits --image-size 128 --rows TEMPORARY/export.csv",
    "precisions": "step_times.py --backbones mobilenet_v2_0.35 --batch-size 4 --rounds 5",
    "augmentations": "compare_augmentations.py speed --rounds 3",
    "adaptation_steps": "adaptation_benchmark.py mnistm --cost 5 --steps 60",
    "demo": "demo.sh",
    "gain": "transfer_gain.py --out TEMPORARY/gain",
    "formats_families": (
        "export_formats.py DATA/sign_digits --families --image-size 64 --per-class 60 --val-split 0.5 "
        "--rows TEMPORARY/export.csv"
    ),
}
# Plots that a benchmark draws, and their names in docs/.
PLOTS = {
    "demo": ("demo/curves.png", "demo_curves.png"),
    "gain": ("TEMPORARY/gain/comparison.png", "compare.png"),
}
STUDIES = {"adaptation": "adaptation_benchmark.py --rows docs/adaptation.csv"}


def machine() -> str:
    """Return one line: processor, cores, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    about = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    sums = [
        name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in about["flags"]
    ]
    return (
        f"{about['model name']} ({sums[0]}), {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()}"
    )


def versions() -> str:
    """Return one line: Python and the packages that affect the results."""
    found = [f"Python {platform.python_version()}"]
    return ", ".join(found + [f"{package} {version(package)}" for package in PACKAGES])


def measure(name: str, command: str, torch: str | None) -> None:
    """Run one benchmark and save its output.

    Raises:
        RuntimeError: if the command fails; the message ends with its last output.
    """
    print(f"\n== {name}: {command}", flush=True)
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        places = {"DATA": os.environ["KERAS_TRANSFER_DATA"], "TEMPORARY": folder, "TORCH": torch}
        script, *words = shlex.split(command)
        for place, path in places.items():
            words = [word.replace(place, path) if path else word for word in words]
        run = [str(HERE / script)] if script.endswith(".sh") else [sys.executable, HERE / script]
        output = []
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                [*run, *words], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
            ) as process,
        ):
            for line in process.stdout:
                print(line, end="", flush=True)
                output.append(line.replace(folder, "TEMPORARY").replace(places["DATA"], "DATA"))
            process.wait()
            errors.seek(0)
            if process.returncode:
                raise RuntimeError(f"exit code {process.returncode}\n{errors.read()[-3000:]}")
        if name in PLOTS:
            drawn, saved = PLOTS[name]
            drawn = ROOT / drawn.replace("TEMPORARY", folder)
            write_file(MEASURED.parent / saved, lambda file: shutil.copyfile(drawn, file))
    about = {
        "command": f"python scripts/{command}"
        if script.endswith(".py")
        else f"./scripts/{command}",
        "date": f"{datetime.date.today()}",
        "seconds": f"{time.perf_counter() - started:.0f}",
        "load before": f"{load:.2f}",
        "machine": machine(),
        "versions": versions(),
    }
    header = "".join(f"{key}: {value}\n" for key, value in about.items())
    MEASURED.mkdir(exist_ok=True)
    write_text(MEASURED / f"{name}.txt", f"{header}\n{''.join(output)}")


def main():
    everything = BENCHMARKS | STUDIES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(everything))
    parser.add_argument("--torch", help="a Python with PyTorch; without it, torch is skipped")
    parser.add_argument("--list", action="store_true", help="print the commands only")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in everything]
    if unknown:
        parser.error(f"Unknown benchmark {unknown[0]}. Choose from {', '.join(everything)}.")
    names = options.names or list(BENCHMARKS)
    if options.list:
        print("\n".join(f"{name:17} {everything[name]}" for name in names))
        return
    for needed in ("KERAS_HOME", "KERAS_TRANSFER_DATA"):
        if needed not in os.environ:
            parser.error(f"Set {needed}: the benchmarks use real weights and images.")
    if "torch" in names and not options.torch:
        print("torch is skipped: pass a Python that has PyTorch with --torch", file=sys.stderr)
        names.remove("torch")
    failed = {}
    for name in progress_bar(names, "measuring", unit="benchmarks"):
        try:
            measure(name, everything[name], options.torch)
        except RuntimeError as error:
            failed[name] = error
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
