"""Attention as one call of C: where it is found, and that its integers are the graph's."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge.export import save_c99
from edge.targets.c99 import attention, calls
from edge.targets.c99.attention import attention_scratch, attentions
from edge.targets.c99.calls import Goal
from fedkit.graph import ir
from tests.edge.in_runtimes import integers_of
from tests.edge.models import Images
from tests.edge.targets.c99.library import X86, need_avx2
from tests.edge.targets.compiled import PLAIN, assert_same_integers
from tests.sets import slow, slow_but
from tests.tokens import ATTENTION, made


class Mixed(nn.Module):
    """Attention of each step to every `stride`-th mean of steps.

    Args:
        heads: So many.
        size: Of queries and keys in a head.
        value_size: Of values.
        stride: Steps of a key; 0: each step has one, and sees none of those behind it.
    """

    def __init__(self, heads: int, size: int, value_size: int, stride: int = 1) -> None:
        super().__init__()
        self.heads, self.stride = heads, stride
        self.query, self.key = (nn.Linear(5, heads * size) for _ in range(2))
        self.value, self.last = nn.Linear(5, heads * value_size), nn.Linear(heads * value_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, 3, steps] of [n, 5, steps]."""
        few = functional.avg_pool1d(x, self.stride) if self.stride > 1 else x
        query, key, value = (
            layer(of.transpose(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, of in ((self.query, x), (self.key, few), (self.value, few))
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=self.stride == 0
        )
        out: Tensor = self.last(mixed.transpose(1, 2).flatten(2)).transpose(1, 2)
        return out


def graph_of(steps: int, heads: int, size: int, value_size: int, stride: int = 1) -> ir.Graph:
    """Return the int8 graph of such a model, in which little weights give scores some spread."""
    torch.manual_seed(steps)
    model = Mixed(heads, size, value_size, stride).eval()
    with torch.no_grad():
        for layer in (model.query, model.key):
            layer.weight.mul_(4)
    return integers_of(model, (5, steps))


SIZES = (
    *((1, 1, 1, 1), (15, 1, 3, 2), (16, 2, 4, 4), (17, 3, 5, 7), (33, 2, 8, 1), (50, 4, 12, 12)),
    *((67, 1, 2, 9), (100, 2, 7, 6)),
)
"""Steps, heads, channels of a head's queries and of its values."""


def series(steps: int) -> Images:
    return np.random.default_rng(steps).standard_normal((3, 5, steps)).astype(np.float32)


def calls_of(folder: Path) -> list[str]:
    return re.findall(r"^    ek_(\w+)\(", (folder / "model.c").read_text(), re.MULTILINE)


@pytest.mark.parametrize("stride", [0, 1, 3])
@pytest.mark.parametrize("number", slow_but((2, 3, 4), range(len(SIZES))))
@pytest.mark.parametrize(
    "flags",
    [
        "-O0 -march=native",
        " ".join(PLAIN),
        slow("-O3 -march=native -fsanitize=address,undefined"),
        slow("-O2 -mavx2"),
        slow("-O3 -mavx2 -mfma"),
        # AVX-512 spelled out.
        " ".join(["-O1", *X86["avx512"]]),
    ],
)
def test_integers_are_the_graphs(flags: str, number: int, stride: int, tmp_path: Path) -> None:
    need_avx2()
    steps, heads, size, value_size = SIZES[number]
    if steps < stride:
        pytest.skip("a window of more steps than there are")
    graph = graph_of(steps, heads, size, value_size, stride)
    for goal in ("speed", "size"):
        folder = tmp_path / goal
        if "sanitize" in flags:
            check_sanitized(graph, series(steps), folder, goal, flags)
        else:
            assert_same_integers(graph, series(steps), folder, goal, *flags.split())
        assert ("attend" if goal == "speed" else "attend_small") in calls_of(folder)
        assert not {"matmul", "softmax", "transpose", "sum_of"} & set(calls_of(folder))


def check_sanitized(graph: ir.Graph, inputs: Images, folder: Path, goal: Goal, flags: str) -> None:
    """Nothing is read or written beyond the arena, whose scratch lies between tensors."""
    save_c99(graph, inputs, folder, {}, goal)
    given = f"CFLAGS={flags} -fno-sanitize-recover=all"
    done = subprocess.run(
        ["make", "-C", str(folder), "-s", "test", given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^0 of \d+ outputs differ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("kind", ATTENTION)
def test_what_people_write_is_one_call(kind: str) -> None:
    graph = integers_of(*made(kind))
    softmaxes = [op for op in graph.ops if op.kind == "softmax"]
    found = attentions(graph).values()
    assert [one.softmax for one in found] == softmaxes


def test_what_something_else_reads_stays() -> None:
    graph = graph_of(16, 2, 4, 4)
    (one,) = attentions(graph).values()
    for name in {op.output for op in one.ops[:-1]}:
        shown = ir.Graph(graph.tensors, graph.ops, graph.inputs, (*graph.outputs, name))
        assert attentions(shown) == {}, name


def test_heads_in_another_order_are_no_attention() -> None:
    """Channels of a head that do not lie one behind the other are moved by calls of their own."""

    class Interleaved(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            query, key, value = (
                layer(x).unflatten(-1, (-1, self.heads)).permute(0, 3, 1, 2)
                for layer in (self.query, self.key, self.value)
            )
            mixed = functional.scaled_dot_product_attention(query, key, value)
            out: Tensor = self.last(mixed.permute(0, 2, 3, 1).flatten(2)).transpose(1, 2)
            return out

    torch.manual_seed(0)
    assert attentions(integers_of(Interleaved(2, 4, 4).eval(), (5, 16))) == {}


def test_the_scratch_is_what_the_header_says(tmp_path: Path) -> None:
    cases = [
        (size, other, keys) for size in (1, 2, 7, 64) for other in (1, 5) for keys in (1, 4, 197)
    ]
    numbers = ", ".join(f"EK_ATTENTION_SCRATCH({a}, {b}, {c})" for a, b, c in cases)
    kernels = Path(attention.__file__).with_name("kernels")
    source = tmp_path / "sizes.c"
    source.write_text(
        f'#include <stdio.h>\n#include "ek_attention.h"\nint main(void) {{\n'
        f"int n[] = {{{numbers}}};\n"
        f'for (int i = 0; i < {len(cases)}; i++) printf("%d\\n", n[i]);\nreturn 0; }}\n'
    )
    program = tmp_path / "sizes"
    subprocess.run(["gcc", f"-I{kernels}", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    assert list(map(int, printed.split())) == [attention_scratch(*case) for case in cases]


def test_it_takes_less_memory_than_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(100, 2, 8, 8)

    def arena() -> int:
        found = calls.compile_graph(graph, "size").buffers
        return sum(buffer.size for buffer in found.values())

    fused = arena()
    monkeypatch.setattr(calls, "attentions", lambda graph: {})
    assert fused < arena() / 3
