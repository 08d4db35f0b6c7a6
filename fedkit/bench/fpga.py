"""`fedkit bench fpga`: what ShiftQuant's array, norm statistics and whole models cost on FPGAs.

Blocks, all pipelined, without multiplier blocks:

- `int`: LANES products of whole numbers per cycle, a tree, an accumulator of 32 bits
- `shiftquant`: the same, and products are shifted by their group's exponent before they are
  accumulated; the lanes hold channels of one group at a time
- `shiftquant-lanes`: the same with an exponent for each lane
- `fp16`: the same array in half precision, rounded after every operation
- `l1-statistic`, `l2-statistic`: the sums behind an L1 norm; those, and the root, of an L2 norm

Models are a small convolutional network trained on scikit-learn's digits. Before a figure of one is
taken, all integers of 100 test images are compared between the simulated Verilog and the
interpreter; one that differs ends the benchmark. `cycles_per_inference` is counted in simulation.

`luts_vs_fp16`, `luts_vs_int`, `luts_vs_l2`: LUTs divided by those of the block that is named, with
the same lanes, bits and device. `fmax_mhz` is of the routed design, and missing where there is no
router. The first call of yosys and of nextpnr takes a minute or two more; see
`edge.targets.fpga.yosys`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge.artifact import Artifact
from edge.bench.fpga import Figures, synthesise_block, synthesise_model
from edge.check import check
from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph, save_fpga, save_graph
from edge.targets.fpga.runner import SimulatedRunner
from fedkit.bench import markdown
from fedkit.core.errors import ExportError
from fedkit.graph import ir

_SEED = 0
_GROUPS = 4
_TESTED = 100
_TRAINED_ON = 1297
_WORKERS = 2

Images = NDArray[np.float32]
Row = dict[str, Any]
Masks = Mapping[nn.Module, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        bits: Of its weights.
        density: Share of weights that are kept.
        dsp: Whether its multipliers may be blocks.
        lanes: Filters at a time.
    """

    bits: int
    density: float
    dsp: bool
    lanes: int = 4


@dataclass(frozen=True)
class Measurement:
    """What to measure.

    Attributes:
        lanes: Products of a block per cycle, a power of two.
        bits: Of the operands of blocks.
        devices: For blocks, some of `edge.bench.fpga.DEVICES`; models are for ECP5.
        models: The models.
        route_fp16: Whether that block, the largest one, is routed too.
        epochs: Of training a model, and again of training it pruned.
    """

    lanes: int
    bits: tuple[int, ...]
    devices: tuple[str, ...]
    models: tuple[Model, ...]
    route_fp16: bool
    epochs: int


_KINDS = itertools.product((8, 4), (1.0, 0.1), (True, False))
_FULL = Measurement(
    8, (8, 4), ("ecp5", "ice40", "xilinx7"), tuple(Model(*kind) for kind in _KINDS), True, 12
)
_QUICK = Measurement(4, (4,), ("ecp5",), (Model(4, 0.1, True, 1),), False, 4)


def bench_fpga(quick: bool) -> dict[str, Any]:
    """Synthesise and route blocks and models.

    Args:
        quick: Blocks of 4 bits and 4 lanes and one model with one lane, on ECP5 alone.

    Raises:
        ExportError: A tool is missing or fails, or a model gives another integer than the
            interpreter.
    """
    plan = _QUICK if quick else _FULL
    with ThreadPoolExecutor(_WORKERS) as pool:
        whole = pool.submit(model_rows, plan)
        blocks = [pool.submit(block_rows, plan, device) for device in plan.devices]
        rows = [row for each in (*blocks, whole) for row in each.result()]
    return {"benchmark": "fpga", "seed": _SEED, "groups": _GROUPS, "rows": rows}


def _row(design: str, bits: int, device: str, figures: Figures, **more: Any) -> Row:
    row: Row = {"design": design, "bits": bits, "device": device, **asdict(figures)}
    return {**row, **dict.fromkeys(_MORE), **more}


_MORE = (
    *("cycles_per_inference", "luts_vs_fp16", "luts_vs_int", "luts_vs_l2", "density", "lanes"),
    *("inferences_per_second", "accuracy", "images_compared"),
)


# Blocks


def block_rows(plan: Measurement, device: str) -> list[Row]:
    """Return the rows of all blocks on one device."""
    lanes = plan.lanes
    # Operands of 8 lanes have more bits than an iCE40 has pins: its arrays are not routed.
    fits = device != "ice40"
    fp16 = synthesise_block("fp16_array", device, {"LANES": lanes}, fits and plan.route_fp16)
    rows = [_row("fp16", 16, device, fp16, lanes=lanes)]
    for bits in plan.bits:
        found = {name: _array(plan, bits, device, *kind) for name, kind in _ARRAYS.items()}
        for name, figures in found.items():
            ratios = {
                "luts_vs_fp16": round(figures.luts / fp16.luts, 3),
                "luts_vs_int": round(figures.luts / found["int"].luts, 3),
            }
            rows.append(_row(name, bits, device, figures, lanes=lanes, **ratios))
    l1, l2 = (synthesise_block(f"{kind}_statistic", device) for kind in ("l1", "l2"))
    rows.append(_row("l1-statistic", 8, device, l1, luts_vs_l2=round(l1.luts / l2.luts, 3)))
    return [*rows, _row("l2-statistic", 8, device, l2)]


