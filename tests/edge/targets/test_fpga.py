"""The Verilog model, simulated, gives the interpreter's integers, all of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edge import artifact
from edge.artifact import Artifact, Port
from edge.check import check
from edge.define.interpret_int8 import Int8Array, evaluate_int8
from edge.export import export_fpga, int8_graph, save_fpga, save_graph
from edge.ops.registry import SPECS
from edge.quantize.to_int8 import Scaling
from edge.targets.common import multiplier_and_shift
from edge.targets.fpga import emitter as fpga
from edge.targets.fpga import microcode, yosys
from edge.targets.fpga.lanes import entry_count
from edge.targets.fpga.runner import SimulatedRunner
from edge.targets.fpga.steps import Microcode
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.ops.registry import WEIGHTED
from fedkit.graph.places import Places
from fedkit.nn.zoo import build_model
from tests.edge import loaded
from tests.edge.conftest import TrainedModel
from tests.edge.loaded import Hardware
from tests.edge.models import MODELS, OWN, Flat, Images, Sums, images, pruned, small
from tests.edge.nets import small_net
from tests.moving import KINDS as MOVING
from tests.naive.engine import FpgaEngine
from tests.sets import slow_but

QUICK = ("-O0",)
SCALES: tuple[Scaling, ...] = ("float", "pow2")

Randomise = Callable[[nn.Module], nn.Module]

pytestmark = pytest.mark.skipif(
    yosys.obstacle("yosys") is not None,
    reason="yosys is not installed: pip install 'fedkit[bench]'",
)


def assert_same_integers(
    graph: ir.Graph, inputs: Images, folder: Path, lanes: int = 4, flags: tuple[str, ...] = QUICK
) -> Artifact:
    saved = save_fpga(graph, inputs, folder, {}, lanes)
    runner = SimulatedRunner(folder, flags)
    integers = runner.quantize(inputs)
    expected = evaluate_int8(graph, ir.to_graph_layout(integers), "half_up")
    found = ir.to_graph_layout(runner.predict_int8(integers))
    assert np.count_nonzero(found != expected) == 0
    assert len(np.unique(expected)) > 4, "the outputs say nothing"
    assert runner.cycles == saved.details["cycles_per_inference"]
    assert_told_that_it_never_ends(runner)
    return saved


def assert_told_that_it_never_ends(runner: SimulatedRunner) -> None:
    """What takes more cycles than it may is taken for what would take all there are."""
    runner._most = 20
    with pytest.raises(ExportError, match="no result within 20 cycles"):
        runner.latency(1)


class Pools(nn.Module):
    """Pools with padding that is counted and not, ReLU6, branches and two layers of features."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, (2, 3), (1, 2), (1, 0), dilation=(2, 1))
        self.maximum = nn.MaxPool2d(3, 2, 1)
        self.average = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.counted = nn.AvgPool2d(3, 2, 1)
        self.depthwise = nn.Conv2d(15, 30, 3, padding=1, groups=15)
        self.last = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 11), nn.ReLU(), nn.Linear(11, 7)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.first(x))
        x = torch.cat([self.maximum(x), self.average(x), self.counted(x)], 1)
        return self.last(self.depthwise(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sums": (lambda: Flat(Sums()), 4),
    "pools": (Pools, 4),
    "one lane": (Pools, 1),
    "eight lanes": (Pools, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, tmp_path: Path) -> None:
    make, lanes = NETWORKS[name]
    inputs = images(3, 8, 10)
    assert_same_integers(int8_graph(make().eval(), inputs), inputs[:2], tmp_path / "model", lanes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, *OWN])
def test_op(name: str, tmp_path: Path) -> None:
    inputs = images(3, 8, 10)
    graph = int8_graph(Flat({**MODELS, **OWN}[name]()).eval(), inputs)
    assert_same_integers(graph, inputs[:3], tmp_path / "model")


def random_model(seed: int) -> tuple[nn.Module, int]:
    """Return a few random layers on 2 x 7 x 9, some weights of which are 0, and how many lanes."""
    rng = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    channels = 2
    for _ in range(int(rng.integers(1, 4))):
        kernel, stride = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        padding = int(rng.integers(0, kernel // 2 + 1))
        if rng.random() < 0.3:
            layers.append(nn.MaxPool2d(kernel, 1, padding))
            continue
        depthwise = rng.random() < 0.3
        out = channels * int(rng.integers(1, 3)) if depthwise else int(rng.integers(1, 9))
        groups = channels if depthwise else 1
        conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups)
        layers += [pruned(conv, float(rng.choice([1, 0.3, 0.05]))), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers[:-1], nn.Conv2d(channels, 6, 1), nn.Flatten()), int(
        rng.integers(1, 9)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_random_models(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    model, lanes = random_model(seed)
    inputs = images(2, 7, 9)
    bits = 4 if seed % 2 else 8
    graph = int8_graph(model.eval(), inputs, weight_bits=bits)
    assert_same_integers(graph, inputs[:2], tmp_path / "model", lanes)


# Every activation of networks of any shape, by the words of the files and by the hardware


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


NAMED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "LeNet-5": (lenet, (1, 28, 28), 8),
    "one pixel": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
        (2, 3, 3),
        8,
    ),
    "strides beyond kernels": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 1, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, 5)),
            *(nn.Flatten(), nn.Linear(16, 3)),
        ),
        (2, 20, 20),
        8,
    ),
    "perceptron of 8 bits": (
        lambda: nn.Sequential(nn.Linear(49, 24), nn.ReLU(), nn.Linear(24, 10)),
        (49,),
        8,
    ),
    "perceptron of 4 bits": (
        lambda: nn.Sequential(nn.Linear(49, 24), nn.ReLU(), nn.Linear(24, 10)),
        (49,),
        4,
    ),
}


