"""Who may import whom, read from the sources: an arrow drawn the wrong way fails here.

Imports count wherever they stand, at the top of a module or inside a function. Under
`if TYPE_CHECKING` only imports of our own modules count: those are knowledge of each other too,
while the name of a third party's type costs nothing.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.imports import (
    PACKAGES,
    ROOT,
    Imports,
    inside,
    module_name,
    ours,
    read_imports,
)

CORE = "fedkit.core"
GRAPH = "fedkit.graph"
PREPROCESS = "fedkit.preprocess"

# From the bottom up. Every module is in one room, that of the longest name it starts with, and
# imports from its own and from earlier rooms alone.
ROOMS = (
    "fedkit.core",
    # What training and export share of a model, and of what comes before it.
    "fedkit.graph",
    "fedkit.preprocess",
    # The model leaves: sees of fedkit these three alone.
    "edge.graph_file",
    "edge.artifact",
    "edge.arena",
    "edge.define.rounding",
    "edge.raw",
    "edge.svg",
    "edge.ops",
    "edge.cost",
    "edge.define",
    "edge.passes",
    "edge.quantize",
    "edge.targets",
    "edge.runners",
    "edge.inspect",
    "edge.graph_svg",
    "edge.save",
    "edge.export",
    "edge.check",
    "edge.bench",
    "edge.api",
    "edge",
    # The fleet learns.
    "fedkit.sparse",
    "fedkit.stats",
    "fedkit.integers",
    "fedkit.config",
    "fedkit.wire",
    "fedkit.nn",
    "fedkit.tasks",
    "fedkit.engine",
    "fedkit.shiftquant",
    "fedkit.methods",
    "fedkit.trainer",
    "fedkit.device",
    "fedkit.server",
    "fedkit.flower",
    "fedkit.fleet",
    "fedkit.report",
    # A fleet in one box.
    "sim",
    # What people call.
    "fedkit",
    "fedkit.bench",
    "fedkit.cli",
    "fedkit.__main__",
)

FACES = ("fedkit", "edge")
"""Rooms of one module each: what `import fedkit` and `import edge` offer."""


FINDING = (
    "edge.ops.registry",
    "fedkit.engine.ops.registry",
    "fedkit.graph.ops.registry",
    "fedkit.methods.registry",
)
"""Registries that import every module of their package, by a name that no import statement has."""

# Reading


# Rules about one arrow: (who imports, what is imported) -> is that a breach?


def flwr_is_imported_outside_its_places(module: str, other: str) -> bool:
    return inside(other, "flwr") and not inside(
        module, "fedkit.flower", "fedkit.bench", "fedkit.cli", "sim"
    )


def fedkit_imports_edge_or_sim(module: str, other: str) -> bool:
    learns = inside(module, "fedkit") and not inside(module, "fedkit.cli", "fedkit.bench")
    return learns and module != "fedkit" and inside(other, "edge", "sim")


def edge_looks_into_fedkit(module: str, other: str) -> bool:
    seen = inside(other, CORE, GRAPH, PREPROCESS)
    return inside(module, "edge") and inside(other, "fedkit", "sim") and not seen


def a_graph_is_not_free_of_torch(module: str, other: str) -> bool:
    reads = module in ("fedkit.graph.from_torch", "fedkit.graph.torch_attention")
    return inside(module, "edge", GRAPH) and not reads and inside(other, "torch")


def a_target_sees_its_neighbours(module: str, other: str) -> bool:
    """One target knows nothing of another; what several need lies beside them."""
    own = ".".join(module.split(".")[:3])
    its = inside(other, own) or other in SHARED_BY_TARGETS
    return module.startswith("edge.targets.") and inside(other, "edge.targets") and not its


def an_emitter_sees_more_than_the_graph(module: str, other: str) -> bool:
    emitter = inside(module, "edge.targets") and module.endswith(".emitter")
    # It ships our own kernels and nothing of a runtime that would lay out memory.
    allowed = [
        "fedkit.graph",
        PREPROCESS,
        "edge.artifact",
        "edge.arena",
        "edge.ops",
        "edge.targets",
        CORE,
    ]
    return emitter and ours(other) and not inside(other, *allowed)


def bench_sees_more_than_artifacts(module: str, other: str) -> bool:
    # What a C model's identifiers are called, it must know to compile it.
    names = ("edge.targets.c99.runner", "edge.targets.c_names")
    allowed = ("edge.bench", "edge.artifact", "edge.targets.fpga.yosys", *names, CORE)
    return inside(module, "edge.bench") and ours(other) and not inside(other, *allowed)


def somebody_imports_the_leaves(module: str, other: str) -> bool:
    return inside(other, "examples", "tests")


def a_benchmark_is_imported_by_what_it_measures(module: str, other: str) -> bool:
    above = inside(module, "fedkit.bench", "fedkit.cli", "edge.bench")
    return inside(other, "fedkit.bench", "edge.bench") and not above


SHARED_BY_TARGETS = (
    "edge.targets.common",
    "edge.targets.c_names",
    "edge.targets.export_target",
    "edge.targets.tflite.runner",
)
"""The last has the protocol of runners, which all others fill."""

ARROW_RULES: tuple[Callable[[str, str], bool], ...] = (
    flwr_is_imported_outside_its_places,
    fedkit_imports_edge_or_sim,
    edge_looks_into_fedkit,
    a_graph_is_not_free_of_torch,
    a_target_sees_its_neighbours,
    an_emitter_sees_more_than_the_graph,
    bench_sees_more_than_artifacts,
    somebody_imports_the_leaves,
    a_benchmark_is_imported_by_what_it_measures,
)


def breaches(imports: Imports, rule: Callable[[str, str], bool]) -> list[str]:
    return [
        f"{module} -> {other}"
        for module, others in imports.items()
        for other in sorted(others)
        if rule(module, other)
    ]


# Rules about the whole graph


def room_of(module: str) -> str | None:
    """Return the room of a module: that with the longest name among those it is in."""
    found = [
        room for room in ROOMS if inside(module, room) and (room not in FACES or room == module)
    ]
    return max(found, key=len, default=None)


def homeless(imports: Imports) -> list[str]:
    return [module for module in imports if room_of(module) is None]


def upward(imports: Imports) -> list[str]:
    """List imports of later rooms, as "module -> other"."""
    place = {room: index for index, room in enumerate(ROOMS)}
    found = []
    for module, others in imports.items():
        own = room_of(module)
        for other in sorted(others):
            room = room_of(other)
            if own is not None and room is not None and place[room] > place[own]:
                found.append(f"{module} -> {other}")
    return found


def cycle(imports: Imports) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    try:
        graphlib.TopologicalSorter({**imports, **with_found(imports)}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def with_found(imports: Imports) -> Imports:
    """Return what registries import, with the modules that they find where these lie."""
    found = {}
    for registry in set(FINDING).intersection(imports):
        package = registry.rpartition(".")[0]
        lying = {module for module in imports if inside(module, package)} - {registry, package}
        found[registry] = imports[registry] | lying
    return found


# The repository


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports(ROOT)


def test_imports_are_read_from_every_package(imports: Imports) -> None:
    assert {module.partition(".")[0] for module in imports} == set(PACKAGES)
    assert "fedkit.nn.zoo" in imports["fedkit.tasks.task"]
    assert "torch" in imports["fedkit.engine.torch"]


@pytest.mark.parametrize("rule", ARROW_RULES, ids=lambda rule: rule.__name__)
def test_no_arrow_is_drawn_the_wrong_way(
    imports: Imports, rule: Callable[[str, str], bool]
) -> None:
    assert breaches(imports, rule) == []


def test_every_module_has_a_room_and_every_room_a_module(imports: Imports) -> None:
    assert homeless(imports) == []
    assert {room_of(module) for module in imports} == set(ROOMS)


def test_no_module_imports_from_a_later_room(imports: Imports) -> None:
    assert upward(imports) == []


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
    (flwr_is_imported_outside_its_places, "fedkit/device/round.py", "from flwr.app import Array"),
    (flwr_is_imported_outside_its_places, "edge/save.py", "def f():\n    import flwr"),
    (fedkit_imports_edge_or_sim, "fedkit/server/checkpoint.py", "import edge"),
    (fedkit_imports_edge_or_sim, "fedkit/nn/zoo.py", "from edge.artifact import Artifact"),
    (fedkit_imports_edge_or_sim, "fedkit/flower/serve.py", "from sim.partition import split"),
    (edge_looks_into_fedkit, "edge/save.py", "from fedkit.nn import zoo"),
    (
        edge_looks_into_fedkit,
        "edge/quantize/fit.py",
        "from fedkit.server.rounds import Report",
    ),
    (edge_looks_into_fedkit, "edge/define/rounding.py", "import fedkit.server.checkpoint"),
    (a_graph_is_not_free_of_torch, "edge/quantize/fit.py", "from torch import nn"),
    (a_graph_is_not_free_of_torch, "fedkit/graph/ir.py", "import torch"),
    (a_target_sees_its_neighbours, "edge/targets/onnx/emitter.py", "import edge.targets.tflite"),
    (a_target_sees_its_neighbours, "edge/targets/onnx/emitter.py", "from ..tflite import write"),
    (an_emitter_sees_more_than_the_graph, "edge/targets/c99/emitter.py", "import edge.quantize"),
    (an_emitter_sees_more_than_the_graph, "edge/targets/fpga/emitter.py", "import edge.passes"),
    (bench_sees_more_than_artifacts, "edge/bench/host.py", "from edge import ir"),
    (bench_sees_more_than_artifacts, "edge/bench/host.py", "from .. import define"),
    (somebody_imports_the_leaves, "sim/simulation.py", "import tests.naive"),
    (somebody_imports_the_leaves, "edge/export.py", "from examples import digits"),
    (a_benchmark_is_imported_by_what_it_measures, "sim/scenario.py", "import fedkit.bench.cell"),
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
    "fedkit/cli.py": "import edge\nimport sim.simulation\nimport flwr\nimport fedkit.bench",
    "fedkit/flower/wire.py": "from flwr.app import Array",
    "sim/simulation.py": "from sim.partition import split\nfrom flwr.app import Context",
    "fedkit/graph/from_torch.py": "import torch",
    "fedkit/graph/torch_attention.py": "from torch import nn",
    "edge/targets/c99/emitter.py": "from edge.targets.c99 import pack\nimport edge.arena",
    "edge/targets/tflite/emitter.py": "from edge import artifact\nfrom fedkit.core import errors",
    "edge/targets/onnx/emitter.py": "from edge.targets.common import Step",
    "edge/artifact.py": "import numpy",
    "fedkit/graph/ir.py": "import numpy",
    "edge/bench/host.py": "from edge import artifact\nfrom edge.bench import report",
    "edge/bench/report.py": "from edge.artifact import read",
    "fedkit/core/errors.py": "",
}


@pytest.mark.parametrize("rule", ARROW_RULES, ids=lambda rule: rule.__name__)
def test_allowed_arrows_are_let_through(tmp_path: Path, rule: Callable[[str, str], bool]) -> None:
    imports = plant(tmp_path, ALLOWED)
    assert breaches(imports, rule) == []
    assert homeless(imports) == []


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("fedkit/core/errors.py", "fedkit/tasks/task.py"),
        ("fedkit/sparse/topk.py", "fedkit/engine/torch.py"),
        ("fedkit/nn/zoo.py", "fedkit/server/rounds.py"),
        ("fedkit/wire/codec.py", "fedkit/engine/base.py"),
        ("fedkit/methods/snip.py", "fedkit/flower/wire.py"),
        ("fedkit/server/rounds.py", "fedkit/cli/app.py"),
        ("fedkit/graph/ir.py", "edge/export.py"),
        ("fedkit/fleet/keys.py", "fedkit/__init__.py"),
    ],
)
def test_a_planted_way_up_is_found(tmp_path: Path, low: str, high: str) -> None:
    low_name, high_name = module_name(Path(low)), module_name(Path(high))
    files = {low: f"def f():\n    import {high_name}", high: ""}
    assert upward(plant(tmp_path, files)) == [f"{low_name} -> {high_name}"]


def test_ways_down_and_sideways_are_let_through(tmp_path: Path) -> None:
    files = {
        "fedkit/server/rounds.py": "from fedkit import engine\nfrom fedkit.server import events",
        "fedkit/server/events.py": "",
        "fedkit/engine/__init__.py": "import fedkit.nn",
        "fedkit/nn/__init__.py": "import fedkit.core.errors",
        "fedkit/core/errors.py": "",
    }
    assert upward(plant(tmp_path, files)) == []


@pytest.mark.parametrize("name", ["fedkit/loose.py", "fedkit/attic/trunk.py", "edge/loose.py"])
def test_a_module_without_a_room_is_found(tmp_path: Path, name: str) -> None:
    assert homeless(plant(tmp_path, {name: ""})) == [module_name(Path(name))]


def test_a_planted_cycle_is_found(tmp_path: Path) -> None:
    files = {
        "edge/a.py": "from edge import b",
        "edge/b.py": "from . import c",
        "edge/c.py": "def later():\n    from edge.a import thing",
    }
    assert set(cycle(plant(tmp_path, files))) == {"edge.a", "edge.b", "edge.c"}


def test_a_cycle_through_a_registry_that_finds_modules_is_found(tmp_path: Path) -> None:
    files = {
        "fedkit/engine/ops/registry.py": "",
        "fedkit/engine/ops/add.py": "from fedkit.engine import program",
        "fedkit/engine/program.py": "from fedkit.engine.ops.registry import FAMILIES",
    }
    looked_up = {"fedkit.engine.ops.registry", "fedkit.engine.ops.add", "fedkit.engine.program"}
    assert set(cycle(plant(tmp_path, files))) == looked_up
    files["fedkit/engine/program.py"] = ""
    assert cycle(plant(tmp_path, files)) == []


def test_every_registry_that_finds_modules_is_known(imports: Imports) -> None:
    ways = {"pkgutil", "fedkit.core.gather"}
    finding = {name for name, others in imports.items() if ways & others}
    assert finding - ways == set(FINDING)


def test_a_package_may_gather_its_own_modules(tmp_path: Path) -> None:
    files = {"edge/p/__init__.py": "from edge.p import a, b", "edge/p/a.py": "", "edge/p/b.py": ""}
    assert cycle(plant(tmp_path, files)) == []
