"""Execute the notebooks and save their outputs.

    python scripts/run_notebooks.py                       all notebooks; exit code 1 if one fails
    python scripts/run_notebooks.py --write 02_freezing   the named ones, and save their outputs

Prints the time of each notebook. With `--write`, the figure of a cell tagged `docs:NAME` is also saved as
`docs/NAME.png`. Each notebook runs in its own kernel and an empty folder, with an empty cache. The images
of `KERAS_TRANSFER_DATA` appear as `data/` there, so that outputs contain no path of this machine.
"""

import argparse
import base64
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from keras_transfer.utils.files import write_file, write_text

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
REPOSITORY = "https://github.com/keras-transfer/keras_transfer"
IMAGE = "docs:"  # prefix of the tag of a cell whose figure the docs show
PARAMETERS = "parameters"  # tag of the cell whose values may be replaced
# Messages of TensorFlow 2.21 on import, with process and time, regardless of the log level; and those about
# new lengths of texts, with the address of a function.
_NATIVE = re.compile(
    r"^(?:WARNING: All log messages before absl|[IWEF]\d{4} |WARNING:tensorflow:\d+ out of the last ).*\n?",
    re.M,
)


class NotebookError(Exception):
    """A cell failed; the message contains the notebook, the cell and the error."""


def notebooks() -> list[Path]:
    """Return the paths of all notebooks, in reading order."""
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def execute(path: Path, parameters: dict | None = None, timeout: int = 1800):
    """Run a notebook without changing its file.

    Args:
        path: of the notebook.
        parameters: name → value, set after the cell tagged `parameters`.
        timeout: seconds that a cell may take.

    Returns:
        The notebook with its outputs, ready to be saved.

    Raises:
        NotebookError: if a cell fails or takes too long.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    if parameters:
        at = next(i for i, cell in enumerate(cells) if PARAMETERS in tags(cell))
        lines = (f"{name} = {value!r}" for name, value in parameters.items())
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            startup_timeout=300,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        try:
            client.execute(env=_environment(Path(folder)))
        except CellExecutionError as error:
            number = next(i for i, cell in enumerate(notebook.cells) if _failed(cell))
            said = f"{error.ename}: {error.evalue}"
            raise NotebookError(f"{path.name}, cell {number}: {said}\n{error}") from None
        except TimeoutError as error:
            raise NotebookError(f"{path.name}: {error}") from None
    notebook.cells = cells
    return _tidied(notebook)


def _environment(folder):
    """Return the environment of the kernel: this checkout, an empty cache, relative image paths."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "KERAS_TRANSFER_CACHE": str(folder / "cache"),
        "IPYTHONDIR": str(folder / ".ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses widgets that Colab has
        "TTY_INTERACTIVE": "0",  # a removed progress bar would leave a line in the output
    }
    if images := os.environ.get("KERAS_TRANSFER_DATA"):
        (folder / "data").symlink_to(Path(images).resolve(), target_is_directory=True)
        environment["KERAS_TRANSFER_DATA"] = "data"
    return environment


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def shown(notebook) -> dict[str, bytes]:
    """Return name → PNG of the figures for the docs."""
    return {
        f"{tag.removeprefix(IMAGE)}.png": base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for tag in tags(cell)
        for output in cell.get("outputs", [])
        if tag.startswith(IMAGE) and "image/png" in output.get("data", {})
    }


def _failed(cell):
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def _tidied(notebook):
    """Remove what differs between machines: versions and times."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": tags(cell)} if tags(cell) else {})
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _NATIVE.sub("", output.text)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("text", "x").strip()]
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; all by default")
    parser.add_argument("--write", action="store_true", help="save the outputs in the notebooks")
    arguments = parser.parse_args()
    known = {path.stem: path for path in notebooks()}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"Unknown notebook {', '.join(unknown)}. Choose from {', '.join(known)}.")
    failed = 0
    for path in [known[name] for name in arguments.names] or known.values():
        started, used = time.perf_counter(), _children()
        try:
            notebook = execute(path)
        except NotebookError as error:
            print(error, file=sys.stderr)
            failed = 1
            continue
        if arguments.write:
            write_text(path, nbformat.writes(notebook) + "\n")
            for name, png in shown(notebook).items():
                write_file(ROOT / "docs" / name, lambda file, png=png: file.write_bytes(png))
        seconds, processor = time.perf_counter() - started, _children() - used
        print(f"{path.name}: {seconds:.0f} s, {processor:.0f} s of processor time")
    return failed


def _children():
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