def named(name: str) -> tuple[ir.Graph, Images]:
    make, shape, bits = NAMED[name]
    inputs = np.random.default_rng(0).random((8, *shape)).astype(np.float32)
    return int8_graph(make().eval(), inputs, weight_bits=bits), inputs


def generated(seed: int) -> tuple[ir.Graph, Images]:
    model, inputs = small_net(seed)
    rng = np.random.default_rng(seed)
    bits, scales = int(rng.choice([8, 8, 6, 4])), SCALES[int(rng.integers(2))]
    return int8_graph(model, inputs, weight_bits=bits, scales=scales), inputs


def all_integers(
    graph: ir.Graph, inputs: Images, lanes: int
) -> tuple[Mapping[str, bytes], Int8Array, Int8Array]:
    """Return the files, and integers in and of every activation: [n, all in the files' order]."""
    integers, kept = interpreted(graph, inputs[:3])
    expected = np.concatenate([each.reshape(len(each), -1) for each in kept.values()], 1)
    return fpga.emit(graph, integers, expected, lanes, keep=True).files, integers, expected


def assert_all_by_the_words(graph: ir.Graph, inputs: Images, lanes: int) -> None:
    files, integers, expected = all_integers(graph, inputs, lanes)
    engine = FpgaEngine(files)
    found = np.stack([engine.run(each) for each in integers])
    assert np.count_nonzero(found != expected) == 0


def assert_all_by_the_hardware(hardware: Hardware, graph: ir.Graph, inputs: Images) -> None:
    def wide(*args: Any) -> Microcode:
        return replace(microcode.compile_graph(*args), ram_bytes=loaded.RAM_BYTES)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fpga, "compile_graph", wide)
        files, integers, expected = all_integers(graph, inputs, loaded.LANES)
    found = hardware.run(files, integers, expected.shape[1])
    assert np.count_nonzero(found != expected) == 0


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Hardware:
    return Hardware(tmp_path_factory.mktemp("hardware"))


