"""Buffers needed at one time never share bytes, and those needed apart do."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from edge.arena import Buffer, activation_bytes, plan
from fedkit.graph import ir

BUFFERS = st.dictionaries(
    st.text("abcdef", min_size=1),
    st.builds(
        lambda size, first, length: Buffer(size, first, first + length),
        *(st.integers(1, 99), st.integers(0, 9), st.integers(0, 5)),
    ),
)


@given(buffers=BUFFERS, alignment=st.sampled_from([1, 4, 64]))
def test_buffers_that_meet_lie_apart(buffers: dict[str, Buffer], alignment: int) -> None:
    offsets, size = plan(buffers, alignment)
    assert offsets.keys() == buffers.keys()
    for name, offset in offsets.items():
        assert offset % alignment == 0
        assert 0 <= offset <= size - buffers[name].size
    for a, b in combinations(buffers, 2):
        if buffers[a].meets(buffers[b]):
            first, second = sorted((a, b), key=lambda name: offsets[name])
            assert offsets[first] + buffers[first].size <= offsets[second]


@given(sizes=st.lists(st.integers(1, 99), min_size=1))
def test_buffers_that_never_meet_share_their_bytes(sizes: list[int]) -> None:
    buffers = {str(n): Buffer(size, n, n) for n, size in enumerate(sizes)}
    assert plan(buffers, 4)[1] == max(sizes)


def test_activations_need_no_more_than_live_at_once() -> None:
    wide, narrow = (1, 4, 4, 8), (1, 4, 4, 2)
    shapes = {"x": narrow, "a": wide, "b": narrow, "c": narrow, "y": narrow}
    ops = (
        ir.Op("relu", ("x",), ("a",)),
        ir.Op("relu", ("a",), ("b",)),
        ir.Op("relu", ("b",), ("c",)),
        ir.Op("add", ("c", "b"), ("y",)),
    )
    tensors = {name: ir.Tensor(name, shape) for name, shape in shapes.items()}
    graph = ir.Graph(tensors, ops, ("x",), ("y",))
    assert activation_bytes(graph) == 16 * (8 + 2)  # `a` beside `x` or `b`
    chain = ir.until(graph, "c")
    assert activation_bytes(chain) == 16 * (8 + 2)
    assert activation_bytes(replace(chain, inputs=("b",), ops=ops[2:3])) == 16 * (2 + 2)
