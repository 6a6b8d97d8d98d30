"""Check README.md, CONTRIBUTING.md and docs/: code, names, arguments, commands, links.

Nothing is executed here (`test_readme.py` does that): names are looked up in the package, and commands
are parsed by the command line itself.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import pydoc
import re
import types
import typing
from pathlib import PurePosixPath

import documents
import pytest
import typer
from documents import ROOT, anchors, blocks, commands, links, notebooks, prose

import keras_transfer
from keras_transfer.cli.main import app

PYTHON = blocks("python")
SHELL = blocks("bash", "sh", "")
# Names of the package in the texts.
NAMES = {"kt": keras_transfer, "keras_transfer": keras_transfer}
UNKNOWN = object()
# An entry of the reference: `::: path`, and below it the public name, or "options of" one.
ENTRY = re.compile(r"^::: (\S+)\n    options:\n      heading: (options of )?(kt\.\S+)$", re.M)


def reference():
    """Return (path, "options of " or "", public name) of each entry in docs/api/."""
    pages = [text for name, text in documents.documents().items() if name.startswith("docs/api/")]
    found = [entry for text in pages for entry in ENTRY.findall(text)]
    assert len(found) == sum(text.count("\n::: ") for text in pages)
    return found


@functools.cache
def options_of():
    """Return, by id of the public function or class, the names of the options it takes as **options."""
    entries = reference()
    functions = {name: pydoc.locate(path) for path, options, name in entries if not options}
    found = {
        id(functions[name]): {field.name for field in dataclasses.fields(pydoc.locate(path))}
        for path, options, name in entries
        if options
    }
    data = keras_transfer.data
    rule = {field.name for field in dataclasses.fields(data.SplitRule)}
    for source in (data.from_directory, data.from_tfds, data.from_records):
        found[id(source)] = rule
    return found


def test_python_blocks_compile():
    for block in PYTHON:
        compile(block.text, str(block), "exec")


def test_names_and_arguments_are_there():
    """Check each name that a block takes from the package, and the arguments of each call."""
    wrong = []
    for block in PYTHON:
        wrong += [f"{block}: {what}" for what in Reader().problems(block.text)]
    for name, text in documents.documents().items():
        for code in re.findall(r"`(kt\.[^`\n]+)`", prose(text)):
            with contextlib.suppress(SyntaxError):  # for example with an ellipsis
                wrong += [f"{name}: {code}: {what}" for what in Reader(whole=False).problems(code)]
    assert not wrong, "\n".join(wrong)


class Reader:
    """Read a block without running it, and collect wrong names and arguments.

    Args:
        whole: calls must pass all required arguments; calls in sentences may omit some.
    """

    def __init__(self, whole=True):
        self.whole = whole
        self.names = dict(NAMES)
        self.values = {}  # by expression: each is evaluated once
        self.found = []

    def problems(self, text):
        for statement in ast.parse(text).body:
            self.read(statement)
        return self.found

    def read(self, node):
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imported(node)
        elif isinstance(node, ast.expr):
            self.value(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.read(child)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            self.names[node.targets[0].id] = self.value(node.value)

    def imported(self, node):
        for alias in node.names:
            if isinstance(node, ast.Import):
                if alias.name.startswith("keras_transfer"):
                    module = importlib.import_module(alias.name)
                    self.names[alias.asname or alias.name] = module
            elif node.module.startswith("keras_transfer"):
                module = importlib.import_module(node.module)
                self.names[alias.asname or alias.name] = self.attribute(module, alias.name)

    def value(self, node):
        """Return the module, class or function that an expression names, `Made` for an instance of a
        class, or `UNKNOWN`."""
        if node not in self.values:
            self.values[node] = self.valued(node)
        return self.values[node]

    def valued(self, node):
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNKNOWN)
        if isinstance(node, ast.Attribute):
            owner = self.value(node.value)
            return UNKNOWN if owner is UNKNOWN else self.attribute(owner, node.attr)
        for child in ast.iter_child_nodes(node):
            self.read(child)
        if isinstance(node, ast.Call) and self.value(node.func) is not UNKNOWN:
            return self.called(self.value(node.func), node)
        return UNKNOWN

    def attribute(self, owner, name):
        if isinstance(owner, Made):
            found = getattr(owner.kind, name, UNKNOWN)
            if isinstance(found, property):
                return made(typing.get_type_hints(found.fget).get("return"))
            if found is UNKNOWN and not owner.has(name):
                self.found.append(f"{owner.kind.__name__} has no {name}")
            return Bound(found) if inspect.isfunction(found) else UNKNOWN
        if isinstance(owner, types.ModuleType | type):
            if hasattr(owner, name):
                return getattr(owner, name)
            try:
                return importlib.import_module(f"{owner.__name__}.{name}")
            except (ImportError, AttributeError):
                self.found.append(f"{owner.__name__} has no {name}")
        return UNKNOWN

    def called(self, function, node):
        bound = isinstance(function, Bound)
        function = function.function if bound else function
        if not callable(function):
            return UNKNOWN
        signature = inspect.signature(function)
        positional = [None] * (len(node.args) + bound)
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        options = options_of().get(id(function), keywords)
        unknown = set(keywords) - set(signature.parameters) - set(options)
        self.found += [
            f"{ast.unparse(node.func)}(…): no option '{name}'"
            for name in unknown
            if options is not keywords
        ]
        starred = any(isinstance(part, ast.Starred) for part in node.args)
        spread = any(keyword.arg is None for keyword in node.keywords)
        try:
            if starred or spread or not self.whole:
                signature.bind_partial(**keywords)
            else:
                signature.bind(*positional, **keywords)
        except TypeError as error:
            self.found.append(f"{ast.unparse(node.func)}(…): {error}")
        if isinstance(function, type):
            return Made(function)
        try:
            return made(typing.get_type_hints(function).get("return"))
        except (NameError, TypeError):  # the annotation's module is not imported
            return UNKNOWN


@dataclasses.dataclass(frozen=True)
class Bound:
    """A method of an instance."""

    function: typing.Callable


@dataclasses.dataclass(frozen=True)
class Made:
    """An instance of a class."""

    kind: type

    def has(self, name):
        fields = {
            name for kind in self.kind.__mro__ for name in getattr(kind, "__annotations__", ())
        }
        own = [kind for kind in self.kind.__mro__ if kind.__module__.startswith("keras_transfer")]
        set_in_methods = any(
            re.search(rf"self\.{name}\b.*=", inspect.getsource(kind)) for kind in own
        )
        return name in fields or set_in_methods


def made(kind):
    """Return `Made` for an annotation that is a class of the package, else `UNKNOWN`."""
    ours = isinstance(kind, type) and kind.__module__.startswith("keras_transfer")
    return Made(kind) if ours else UNKNOWN


def test_the_reader_finds_errors():
    text = """