def interpreted(graph: ir.Graph, inputs: Images) -> tuple[Int8Array, dict[str, Int8Array]]:
    """Return integers in the graph's layout, and every activation in the order of the ops."""
    first, kept = graph.tensors[graph.inputs[0]], dict[str, Int8Array]()
    port = Port(first.name, "int8", first.shape, first.scale, first.zero_point)
    integers = port.quantize(ir.to_graph_layout(inputs))
    evaluate_int8(graph, integers, "half_up", kept.__setitem__)
    return integers, {op.output: kept[op.output] for op in graph.ops}


@pytest.mark.parametrize("name", slow_but(("one pixel",), NAMED))
def test_named_networks(name: str, hardware: Hardware) -> None:
    graph, inputs = named(name)
    assert_all_by_the_words(graph, inputs, 4)
    assert_all_by_the_hardware(hardware, graph, inputs)


@pytest.mark.parametrize(
    "seed",
    slow_but(range(6), range(300)),
)
def test_generated_networks(seed: int, hardware: Hardware) -> None:
    graph, inputs = generated(seed)
    assert_all_by_the_words(graph, inputs, 1 + seed % 8)
    assert_all_by_the_hardware(hardware, graph, inputs)


@pytest.mark.parametrize("kind", slow_but(("halves", "pools"), MOVING))
def test_models_that_put_values_elsewhere(kind: str, hardware: Hardware) -> None:
    make, shape = MOVING[kind]
    torch.manual_seed(0)
    inputs = images(*shape)
    graph = int8_graph(make().eval(), inputs)
    assert "take" in {op.kind for op in graph.ops}
    assert_all_by_the_words(graph, inputs, 4)
    assert_all_by_the_hardware(hardware, graph, inputs)


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ((0,), 1),
        (range(9), 1),
        (range(8, -1, -2), 1),
        ((4, 4, 4), 1),
        (np.arange(12) // 2, 2),
        (np.arange(30) // 5, 5),
        (np.pad(np.arange(7), 2, "reflect"), 3),
        (np.roll(np.arange(9), 4), 2),
        ((5, 0, 3, 1), 2),
    ],
)
def test_lists_are_cut_into_few_runs(places: Sequence[int], runs: int) -> None:
    found, given = [-1] * len(places), microcode.in_runs(list(map(int, places)))
    for run in given:
        for number in range(run.length):
            found[run.start + number * run.stride] = run.first + number * run.step
    assert found == list(places) and len(given) == runs


def test_more_pieces_than_a_program_should_have_are_refused() -> None:
    rows, columns = (tuple(np.random.default_rng(n).permutation(80).tolist()) for n in range(2))
    tensors = [
        ir.Tensor(name, (1, 80, 80, 1), "int8", None, ir.Quantization((1.0,), (0,)))
        for name in ("x", "y")
    ]
    op = ir.Op("take", ("x",), ("y",), attributes=Places(rows, columns))
    graph = ir.Graph({each.name: each for each in tensors}, (op,), ("x",), ("y",))
    with pytest.raises(ExportError, match=r"it takes places in \d+ steps; 1024 can be"):
        microcode.compile_graph(graph, 4)


