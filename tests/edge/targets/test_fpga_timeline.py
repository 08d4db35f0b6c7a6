"""The schedule of the FPGA engine: its sum is what the simulation takes, and its picture is it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge import inspect
from edge.artifact import Artifact
from edge.export import int8_graph, save_fpga, save_tflite
from edge.targets.fpga.microcode import compile_graph
from edge.targets.fpga.step_times import StepTime, step_times
from edge.targets.fpga.timeline import picture
from fedkit.core.errors import ExportError
from fedkit.graph import ir
from tests.edge.models import images, small

SVG = "{http://www.w3.org/2000/svg}"


def bars(content: str) -> dict[str, list[tuple[float, float]]]:
    """What a line is called -> where its parts begin, and how wide they are."""
    found = {}
    for group in ElementTree.fromstring(content).findall(f"{SVG}g"):
        parts = group.findall(f"{SVG}rect")
        name = group.findall(f"{SVG}text")[0].text or ""
        found[name] = [(float(p.get("x", "")), float(p.get("width", ""))) for p in parts]
    return found


def folder(tmp_path: Path, lanes: int = 4) -> tuple[ir.Graph, Artifact]:
    inputs = images(3, 4, 5)
    graph = int8_graph(small(), inputs)
    return graph, save_fpga(graph, inputs, tmp_path / "m", {}, lanes=lanes)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("lanes", [1, 4])
def test_the_schedule_has_every_cycle_of_the_manifest(
    lanes: int, keep: bool, tmp_path: Path
) -> None:
    graph, saved = folder(tmp_path, lanes)
    times = step_times(compile_graph(graph, lanes, keep), lanes)
    for one, following in itertools.pairwise(times):
        assert one.start + one.cycles == following.start
    total = times[-1].start + times[-1].cycles
    assert (total == saved.details["cycles_per_inference"]) is not keep
    assert {each.run for each in times} >= {"take", "filters", "give"}
    for each in times:
        assert (each.used is None) == (each.turns == 0)
        assert each.used is None or 0 < each.used <= 1


def test_a_bar_is_as_long_as_its_cycles(tmp_path: Path) -> None:
    graph, saved = folder(tmp_path)
    content = inspect.timeline(saved, graph)
    total = saved.details["cycles_per_inference"]
    assert f"{total:,} cycles" in content
    drawn = bars(content)
    times = step_times(compile_graph(graph, 4), 4)
    assert len(drawn) == len({each.source for each in times})
    pixels = sum(width for parts in drawn.values() for _, width in parts) / total
    begin = min(x for parts in drawn.values() for x, _ in parts)
    filters = [each for each in times if each.run == "filters"]
    assert len(filters) >= 3
    for each in filters:
        parts = drawn[f"filters {each.source}"]
        assert parts[0][0] - begin == pytest.approx(each.start * pixels, abs=0.1)
        expected = (each.setting, each.loading, each.working, each.draining)
        assert [width / pixels for _, width in parts] == pytest.approx(expected, abs=0.1 / pixels)


@pytest.mark.parametrize("text", ["</text><script>alert(1)</script>", "\x1b[2J\0&\"'", "x" * 10**6])
def test_names_of_others_are_text(text: str) -> None:
    content = picture([replace(StepTime("take", "", 0, 3, 0, 9, 0), source=text)], 4)
    root = ElementTree.fromstring(content)
    assert root.find(f".//{SVG}script") is None and len(content) < 5000
    assert all(c.isprintable() or c == "\n" for c in content)


def test_what_a_processor_runs_has_no_schedule(tmp_path: Path) -> None:
    inputs = images(3, 4, 5)
    graph = int8_graph(small(), inputs)
    saved = save_tflite(graph, inputs, tmp_path / "m.tflite", {})
    with pytest.raises(ExportError, match="made for tflite, where no schedule is known"):
        inspect.timeline(saved, graph)