data = kt.data.from_directory("flowers/", validation=0.2)
model = kt.build_modle("mobilenet_v2")
found = kt.Trainer(model).fit(data, "runs/a", folder="runs/a")
advice = kt.advise(data, images=3).image
kt.advise()
kt.compare(data, "runs/b", backbon="resnet50")
from keras_transfer.features.extraction import extrakt
with kt.nothing():
    print(data.nothing, kt.Schedule("a", ()).phase)
"""
    found = "\n".join(Reader().problems(text))
    for part in (
        "'validation'",
        "no build_modle",
        "'folder'",
        "'images'",
        "no image",
        "'data'",
        "no option 'backbon'",
    ):
        assert part in found
    for part in ("no extrakt", "no nothing", "ImageData has no nothing", "Schedule has no phase"):
        assert part in found


COMMAND = typer.main.get_command(app)


def read_by_the_command_line(words):
    """Parse `keras-transfer WORDS` and raise its errors; nothing is run."""
    words = [re.sub(r"\$\w+", "1", word) for word in words]  # a shell variable: any value
    with COMMAND.make_context("keras-transfer", words[:1], resilient_parsing=True) as context:
        name, command, rest = COMMAND.resolve_command(context, words)
        if command is None:
            raise typer.BadParameter(f"no command {words[0]}")
        command.make_context(name, rest, parent=context).close()


def shell_lines(program):
    """Yield (place, words from the program's name on) for each line that calls a program."""
    for block in SHELL:
        for words in commands(block.text):
            if program in words:
                yield str(block), words[words.index(program) :]


def test_command_lines_are_understood():
    wrong = []
    for where, words in shell_lines("keras-transfer"):
        if "…" in words:  # abbreviated, as in sentences
            wrong += [f"{where}: {what}" for what in unknown(" ".join(words[1:]))]
            continue
        try:
            read_by_the_command_line(words[1:])
        except Exception as error:  # Typer has its own click
            wrong.append(f"{where}: {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_command_lines_in_the_text_name_what_there_is():
    """Commands in sentences may be abbreviated, but commands and options must exist."""
    wrong = [
        f"{name}: {what}"
        for name, text in documents.documents().items()
        for code in re.findall(r"`keras-transfer ([^`]+)`", prose(text))
        for what in unknown(code)
    ]
    assert not wrong


def unknown(code):
    """Return the command or the options in `code` that do not exist."""
    name = code.split()[0]
    if name in ("COMMAND", "…") or name.startswith("--"):
        return []
    if name not in COMMAND.commands:
        return [name]
    known = {option for parameter in COMMAND.commands[name].params for option in parameter.opts}
    options = re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
    return [f"{name} {option}" for option in options if option not in known | {"--help"}]


def test_a_wrong_command_line_is_found():
    for words in (
        ["train"],
        ["train", "flowers/", "--out", "a", "--colour", "red"],
        ["trian", "a"],
    ):
        with pytest.raises(Exception, match=r"(?i)missing|no such|no command"):
            read_by_the_command_line(words)
    assert unknown("trian …") == ["trian"]
    assert unknown("train … --colour red --out A") == ["train --colour"]


def test_scripts_are_there_and_have_the_options():
    for _, words in shell_lines("python"):
        if words[1:] and words[1].endswith(".py"):
            check_script(words[1:])


def test_scripts_in_the_text_are_there_and_have_the_options():
    for text in documents.documents().values():
        for code in re.findall(r"`(?:python )?(scripts/\w+\.py[^`]*)`", text):
            check_script(code.split())


def check_script(words):
    source = (ROOT / words[0]).read_text(encoding="utf-8")
    for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{words[0]} has no {option}"


def test_links_lead_somewhere():
    wrong = []
    for name, text in {**documents.documents(), **notebooks()}.items():
        for target in links(text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = ROOT / PurePosixPath(name).parent / path if path else ROOT / name
            if not file.exists() or (
                anchor and anchor not in anchors(file.read_text(encoding="utf-8"))
            ):
                wrong.append(f"{name}: {target}")
    assert not wrong, "\n".join(wrong)


def test_links_are_found():
    text = "[a](b.md) ![c](d.png) [![e](f.svg)](https://g) [h *i*](j.md#k-l) `[no](no.md)`\n```\n[no](no.md)\n```\n"
    assert set(links(text)) == {"b.md", "d.png", "f.svg", "https://g", "j.md#k-l"}
    assert anchors("# A b, c\n## `d`: e\n# A b, c\n") == {"a-b-c", "d-e", "a-b-c-1"}


def test_every_public_name_is_in_the_reference():
    found = reference()
    entries = [(path, name) for path, options, name in found if not options]

    kt = {f"kt.{name}": getattr(keras_transfer, name) for name in keras_transfer.__all__}
    packages = {name: module for name, module in kt.items() if inspect.ismodule(module)}
    public = {name: kt[name] for name in kt if name not in packages}
    del public["kt.__version__"]
    for package, module in packages.items():
        public |= {
            f"{package}.{name}": getattr(module, name) for name in getattr(module, "__all__", ())
        }

    listed = {name: pydoc.locate(path) for path, name in entries}
    assert len(listed) == len(entries)
    assert {name for name in listed if listed[name] is not public.get(name)} == set()
    everything = [id(value) for value in listed.values()]
    assert {name for name, value in public.items() if id(value) not in everything} == set()
    assert {name for _, options, name in found if options} <= set(public)