def test_a_bridge_takes_no_part_in_a_maximum(hardware: Hardware) -> None:
    """Taps of a pool, far apart among weights that are close, are bridged by entries of 0."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3)),
        *(nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(12 * 2 * 4, 60)),
    )
    inputs = -np.abs(images(1, 12, 12))
    graph = int8_graph(model.eval(), inputs)
    code = microcode.compile_graph(graph, 4)
    maxima = [each for step in code.steps if step.run == "maxima" for each in step.filters]
    assert any(entry_count(each, code.gap_bits) > len(each.values) for each in maxima)
    assert min(int(kept.min()) for kept in interpreted(graph, inputs)[1].values()) < 0
    assert_all_by_the_hardware(hardware, graph, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("density", [1.0, 0.05])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet8", (3, 16, 16)), ("ds-cnn", (1, 49, 10)), ("mobilenetv2-w0.25", (3, 8, 8))],
)
def test_zoo(
    name: str,
    shape: tuple[int, ...],
    density: float,
    bits: int,
    tmp_path: Path,
    randomise: Randomise,
) -> None:
    model = pruned(randomise(build_model(name, shape, 10)), density)
    inputs = images(*shape, n=4)
    graph = int8_graph(model, inputs, weight_bits=bits)
    assert_same_integers(graph, inputs, tmp_path / "model", flags=("-O2",))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_trained_model_on_its_test_set(
    trained: TrainedModel, density: float, bits: int, tmp_path: Path
) -> None:
    model = trained.model if density == 1.0 else pruned(trained.model, density)
    graph = int8_graph(model, trained.train[:256], weight_bits=bits)
    assert_same_integers(graph, trained.test[:100], tmp_path / "model", flags=("-O2",))


# What is stored, and what takes time


@pytest.fixture(scope="module")
def graph() -> tuple[ir.Graph, Images]:
    inputs = images(3, 4, 5)
    return int8_graph(small(), inputs), inputs


def test_a_pruned_weight_takes_no_bit_and_no_cycle(tmp_path: Path) -> None:
    inputs = images(3, 8, 10)
    found = {}
    for density in (1.0, 0.1):
        made = int8_graph(small(density), inputs)
        found[density] = save_fpga(made, inputs, tmp_path / str(density), {}, 1).details
        weights = [made.constant(op.inputs[1]) for op in made.ops if op.kind in WEIGHTED]
        kept = sum(np.count_nonzero(each) for each in weights)
        ones = 80  # of the mean, whose list all channels share
        assert found[density]["weights"] - ones <= 1.02 * kept + 1
    # 80 windows, 3 x 9 x 8 + 8 x 9 x 8 weights: next to nothing else takes time.
    dense, sparse = (found[density]["cycles_per_inference"] for density in (1.0, 0.1))
    assert dense > 80 * 792
    assert sparse < 0.17 * dense


def test_weights_take_their_bits(graph: tuple[ir.Graph, Images], tmp_path: Path) -> None:
    inputs = graph[1]
    narrow = int8_graph(small(), inputs, weight_bits=4)
    eight, four = (
        save_fpga(each, inputs, tmp_path / name, {}).details
        for name, each in (("8", graph[0]), ("4", narrow))
    )
    assert (eight["weight_bits"], four["weight_bits"]) == (8, 4)
    assert four["rom_bits"] < eight["rom_bits"]


# Faults are found and named


@pytest.mark.slow
@pytest.mark.usefixtures("quick_simulation")
def test_a_fault_in_the_hardware_is_named(
    graph: tuple[ir.Graph, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hdl = tmp_path / "hdl"
    shutil.copytree(fpga._HDL, hdl)
    rounding = hdl / "requantize.v"
    text = rounding.read_text()
    assert "{12'd0, clipped[0]}" in text
    rounding.write_text(text.replace("{12'd0, clipped[0]}", "13'd0"))  # floor, not half up
    monkeypatch.setattr(fpga, "_HDL", hdl)
    whole = save_graph(graph[0], tmp_path / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    saved = save_fpga(*graph, tmp_path / "model", about, 1)
    report = check(saved.path, graph[1][:2])
    assert report.outputs.mismatches > 0
    assert report.first is not None
    assert (report.first.source, report.first.position[0]) == ("0", 0)
    assert report.first.actual == report.first.expected - 1


def test_a_fault_in_the_program_is_found(
    graph: tuple[ir.Graph, Images], hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        microcode, "multiplier_and_shift", lambda real: multiplier_and_shift(real * 1.01)
    )
    with pytest.raises(AssertionError):
        assert_all_by_the_hardware(hardware, *graph)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_simulation")
def test_check_looks_at_every_layer(graph: tuple[ir.Graph, Images], tmp_path: Path) -> None:
    whole = save_graph(graph[0], tmp_path / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    saved = save_fpga(*graph, tmp_path / "model", about, 2)
    report = check(saved.path, graph[1][:2], layers=True)
    assert report.mismatches == 0
    assert set(report.layers) == {op.output for op in graph[0].ops}


# The folder


@pytest.fixture(scope="module")
def folder(graph: tuple[ir.Graph, Images], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fpga") / "model"
    return save_fpga(*graph, path, {"seed": 0}).path


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def make(folder: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *targets], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("tool", "target"), [("iverilog", "test"), ("verilator", "test-verilator")]
)
def test_the_folder_tests_itself(folder: Path, tool: str, target: str, tmp_path: Path) -> None:
    need(tool)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    ended = make(copy, target)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "0 of 20 outputs differ" in ended.stdout
    expected = copy / "expected.hex"
    first, *others = expected.read_text().splitlines()
    wrong = int(first, 16) ^ 1
    expected.write_text("\n".join([f"{wrong:02x}", *others, ""]))
    ended = make(copy, target)
    assert ended.returncode != 0
    assert "example 0, output 0: " in ended.stdout
    assert "1 of 20 outputs differ" in ended.stdout


def test_verilator_warns_of_nothing(folder: Path, tmp_path: Path) -> None:
    need("verilator")
    ended = make(Path(shutil.copytree(folder, tmp_path / "copy")), "lint")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_folder_is_made_alike_each_time(graph: tuple[ir.Graph, Images], tmp_path: Path) -> None:
    saved = [save_fpga(*graph, tmp_path / name, {}) for name in ("a", "b")]
    assert saved[0].sha256 == saved[1].sha256


def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    program = copy / "program.hex"
    program.write_text(program.read_text().replace("7", "6", 1))
    with pytest.raises(ExportError, match="is not the file its manifest describes"):
        SimulatedRunner(copy)


def test_another_target_is_refused(graph: tuple[ir.Graph, Images], tmp_path: Path) -> None:
    saved = save_graph(graph[0], tmp_path / "model.graph", {})
    with pytest.raises(ExportError, match="not for an FPGA; export it with export_fpga"):
        SimulatedRunner(saved.path)


# What cannot be done


@pytest.mark.parametrize("lanes", [0, 9])
def test_lanes_are_checked(graph: tuple[ir.Graph, Images], lanes: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"lanes is {lanes}; it must be 1 to 8"):
        save_fpga(*graph, tmp_path / "model", {}, lanes)
    assert not any(tmp_path.iterdir())


def test_all_that_is_missing_is_named(
    graph: tuple[ir.Graph, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("mean", "linear"):
        monkeypatch.setitem(SPECS, kind, replace(SPECS[kind], fpga=None))
    with pytest.raises(ExportError, match=r"nothing for mean .* linear 6 \(there is no step"):
        save_fpga(*graph, tmp_path / "model", {})
    monkeypatch.setitem(SPECS, "conv2d", replace(SPECS["conv2d"], fpga=None))
    with pytest.raises(ExportError, match=r"nothing for conv2d 0, 2 \(there is no step"):
        save_fpga(*graph, tmp_path / "model", {})


def test_long_filters_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(91 * 91, 2))
    inputs = images(1, 91, 91, n=2)
    with pytest.raises(ExportError, match=r"at most 8191 weights .* linear 2 has 82\d\d"):
        export_fpga(model.eval(), inputs, tmp_path / "model", {})


def test_without_yosys_the_command_to_install_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(yosys._TOOLS, "yosys", "there_is_no_such_package")
    with pytest.raises(ExportError, match=r"run `pip install 'fedkit\[bench\]'`"):
        SimulatedRunner(folder)


def test_a_failing_tool_says_why(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"yosys failed: ERROR: No such command: nonsense"):
        yosys.call("yosys", ["-p", "nonsense"], tmp_path)


def test_the_manifest_is_read_back(folder: Path) -> None:
    assert artifact.load(folder).details["lanes"] == 4
