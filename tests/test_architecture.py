"""Who may import whom, read from the sources: an arrow drawn the wrong way fails here.

Imports count wherever they stand, at the top of a module or inside a function. Under
`if TYPE_CHECKING` only imports of our own modules count: those are knowledge of each other too,
while the name of a third party's type costs nothing.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fedkit", "edge", "sim")
OURS = (*PACKAGES, "examples", "tests")

# What every package may use. They import nothing of ours.
FOUNDATIONS = ("fedkit.numerics", "fedkit.errors", "fedkit.files", "fedkit.text")

# From the bottom up. A module must not reach a layer above its own, not even through a module
# that is in no layer.
LAYERS = (
    FOUNDATIONS,
    (
        "fedkit.sparse",
        "fedkit.stats",
        "fedkit.nn",
        *(f"fedkit.shiftquant.{part}" for part in ("format", "l1norm", "matmul", "quantize")),
    ),
    # shiftquant itself is the door for users: `convert` gives a model that the engine trains.
    ("fedkit.engine", "fedkit.fedtiny", "fedkit.baselines", "fedkit.shiftquant"),
    ("fedkit.cost",),
    ("fedkit.rounds", "fedkit.flower"),
    ("fedkit.cli",),
)

Imports = dict[str, set[str]]
"""Module -> what it imports, as dotted names."""


# Reading


def read_imports(root: Path) -> Imports:
    """Read the imports of all our modules under `root`."""
    files = {
        module_name(path.relative_to(root)): path
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    return {module: set(imported(module, path, set(files))) for module, path in files.items()}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str, path: Path, known: set[str]) -> Iterator[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in names(node, package, known):
            if node not in for_types or ours(name):
                yield name


def names(node: ast.AST, package: str, known: set[str]) -> Iterator[str]:
    """Yield what one statement imports; nothing if it is no import."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = absolute(node, package)
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in known else base


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the module an import starts from, with the dots of a relative import resolved."""
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


# Rules about one arrow: (who imports, what is imported) -> is that a breach?


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def ours(module: str) -> bool:
    return inside(module, *OURS)


def foundations_import_ours(module: str, other: str) -> bool:
    return inside(module, *FOUNDATIONS) and ours(other)


def flwr_is_imported_outside_its_places(module: str, other: str) -> bool:
    return inside(other, "flwr") and not inside(module, "fedkit.flower", "fedkit.cli", "sim")


def fedkit_imports_edge(module: str, other: str) -> bool:
    learns = inside(module, "fedkit") and not inside(module, "fedkit.cli", "fedkit.bench")
    return learns and inside(other, "edge")


def edge_looks_into_fedkit(module: str, other: str) -> bool:
    door = ("fedkit.checkpoint", "fedkit.nn") if module == "edge.lower" else ()
    allowed = inside(other, *FOUNDATIONS, *door)
    return inside(module, "edge") and inside(other, "fedkit") and not allowed


def edge_imports_torch_beside_lower(module: str, other: str) -> bool:
    return inside(module, "edge") and module != "edge.lower" and inside(other, "torch")


def an_emitter_sees_more_than_the_graph(module: str, other: str) -> bool:
    emitter = inside(module, "edge.emit") and module != "edge.emit"
    allowed = ["edge.ir", "edge.artifact", *FOUNDATIONS]
    # It ships our own kernels and nothing of a runtime that would lay out memory.
    if module in ("edge.emit.c99", "edge.emit.fpga"):
        allowed += ["edge.kernels", "edge.memory", "edge.emit.c_names"]
    return emitter and ours(other) and not inside(other, *allowed)


def bench_sees_more_than_artifacts(module: str, other: str) -> bool:
    # What a C model's identifiers are called, it must know to compile it.
    names = ("edge.compiled", "edge.emit.c_names")
    allowed = ("edge.bench", "edge.artifact", "edge.yosys", *names, *FOUNDATIONS)
    return inside(module, "edge.bench") and ours(other) and not inside(other, *allowed)


def somebody_imports_the_leaves(module: str, other: str) -> bool:
    free = inside(module, "fedkit.cli") or (inside(module, "sim") and inside(other, "sim"))
    return inside(other, "sim", "examples", "tests") and not free


ARROW_RULES: tuple[Callable[[str, str], bool], ...] = (
    foundations_import_ours,
    flwr_is_imported_outside_its_places,
    fedkit_imports_edge,
    edge_looks_into_fedkit,
    edge_imports_torch_beside_lower,
    an_emitter_sees_more_than_the_graph,
    bench_sees_more_than_artifacts,
    somebody_imports_the_leaves,
)


def breaches(imports: Imports, rule: Callable[[str, str], bool]) -> list[str]:
    return [
        f"{module} -> {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if rule(module, other)
    ]


# Rules about the whole graph


def layer(module: str) -> int | None:
    numbers = (i for i, packages in enumerate(LAYERS) if inside(module, *packages))
    return next(numbers, None)


def reachable(imports: Imports, start: str) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = imports.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def upward_reaches(imports: Imports) -> list[str]:
    """List modules from which one gets to a higher layer, as "low ... high"."""
    found = []
    for module in imports:
        own = layer(module)
        others = sorted(reachable(imports, module)) if own is not None else []
        found += [f"{module} ... {other}" for other in others if (layer(other) or 0) > (own or 0)]
    return found


def cycle(imports: Imports) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


# The repository


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports(ROOT)


def test_imports_are_read_from_every_package(imports: Imports) -> None:
    assert {module.partition(".")[0] for module in imports} == set(PACKAGES)
    assert "fedkit.nn.zoo" in imports["fedkit.task"]
    assert "torch" in imports["fedkit.engine.torch"]


@pytest.mark.parametrize("rule", ARROW_RULES, ids=lambda rule: rule.__name__)
def test_no_arrow_is_drawn_the_wrong_way(
    imports: Imports, rule: Callable[[str, str], bool]
) -> None:
    assert breaches(imports, rule) == []


def test_no_layer_reaches_a_higher_one(imports: Imports) -> None:
    assert upward_reaches(imports) == []


def test_there_are_no_import_cycles(imports: Imports) -> None:
    assert cycle(imports) == []


# Each rule fires on a planted breach


def plant(root: Path, files: dict[str, str]) -> Imports:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_imports(root)


ARROW_BREACHES = (
    (foundations_import_ours, "fedkit/errors.py", "from fedkit import task"),
    (foundations_import_ours, "fedkit/numerics.py", "import fedkit.errors"),
    (flwr_is_imported_outside_its_places, "fedkit/device.py", "from flwr.app import Array"),
    (flwr_is_imported_outside_its_places, "edge/ir.py", "def f():\n    import flwr"),
    (fedkit_imports_edge, "fedkit/checkpoint.py", "import edge"),
    (fedkit_imports_edge, "fedkit/nn/zoo.py", "from edge.ir import Graph"),
    (edge_looks_into_fedkit, "edge/ir.py", "from fedkit.nn import zoo"),
    (edge_looks_into_fedkit, "edge/lower.py", "from fedkit.rounds import Report"),
    (edge_looks_into_fedkit, "edge/interpret.py", "import fedkit.checkpoint"),
    (edge_imports_torch_beside_lower, "edge/quantize.py", "from torch import nn"),
    (an_emitter_sees_more_than_the_graph, "edge/emit/onnx.py", "from edge.emit import tflite"),
    (an_emitter_sees_more_than_the_graph, "edge/emit/onnx.py", "from .tflite import write"),
    (an_emitter_sees_more_than_the_graph, "edge/emit/c99.py", "from edge.lower import lower"),
    (an_emitter_sees_more_than_the_graph, "edge/emit/tflite.py", "import edge.kernels"),
    (bench_sees_more_than_artifacts, "edge/bench/host.py", "from edge import ir"),
    (bench_sees_more_than_artifacts, "edge/bench/host.py", "from .. import interpret"),
    (somebody_imports_the_leaves, "fedkit/rounds.py", "from sim.partition import split"),
    (somebody_imports_the_leaves, "sim/run.py", "import tests.naive"),
    (somebody_imports_the_leaves, "edge/export.py", "from examples import digits"),
)


@pytest.mark.parametrize(("rule", "file", "text"), ARROW_BREACHES)
def test_a_planted_arrow_is_found(
    tmp_path: Path, rule: Callable[[str, str], bool], file: str, text: str
) -> None:
    found = breaches(plant(tmp_path, {file: text}), rule)
    assert len(found) == 1
    assert found[0].startswith(module_name(Path(file)))


def test_every_arrow_rule_has_a_planted_breach() -> None:
    assert {rule for rule, _, _ in ARROW_BREACHES} == set(ARROW_RULES)


def test_a_type_of_ours_counts_and_a_third_partys_does_not(tmp_path: Path) -> None:
    text = "if TYPE_CHECKING:\n    from torch import nn\n    from fedkit.nn import zoo\n"
    imports = plant(tmp_path, {"edge/export.py": text, "fedkit/nn/zoo.py": ""})
    assert imports["edge.export"] == {"fedkit.nn.zoo"}


ALLOWED = {
    "fedkit/cli.py": "import edge\nimport sim.run\nimport flwr",
    "fedkit/flower/wire.py": "from flwr.app import Array",
    "sim/run.py": "from sim.partition import split\nfrom flwr.app import Context",
    "edge/lower.py": "import torch\nfrom fedkit.nn import zoo\nimport fedkit.checkpoint",
    "edge/emit/__init__.py": "from edge.emit import tflite",
    "edge/emit/c99.py": "from edge.kernels.pack import dense\nfrom edge.memory import plan",
    "edge/emit/tflite.py": "from edge import artifact, ir\nfrom fedkit.errors import ExportError",
    "edge/artifact.py": "import numpy",
    "edge/ir.py": "import numpy",
    "edge/bench/host.py": "from edge import artifact\nfrom edge.bench import report",
    "edge/bench/report.py": "from edge.artifact import read",
}


@pytest.mark.parametrize("rule", ARROW_RULES, ids=lambda rule: rule.__name__)
def test_allowed_arrows_are_let_through(tmp_path: Path, rule: Callable[[str, str], bool]) -> None:
    assert breaches(plant(tmp_path, ALLOWED), rule) == []


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("fedkit/sparse/topk.py", "fedkit/engine/torch.py"),
        ("fedkit/nn/zoo.py", "fedkit/rounds.py"),
        ("fedkit/engine/torch.py", "fedkit/cost.py"),
        ("fedkit/fedtiny/candidates.py", "fedkit/flower/wire.py"),
        ("fedkit/rounds.py", "fedkit/cli.py"),
    ],
)
def test_a_planted_way_up_is_found_even_through_a_module_between(
    tmp_path: Path, low: str, high: str
) -> None:
    low_name, high_name = module_name(Path(low)), module_name(Path(high))
    between = f"def f():\n    import {high_name}"
    files = {low: "import fedkit.between", "fedkit/between.py": between, high: ""}
    assert upward_reaches(plant(tmp_path, files)) == [f"{low_name} ... {high_name}"]


def test_ways_down_and_sideways_are_let_through(tmp_path: Path) -> None:
    files = {
        "fedkit/rounds.py": "from fedkit import engine, errors, flower",
        "fedkit/engine/__init__.py": "import fedkit.fedtiny",
        "fedkit/fedtiny/__init__.py": "import fedkit.nn",
        "fedkit/flower/__init__.py": "",
        "fedkit/nn/__init__.py": "import fedkit.errors",
        "fedkit/errors.py": "",
    }
    assert upward_reaches(plant(tmp_path, files)) == []


def test_a_planted_cycle_is_found(tmp_path: Path) -> None:
    files = {
        "edge/a.py": "from edge import b",
        "edge/b.py": "from . import c",
        "edge/c.py": "def later():\n    from edge.a import thing",
    }
    assert set(cycle(plant(tmp_path, files))) == {"edge.a", "edge.b", "edge.c"}


def test_a_package_may_gather_its_own_modules(tmp_path: Path) -> None:
    files = {"edge/p/__init__.py": "from edge.p import a, b", "edge/p/a.py": "", "edge/p/b.py": ""}
    assert cycle(plant(tmp_path, files)) == []
