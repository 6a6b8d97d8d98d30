"""The one-way flow of imports: who may import whom, who may import TensorFlow, and no cycles.

Read from the source, so that imports inside of functions count too: those are for speed of start,
not a way round the order. Names that are loaded by text (`__getattr__` of packages) are not seen;
they are the public names of what stands below anyway.
"""

import ast
from functools import cache
from pathlib import Path

import keras_transfer

ROOT = Path(keras_transfer.__file__).parent

# What stands first is below. A module imports only from earlier lines and from its own area; areas of
# one line do not know each other. The longest name that fits a module counts.
#
# It is the order of DESIGN.md, "The flow", but for:
# - `features` comes after schedules and plans, not beside them: what is frozen follows from the plan.
# - `evaluation` and `report` do not need the trainer, nor it them: both know a run by its folder.
#   What the trainer measures with is below all of them (`measures`).
# - the advisor comes late: it probes with features, times plans, and speaks of schedules. The trainer
#   knows it through `auto` alone (LAZY_UPWARDS).
# - `distribution.sharding` is arithmetic below the pipeline, which cuts batches by it.
LAYERS = (
    (
        "bars",
        "errors",
        "colours",
        "page",
        "metrics",
        "stages",
        "tensorboard",
        "distribution.sharding",
        "whole_files",
    ),
    ("client", "failures", "folding", "intervals", "linear_probe", "losses", "solvers"),
    ("heads",),
    ("backbones",),
    ("backbone_building",),
    ("builders", "runs"),
    ("gradcam", "machine", "study"),
    ("data",),
    ("measures", "schedules"),
    ("freezing", "recipes", "search_space"),
    ("choices", "optimizers", "precision", "shortlist", "tuning_report"),
    ("advice", "evaluation", "plans"),
    ("export", "features", "progress", "report"),
    (
        "distribution",
        "likeness",
        "phase_inputs",
        "random_duplicate",
        "rate_finder",
        "timing",
        "transferability",
    ),
    ("phase_fitting", "stage_probes"),
    ("distances", "symmetry", "training_run"),
    ("adaptation", "domains", "training"),
    ("advisor", "comparison", "tuning"),
    ("auto", "demo"),
    # No layer over the command line, and none beside it: nothing imports it.
    ("cli",),
)

# (importing module, imported module): why this one may go against the order, inside of a function.
LAZY_UPWARDS = {
    ("training", "auto"): 'a `Trainer` with "auto" asks for advice, and the race of it trains',
}

# The same for imports inside of one area, which would else be cycles.
LAZY_IN_A_CYCLE = {
    ("distribution.workers", "distribution.jax_workers"): "one of both is loaded: the engine's",
    ("distribution.workers", "distribution.tensorflow_workers"): "the same",
    ("data.examples", "data.pipeline"): "`ImageData.batches` is how users come to the pipeline",
}

# Where TensorFlow may be imported, with what it is needed for. All else is Keras and NumPy, and runs
# on the other backends too.
TENSORFLOW = {
    "data": "decoding and the tf.data pipeline, also under other backends",
    "export": "SavedModel, LiteRT",
    "distribution.fit_repairs": "what it repairs is TensorFlow's",
    "distribution.tensorflow_workers": "tf.distribute",
    "features.batches": "activations as tf.data",
    "features.engines": "the compiled prefix",
    "tensorboard": "writes event files",
}
TENSORFLOW_LAZILY = {
    "client": "gRPC only: the tensors of its messages",
    "demo": "reads its export again",
    "errors": "`quiet_tensorflow`",
    "gradcam": "gradients of the backend at hand",
}
JAX = {"distribution.jax_workers": "its distributed runtime", "gradcam": "the same"}


@cache
def imports() -> list[tuple[str, str, bool]]:
    """(module, what it imports, whether inside of a function) of all modules, without the package's
    name; what is imported from elsewhere by its first name after a colon."""
    files = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}
    found = []
    for module, file in files.items():
        for node, inside in import_nodes(ast.parse(file.read_text(encoding="utf-8"))):
            for name in names_of(node, files):
                found.append((module, name, inside))
    return found


def name_of(file: Path) -> str:
    return (
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
    )


def import_nodes(tree, inside=False):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, inside
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from import_nodes(node, inside or function)


