"""The picture of a graph: every op and every line between two is there, and text stays text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from edge import graph_svg
from edge.quantize.to_int8 import quantize
from fedkit.cli.look import draw
from fedkit.core.errors import ConfigError
from fedkit.graph import from_torch, ir

SVG = "{http://www.w3.org/2000/svg}"


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return (x + self.second(self.second(x))).flatten(1)


def graph() -> ir.Graph:
    torch.manual_seed(0)
    floats = from_torch.lower(Skips().eval(), (2, 5, 5))
    inputs = np.random.default_rng(0).standard_normal((4, 2, 5, 5), np.float32)
    return quantize(floats, ir.to_graph_layout(inputs))


def test_every_op_and_every_line_is_drawn() -> None:
    found = graph()
    root = ElementTree.fromstring(graph_svg.picture(found))
    boxes = root.findall(f"{SVG}g")
    assert len(boxes) == len(found.ops) + len(found.inputs)
    kinds = [box.findall(f"{SVG}text")[0].text or "" for box in boxes]
    assert [kind.split()[0] for kind in kinds[1:]] == [op.kind for op in found.ops]
    lines = sum(found.tensors[a].data is None for op in found.ops for a in op.inputs)
    assert len(root.findall(f"{SVG}path")) == lines
    blue = [box.get("class") == "weights" for box in boxes[1:]]
    assert blue == [op.kind == "conv2d" for op in found.ops]


def test_no_box_lies_over_another_and_each_is_below_what_it_reads() -> None:
    found = graph()
    places = graph_svg._places(found)
    assert len(set(places.values())) == len(places)
    for op in found.ops:
        assert all(places[op.output][1] > places[a][1] for a in op.inputs if a in places)


@pytest.mark.parametrize("text", ["</text><script>alert(1)</script>", "\x1b[2J\0&\"'", "x" * 10**6])
def test_names_of_others_are_text(text: str) -> None:
    found = graph()
    ops = tuple(replace(op, source=text) for op in found.ops)
    content = graph_svg.picture(replace(found, ops=ops))
    root = ElementTree.fromstring(content)
    assert root.find(f".//{SVG}script") is None and len(content) < 20_000
    assert all(c.isprintable() or c == "\n" for c in content)


@pytest.mark.parametrize("name", ["x.png", "there.svg", "no/x.svg"])
def test_what_is_no_place_for_a_picture_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "there.svg").write_text("mine")
    with pytest.raises(ConfigError, match="--graph"):
        draw(tmp_path / "no-artifact.tflite", tmp_path / name)
    assert (tmp_path / "there.svg").read_text() == "mine"