_ARRAYS: Mapping[str, tuple[int, int]] = {
    "int": (1, 1),
    "shiftquant": (_GROUPS, 1),
    "shiftquant-lanes": (_GROUPS, 0),
}
"""Groups, and whether all lanes share a shift."""


def _array(plan: Measurement, bits: int, device: str, groups: int, shared: int) -> Figures:
    parameters = {"LANES": plan.lanes, "BITS": bits, "WEIGHT": bits}
    parameters |= {"GROUPS": groups, "SHARED": shared}
    return synthesise_block("shift_array", device, parameters, device != "ice40")


# Models


def model_rows(plan: Measurement) -> list[Row]:
    """Return a row for each model on ECP5, whose integers have all been found right."""
    data, densities = _digits(), {each.density for each in plan.models}
    trained = {density: _trained(data, density, plan.epochs) for density in densities}
    return [_model_row(each, trained[each.density], data) for each in plan.models]


def _model_row(model: Model, module: nn.Module, data: _Data) -> Row:
    graph = int8_graph(module, data.inputs[:256], weight_bits=model.bits, accept_error=True)
    with tempfile.TemporaryDirectory() as name:
        saved = _saved(graph, data, Path(name), model.lanes)
        cycles, accuracy = simulate(saved, graph, data.test, data.test_targets)
        figures = synthesise_model(saved.path, dsp=model.dsp)
    assert figures.fmax_mhz is not None  # as ECP5 has a router
    return _row(
        f"digits-cnn{'' if model.dsp else ', no dsp'}",
        model.bits,
        "ecp5",
        figures,
        cycles_per_inference=cycles,
        density=model.density,
        lanes=model.lanes,
        inferences_per_second=round(1e6 * figures.fmax_mhz / cycles, 1),
        accuracy=round(accuracy, 4),
        images_compared=len(data.test),
    )


def _saved(graph: ir.Graph, data: _Data, folder: Path, lanes: int) -> Artifact:
    whole = save_graph(graph, folder / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    return save_fpga(graph, data.inputs, folder / "model", about, lanes)


def simulate(
    saved: Artifact, graph: ir.Graph, images: Images, targets: NDArray[np.int64]
) -> tuple[int, float]:
    """Return cycles per inference and accuracy of a model in simulation.

    Args:
        saved: The exported model.
        graph: What it was made from.
        images: float32 [n, c, h, w].
        targets: int64 [n].

    Raises:
        ExportError: An integer differs from the interpreter's; names the first.
    """
    runner = SimulatedRunner(saved.path)
    integers = runner.quantize(images)
    found = runner.predict_int8(integers)
    expected = evaluate_int8(graph, ir.to_graph_layout(integers), "half_up")
    if not np.array_equal(found, expected):
        first = check(saved.path, images).first
        raise ExportError(
            f"the Verilog model and the interpreter differ in {np.sum(found != expected)} of "
            f"{found.size} outputs, first: {first}; no figure is given for a wrong model"
        )
    return runner.cycles, float(np.mean(found.argmax(1) == targets))


@dataclass(frozen=True)
class _Data:
    inputs: Images
    targets: NDArray[np.int64]
    test: Images
    test_targets: NDArray[np.int64]


def _digits() -> _Data:
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(_SEED).permutation(len(images))
    inputs = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    labels = targets[order].astype(np.int64)
    test = slice(_TRAINED_ON, _TRAINED_ON + _TESTED)
    return _Data(inputs[:_TRAINED_ON], labels[:_TRAINED_ON], inputs[test], labels[test])


def _trained(data: _Data, density: float, epochs: int) -> nn.Module:
    """Train a model; prune each layer by magnitude, but for the first, and train what is left."""
    torch.manual_seed(_SEED)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    _train(model, data, {}, epochs)
    if density < 1.0:
        layers = [layer for layer in model if isinstance(layer, nn.Conv2d | nn.Linear)][1:]
        masks: Masks = {layer: _largest(layer.weight, density) for layer in layers}
        _train(model, data, masks, epochs)
    return model.eval()


def _largest(weight: torch.Tensor, density: float) -> torch.Tensor:
    kept = max(1, round(density * weight.numel()))
    least = weight.detach().abs().flatten().sort(descending=True).values[kept - 1]
    return weight.detach().abs() >= least


def _train(model: nn.Module, data: _Data, masks: Masks, epochs: int) -> None:
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs * (len(inputs) // 32)):
        _prune(masks)
        batch = torch.randint(len(inputs), (32,))
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    _prune(masks)


@torch.no_grad()
def _prune(masks: Masks) -> None:
    for layer, mask in masks.items():
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)  # as of all layers that have a mask
        weight.mul_(mask)


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = (
        "| design | bits | density | device | LUTs | FFs | DSP | BRAM | MHz, routed "
        "| LUTs / fp16 | LUTs / int | cycles per inference | inferences/s |"
    )
    keys = ("luts_vs_fp16", "luts_vs_int", "cycles_per_inference", "inferences_per_second")
    rows = (
        f"| {row['design']} | {row['bits']} "
        f"| {'' if row['density'] is None else format(row['density'], '.0%')} | {row['device']} "
        f"| {row['luts']:,} | {row['ffs']:,} | {row['dsp']} | {row['bram']} "
        f"| {_maybe(row['fmax_mhz'])} | {' | '.join(_maybe(row[key]) for key in keys)} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)


def _maybe(value: float | None) -> str:
    return "" if value is None else f"{value:,}"