def names_of(node, files):
    if isinstance(node, ast.Import):
        full = [alias.name for alias in node.names]
    else:
        assert not node.level, "imports are absolute"
        # A module of a package, or a name in a module.
        full = [
            f"{node.module}.{alias.name}"
            if f"{node.module}.{alias.name}".removeprefix("keras_transfer.") in files
            else node.module
            for alias in node.names
        ]
    for name in full:
        own = name == "keras_transfer" or name.startswith("keras_transfer.")
        yield name.removeprefix("keras_transfer").lstrip(".") if own else ":" + name.split(".")[0]


def own_imports():
    """Those between modules of the package; its own `__init__` is above and below all."""
    return [(a, b, inside) for a, b, inside in imports() if a and b and not b.startswith(":")]


def area_of(module: str) -> str:
    if module.split("_")[0] == "cli":
        return "cli"
    areas = [area for layer in LAYERS for area in layer if within(module, area)]
    assert areas, f"keras_transfer.{module} is in no layer: say in LAYERS where it belongs"
    return max(areas, key=len)


def within(module: str, area: str) -> bool:
    return module == area or module.startswith(f"{area}.")


def test_every_module_has_a_layer():
    modules = {name_of(file) for file in ROOT.rglob("*.py")} - {""}
    assert all(area_of(module) for module in modules)
    listed = [area for layer in LAYERS for area in layer]
    assert len(listed) == len(set(listed))
    for area in listed:
        assert any(within(module, area) for module in modules), f"{area} is no module any more"


def test_imports_run_one_way():
    height = {area: number for number, layer in enumerate(LAYERS) for area in layer}
    wrong = [
        f"{module} imports {imported}"
        for module, imported, _ in own_imports()
        if area_of(module) != area_of(imported)
        and height[area_of(imported)] >= height[area_of(module)]
        and (module, imported) not in LAZY_UPWARDS
    ]
    assert not wrong


def test_no_cycles():
    allowed = LAZY_UPWARDS | LAZY_IN_A_CYCLE
    graph: dict[str, set[str]] = {}
    for module, imported, _ in own_imports():
        if (module, imported) not in allowed:
            graph.setdefault(module, set()).add(imported)
    assert cycle_in(graph) is None


def cycle_in(graph) -> list[str] | None:
    """Modules that import each other in a circle."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        for imported in sorted(graph.get(module, ())):
            if found := visit(imported):
                return found
        done.add(path.pop())
        return None

    return next((found for module in sorted(graph) if (found := visit(module))), None)


def test_a_cycle_is_found():
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}}) is None


def test_exceptions_are_needed_and_lazy():
    inside = {(a, b): lazy for a, b, lazy in own_imports()}
    for edge in LAZY_UPWARDS | LAZY_IN_A_CYCLE:
        assert inside.get(edge), f"{edge}: gone, or at the top of the module"
    graph: dict[str, set[str]] = {}
    for module, imported, _ in own_imports():
        graph.setdefault(module, set()).add(imported)
    for module, imported in LAZY_IN_A_CYCLE:
        assert reaches(graph, imported, module), f"{module} -> {imported} is no cycle any more"


def reaches(graph, start, end) -> bool:
    seen, left = set(), [start]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left += graph.get(module, ())
    return end in seen


def test_tensorflow_stays_where_it_is_needed():
    users = {(module, inside) for module, name, inside in imports() if name == ":tensorflow"}
    for module, inside in users:
        anywhere = any(within(module, area) for area in TENSORFLOW)
        assert anywhere or (inside and module in TENSORFLOW_LAZILY), f"{module} imports TensorFlow"
    for area in (*TENSORFLOW, *TENSORFLOW_LAZILY):
        assert any(within(module, area) for module, _ in users), f"{area} needs no TensorFlow"


def test_jax_and_torch_stay_where_they_are_needed():
    users = {module for module, name, inside in imports() if name in (":jax", ":torch")}
    assert users == set(JAX)


def test_modules_take_no_private_names_of_others():
    for file in sorted(ROOT.rglob("*.py")):
        for node, _ in import_nodes(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("keras_transfer"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                private = [name for name in private if not name.endswith("__")]
                assert not private, f"{name_of(file)} imports {private} of {node.module}"
