"""Graphs survive their file; damaged files are refused, whatever the damage."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from edge.define.interpret_int8 import evaluate_int8
from edge.export import int8_graph
from edge.graph_file import from_bytes, load_graph, save_graph, to_bytes
from edge.passes import optimise
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.from_torch import lower
from fedkit.graph.interpret import evaluate
from fedkit.graph.ops.registry import SPECS
from fedkit.graph.spec import Spec
from fedkit.graph.verify import verify
from fedkit.nn.zoo import build_model
from tests.graph.planted_ops import Times, multiplied, times

SHAPE = (1, 8, 8)
INPUTS = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> ir.Graph:
    return int8_graph(build_model("resnet8", SHAPE, 10).eval(), INPUTS)


def test_an_int8_graph_computes_the_same_after_its_file(graph: ir.Graph, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "model.graph")
    again = load_graph(tmp_path / "model.graph")
    codes = np.random.default_rng(1).integers(-128, 128, (6, 8, 8, 1)).astype(np.int8)
    np.testing.assert_array_equal(evaluate_int8(again, codes), evaluate_int8(graph, codes))
    assert again.ops == graph.ops
    assert [t.quantization for t in again.tensors.values()] == [
        t.quantization for t in graph.tensors.values()
    ]
    assert to_bytes(again) == to_bytes(graph)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.graph"]


def test_a_float_graph_computes_the_same_after_its_file(tmp_path: Path) -> None:
    graph = optimise(lower(build_model("ds-cnn", (1, 20, 20), 10).eval(), (1, 20, 20)))
    save_graph(graph, tmp_path / "model.graph")
    inputs = np.random.default_rng(1).standard_normal((3, 20, 20, 1)).astype(np.float32)
    again = load_graph(tmp_path / "model.graph")
    np.testing.assert_array_equal(evaluate(again, inputs), evaluate(graph, inputs))


def header(data: bytes) -> dict[str, Any]:
    end = 8 + int.from_bytes(data[:8], "little")
    content: dict[str, Any] = json.loads(json.loads(data[8:end])["__metadata__"]["graph"])
    return content


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) of a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    3,
    2**40,
    0.5,
    float("nan"),
    1e300,
    "",
    "x",
    [],
    [1],
    [1, 1, 1, 1],
    {},
    True,
)


def mutate(content: dict[str, Any], choose: random.Random) -> None:
    """Change one to three places: another value, one from elsewhere, or none at all."""
    for _ in range(choose.randint(1, 3)):
        everywhere = list(places(content))
        container, key = choose.choice(everywhere)
        other, elsewhere = choose.choice(everywhere)
        kind = choose.randrange(4)
        if kind == 0:
            container[key] = copy.deepcopy(choose.choice(ODD))
        elif kind == 1:
            container[key] = copy.deepcopy(other[elsewhere])
        elif kind == 2 and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            del container[key]


def assert_refused_or_sound(data: bytes) -> bool:
    """Return whether the data was refused; if not, it must be a graph that runs."""
    try:
        graph = from_bytes(data)
    except ExportError as error:
        assert str(error)
        return True
    verify(graph)
    x = graph.tensors[graph.inputs[0]]
    if x.dtype == "int8" and np.prod(x.shape) < 2**16:
        evaluate_int8(graph, np.zeros((1, *x.shape[1:]), np.int8))
    return False


def check_mutants(graph: ir.Graph, seeds: range) -> None:
    data = from_safetensors(to_bytes(graph))
    clean, refused = header(to_bytes(graph)), 0
    for seed in seeds:
        content = copy.deepcopy(clean)
        mutate(content, random.Random(seed))
        refused += assert_refused_or_sound(to_safetensors(data, {"graph": json.dumps(content)}))
    assert refused > 0.8 * len(seeds)


def test_mutated_graphs_are_refused_or_sound(graph: ir.Graph) -> None:
    check_mutants(graph, range(60))


@pytest.mark.slow
def test_many_mutated_graphs_are_refused_or_sound(graph: ir.Graph) -> None:
    check_mutants(graph, range(60, 11_000))


def test_files_with_other_bytes_are_refused_or_sound(graph: ir.Graph) -> None:
    clean, choose = to_bytes(graph), random.Random(0)
    for length in (0, 7, 8, 9, 100, len(clean) // 2, len(clean) - 1):
        assert assert_refused_or_sound(clean[:length])
    for _ in range(200):
        data = bytearray(clean)
        for _ in range(choose.randint(1, 4)):
            data[choose.randrange(4000 if choose.random() < 0.8 else len(data))] ^= choose.choice(
                (1, 2, 16, 128, 255)
            )
        assert_refused_or_sound(bytes(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=6), "version 6, this program reads 1 to 5"),
        (lambda c: c["ops"][0].update(attributes={"axis": 1}), r"conv2d has attributes \['axis'\]"),
        (lambda c: c["ops"][0].update(kind="lstm"), "ops.0.kind"),
        (lambda c: c["tensors"][0].update(name=c["tensors"][1]["name"]), "the same name"),
        (lambda c: c["tensors"][0].update(shape=[1, 0]), "tensors.0.shape.1"),
        (lambda c: c["ops"][0]["window"].update(stride=[0, 1]), "ops.0.window.stride.0"),
        (lambda c: c.update(more=1), "more: Unexpected"),
    ],
)
def test_what_is_wrong_is_named(graph: ir.Graph, change: Any, message: str, tmp_path: Path) -> None:
    content = header(to_bytes(graph))
    change(content)
    data = from_safetensors(to_bytes(graph))
    path = tmp_path / "model.graph"
    path.write_bytes(to_safetensors(data, {"graph": json.dumps(content)}))
    with pytest.raises(ExportError, match=message) as error:
        load_graph(path)
    assert str(path) in str(error.value)


def attributed(monkeypatch: pytest.MonkeyPatch, attributes: Times) -> ir.Graph:
    """Return a graph of an op with attributes, of a kind that exists until the test is over."""
    example = times(attributes)
    monkeypatch.setitem(
        SPECS, "times", Spec("times", "product", multiplied, example, attributes=Times)
    )
    return example(np.random.default_rng(0))


def test_attributes_are_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = attributed(monkeypatch, Times(0.1, (1, 3)))
    assert header(to_bytes(graph))["version"] == 3
    assert from_bytes(to_bytes(graph)).ops == graph.ops


def test_files_without_attributes_are_of_version_2(graph: ir.Graph) -> None:
    content = header(to_bytes(graph))
    assert content["version"] == 2 and all("attributes" not in op for op in content["ops"])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"factor": 1.0}, "has attributes .*not its own"),
        ({"factor": 1.0, "axes": [], "more": 1}, "has attributes .*not its own"),
        ({"factor": "1", "axes": []}, "op times, factor: Input should be a valid number"),
        ({"factor": 1.0, "axes": [0.5]}, "op times, axes: Input should be a valid integer"),
        (None, "must have attributes of the class Times"),
    ],
)
def test_wrong_attributes_are_named(
    attributes: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = header(to_bytes(attributed(monkeypatch, Times(0.1))))
    content["ops"][0]["attributes"] = attributes
    with pytest.raises(ExportError, match=message):
        from_bytes(to_safetensors({}, {"graph": json.dumps(content)}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read: No such file"):
        load_graph(tmp_path / "none.graph")
