"""Moves and sums of rows in C: how many calls they are, and that their integers are the graph's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from edge.targets.c99.calls import Goal, compile_graph
from edge.targets.c99.move_chains import _loops, move_chains
from edge.targets.c99.pack import Planes
from fedkit.graph import ir
from fedkit.graph.ops.transpose import Order
from tests.edge.in_runtimes import integers_of
from tests.edge.targets.c99.library import X86, need_avx2
from tests.edge.targets.compiled import PLAIN, assert_same_integers

SPELLED = " ".join(["-O1", *X86["avx512"]])
"""AVX-512 spelled out."""


class Moving(nn.Module):
    """Moves between two layers.

    Args:
        kind: Of them.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.kind = nn.Conv2d(3, 12, 3, padding=1), kind
        self.last = nn.Conv2d({"turned": 5, "tokens": 35, "heads": 4, "back": 12}[kind], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 4, ...] of [n, 3, 5, 7]."""
        y = self.first(x)
        if self.kind == "turned":
            y = y.transpose(1, 2)
        if self.kind == "tokens":
            y = y.flatten(2).transpose(1, 2).unsqueeze(2)
        if self.kind == "heads":
            y = y.flatten(2).transpose(1, 2).unflatten(2, (4, 3)).transpose(1, 2)
        if self.kind == "back":
            y = y.flatten(2).transpose(1, 2).transpose(1, 2).unflatten(2, (7, 5))
        out: Tensor = self.last(y)
        return out


def calls_of(folder: Path) -> list[str]:
    return re.findall(r"^    ek_(\w+)\(", (folder / "model.c").read_text(), re.MULTILINE)


@pytest.mark.parametrize("flags", ["-O0 -march=native", " ".join(PLAIN), SPELLED])
@pytest.mark.parametrize("kind", ["turned", "tokens", "heads", "back"])
def test_a_chain_is_one_call(kind: str, flags: str, tmp_path: Path) -> None:
    need_avx2()
    torch.manual_seed(0)
    graph = integers_of(Moving(kind).eval(), (3, 5, 7))
    inputs = np.random.default_rng(0).standard_normal((3, 3, 5, 7)).astype(np.float32)
    assert_same_integers(graph, inputs, tmp_path / "c", "speed", *flags.split())
    found = calls_of(tmp_path / "c")
    assert found.count("move") == 1
    assert "reshape" not in found


def moves_of(shapes: list[tuple[int, ...]], ops: list[ir.Op]) -> ir.Graph:
    names = ["x", *(op.output for op in ops)]
    how = ir.Quantization((0.1,), (0,))
    tensors = {n: ir.Tensor(n, s, "int8", None, how) for n, s in zip(names, shapes, strict=True)}
    return ir.Graph(tensors, tuple(ops), ("x",), (names[-1],))


def test_what_stays_where_it_is_is_no_call() -> None:
    turn = ir.Op("transpose", ("x",), ("a",), attributes=Order((2, 1, 3)))
    other = ir.Op("reshape", ("a",), ("b",))
    again = ir.Op("transpose", ("b",), ("y",), attributes=Order((2, 1, 3)))
    graph = moves_of([(1, 1, 6, 5), (1, 6, 1, 5), (1, 6, 1, 5), (1, 1, 6, 5)], [turn, other, again])
    assert [call.function for call in compile_graph(graph).calls] == [
        "ek_load",
        "ek_interleave",
        "ek_store",
    ]


def test_what_no_loops_do_is_a_reshape() -> None:
    graph = moves_of([(1, 3, 5, 4), (1, 5, 3, 4)], [ir.Op("reshape", ("x",), ("y",))])
    planes = {name: Planes(4, *graph.tensors[name].shape[1:3]) for name in graph.tensors}
    assert move_chains(graph, planes, ()) != {}  # channels stay, and pixels keep their order
    other = moves_of([(1, 3, 5, 4), (1, 5, 4, 3)], [ir.Op("reshape", ("x",), ("y",))])
    planes = {"x": Planes(4, 3, 5), "y": Planes(3, 5, 4)}
    assert move_chains(other, planes, ()) == {}
    assert "ek_reshape" in [call.function for call in compile_graph(other).calls]


def test_what_another_op_reads_ends_a_chain() -> None:
    turn = ir.Op("transpose", ("x",), ("a",), attributes=Order((2, 1, 3)))
    again = ir.Op("transpose", ("a",), ("y",), attributes=Order((3, 2, 1)))
    graph = moves_of([(1, 2, 3, 4), (1, 3, 2, 4), (1, 4, 2, 3)], [turn, again])
    planes = {n: Planes(t.shape[3], *t.shape[1:3]) for n, t in graph.tensors.items()}
    assert list(move_chains(graph, planes, ())) == ["y"]
    shown = ir.Graph(graph.tensors, graph.ops, ("x",), ("a", "y"))
    assert set(move_chains(shown, planes, ())) == {"a", "y"}
    assert move_chains(graph, planes, {"a", "y"}) == {}


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    axes=st.permutations([1, 2, 3]),
    halos=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_loops_put_every_value_where_it_belongs(
    shape: tuple[int, int, int], axes: list[int], halos: tuple[int, int, int, int]
) -> None:
    x = np.arange(np.prod(shape)).reshape(1, *shape)
    y = x.transpose(0, *axes)
    op = ir.Op("transpose", ("x",), ("y",), attributes=Order((axes[0], axes[1], axes[2])))
    graph = moves_of([x.shape, y.shape], [op])
    planes = {
        name: Planes(of.shape[3], of.shape[1], of.shape[2], *halo)
        for name, of, halo in (("x", x, halos[:2]), ("y", y, halos[2:]))
    }
    loops = _loops(graph, planes, "x", [op])
    assert loops is not None
    read, written = (np.zeros(1, np.int64) for _ in range(2))
    for count, *steps in loops:
        read, written = (
            np.add.outer(so_far, np.arange(count) * step).ravel()
            for so_far, step in zip((read, written), steps, strict=True)
        )
    memory, found = np.full(planes["x"].size, -1), np.full(planes["y"].size, -1)
    at = {name: place(planes[name]) for name in ("x", "y")}
    memory[at["x"]] = x[0].transpose(2, 0, 1)
    found[written] = memory[read]
    np.testing.assert_array_equal(found[at["y"]], y[0].transpose(2, 0, 1))


def place(planes: Planes) -> NDArray[np.int64]:
    """Return where each value lies after the first, [channels, rows, columns]."""
    c, i, j = np.indices((planes.channels, planes.height, planes.width))
    return np.asarray(c * planes.plane + i * planes.row + j)


class RowSums(nn.Module):
    """Sums of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 5, rows] of [n, 2, rows, columns]."""
        out: Tensor = self.first(x).sum(3)
        return out


@pytest.mark.parametrize("goal", ["speed", "size"])
@pytest.mark.parametrize("columns", [1, 7, 49, 130])
def test_sums_of_rows(columns: int, goal: Goal, tmp_path: Path) -> None:
    torch.manual_seed(columns)
    graph = integers_of(RowSums().eval(), (2, 6, columns))
    inputs = np.random.default_rng(1).standard_normal((3, 2, 6, columns)).astype(np.float32)
    assert_same_integers(graph, inputs, tmp_path / "c", goal)
    assert columns == 1 or "sum_rows" in calls_of(tmp_path / "c")
