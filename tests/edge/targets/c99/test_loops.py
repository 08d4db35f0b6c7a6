"""Calls that repeat as loops: the same calls, with the same arguments, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge.export import int8_graph, save_c99
from edge.targets.c99.loops import ARENA, Body, CallText, body_of
from tests.edge.recurrent_models import CHANNELS, Recurrent


def call(function: str, *arguments: str | int) -> CallText:
    """Return a call; numbers are places in the arena, and `&p...` which step is taken."""
    texts = tuple(f"arena + {each}" if isinstance(each, int) else each for each in arguments)
    kinds = tuple(
        ARENA if isinstance(each, int) else "ek_places" if each.startswith("&p") else ""
        for each in arguments
    )
    return CallText(function, texts, kinds, "m")


def written(lines: list[CallText]) -> list[str]:
    return [line.text("").partition(";")[0] for line in lines]


def run(body: Body) -> list[str]:
    """Return the calls that a body makes, by going through its loops."""
    tables, found = "".join(body.tables), list[str]()
    inner, rounds = list[str](), 0
    for line in body.statements:
        if start := re.match(r"    for \(int i = 0; i < (\d+); i\+\+\) {", line):
            inner, rounds = [], int(start[1])
        elif line == "    }":
            found += [filled(each, number, tables) for number in range(rounds) for each in inner]
            rounds = 0
        elif not rounds:
            found.append(line)
        elif "const int32_t *at" not in line:
            inner.append(line)
    return [each.strip().partition(";")[0] for each in found]


def filled(line: str, number: int, tables: str) -> str:
    rows = re.findall(r"{([\d, ]+)}", tables)
    line = re.sub(r"at\[(\d+)\]", lambda found: rows[number].split(", ")[int(found[1])], line)

    def chosen(found: re.Match[str]) -> str:
        table = re.search(rf"{found[1]}\[\d+\] = {{([^}}]*)}}", tables)
        assert table is not None
        return [each.strip() for each in table[1].split(",")][number]

    return re.sub(r"(loop\d+_\d+)\[i\]", chosen, line)


def steps(count: int) -> list[CallText]:
    made = [call("load", "in", 0)]
    for step in range(count):
        made.append(call("take", f"&p{step}", 0, 8 + step))
        made.append(call("layer", "&w", 8 + step, 64 + step % 2))
        made.append(call("sum", "&s", 64 + step % 2, 64 + step % 2, 7))
    return [*made, call("store", 64, "out")]


def test_what_repeats_is_a_loop_of_the_same_calls() -> None:
    body = body_of(steps(20))
    assert len(body.statements) == 1 + 6 + 1
    assert run(body) == written(steps(20))


def test_few_calls_are_written_out() -> None:
    body = body_of(steps(9))
    assert not body.tables and len(body.statements) == 2 + 27


OTHERS = {
    "another layer": call("layer", "&other", 13, 65),
    "another kernel": call("conv", "&w", 13, 65),
    "a constant for a place": call("layer", "&w", 13, "&w"),
    "fewer arguments": call("layer", "&w", 13),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_in_more_than_places_is_in_no_loop(name: str) -> None:
    lines = steps(40)
    lines[17] = OTHERS[name]
    body = body_of(lines)
    assert "\n".join(body.statements).count("for (int i") == 1  # of what follows
    assert OTHERS[name].text("    ") in body.statements
    assert run(body) == written(lines)


def test_the_code_of_a_recurrent_layer_does_not_grow_with_its_steps(tmp_path: Path) -> None:
    lines = []
    for count in (16, 32):
        torch.manual_seed(0)
        model = Recurrent(nn.LSTM, batch_first=True).eval()
        x = np.random.default_rng(0).standard_normal((32, count, CHANNELS)).astype(np.float32)
        saved = save_c99(int8_graph(model, x), x, tmp_path / str(count), {}, "size")
        text = (saved.path / "model.c").read_text()
        lines.append(text[text.index("_invoke(") :].count("\n"))
        assert "for (int i = 0; i < " in text
    assert lines[0] == lines[1]
