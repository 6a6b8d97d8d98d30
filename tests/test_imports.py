"""The order of the rooms, and where TensorFlow and JAX may be imported.

import-linter reads the order from setup.cfg (`lint-imports`). The rest is read from the source, so
that imports inside functions count too.
"""

import ast
import configparser
import subprocess
import sys
from functools import cache
from pathlib import Path

from conftest import large_tests

import keras_transfer

ROOT = Path(keras_transfer.__file__).parent

# Where TensorFlow may be imported, and why. All else is Keras and NumPy, and runs on the other
# backends too.
TENSORFLOW = {
    "data": "the tf.data pipeline, also under other backends",
    "modalities": "decoding and preparing in graph ops, for training and serving",
    "export": "SavedModel, LiteRT",
    "training.distributed": "tf.distribute",
    "features": "the compiled prefix, activations as tf.data",
    "training.logs": "writes event files for TensorBoard",
    "utils": "silences its log, ends its calls into Python",
    "evaluation.gradcam": "gradients of the backend in use",
    "reporting.sheet": "draws augmented images from graph ops",
    "cli.demo": "reads its export again",
}
JAX = ("evaluation.gradcam", "training.distributed")


@cache
def imports() -> list[tuple[str, str]]:
    """(module without the package's name, first name of what it imports) of all modules."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(name_of(file), alias.name.split(".")[0]) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "imports are absolute"
                found.append((name_of(file), node.module.split(".")[0]))
    return found


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(module: str, area: str) -> bool:
    return module == area or module.startswith(f"{area}.")


def test_the_rooms_are_in_order():
    """import-linter passes, without exceptions."""
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    contracts = [section for section in config.sections() if section.startswith("importlinter:")]
    assert contracts
    for contract in contracts:
        assert not config[contract].get("ignore_imports", "").strip()
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as l; l()"]
    result = subprocess.run(
        [*command, "--no-cache"], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_root_contains_three_modules_and_the_rooms():
    files = {file.name for file in ROOT.glob("*.py")}
    assert files == {"__init__.py", "errors.py", "runs.py"}
    config = configparser.ConfigParser()
    config.read(ROOT.parent / "setup.cfg")
    layers = config["importlinter:contract:rooms"]["layers"].split()
    rooms = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert {*layers} == rooms | {"errors", "runs"}


def test_the_diagram_of_the_rooms_is_up_to_date():
    command = [sys.executable, ROOT.parent / "scripts" / "rooms.py", "--check"]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_and_functions_are_of_a_readable_size():
    for file in ROOT.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, name_of(file)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and "takes" not in ast.unparse(
                ast.Module(node.decorator_list, [])
            ):
                args = node.args
                names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                assert count <= 10, f"{name_of(file)}.{node.name} has {count} parameters"


def test_tensorflow_stays_where_it_is_needed():
    users = {module for module, name in imports() if name == "tensorflow"}
    for module in users:
        assert any(within(module, area) for area in TENSORFLOW), f"{module} imports TensorFlow"
    for area in TENSORFLOW:
        assert any(within(module, area) for module in users), f"{area} does not need TensorFlow"


def test_jax_and_torch_stay_where_they_are_needed():
    users = {module for module, name in imports() if name in ("jax", "torch")}
    assert all(any(within(module, area) for area in JAX) for module in users), users


def test_modules_take_no_private_names_of_others():
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("keras_transfer"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                private = [name for name in private if not name.endswith("__")]
                assert not private, f"{name_of(file)} imports {private} from {node.module}"


def test_the_list_of_large_tests_names_tests():
    listed = large_tests()
    assert listed == sorted(set(listed))
    for line in listed:
        file, name = line.split("::")
        text = (ROOT.parent / file).read_text(encoding="utf-8")
        assert f"\ndef {name.partition('[')[0]}(" in text, line
