"""The schedule of the FPGA engine as a picture: a line per op, cycles to the right."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from edge import artifact, svg
from edge.targets.fpga.emitter import MOST_LANES
from edge.targets.fpga.microcode import compile_graph
from edge.targets.fpga.step_times import StepTime, step_times
from fedkit.graph import ir

_LEFT, _WIDTH, _ROW, _TOP = 260, 640, 22, 70
"""Pixels: of names, of all cycles, of a line, and above the first one."""

_KINDS = {
    "setting": "registers are set",
    "loading": "filters are loaded",
    "working": "lanes work",
    "draining": "last results drain",
}
"""What an engine does in a step, each in a colour of Okabe and Ito's."""

_STYLE = """
.setting { fill: #CC79A7; } .loading { fill: #E69F00; } .working { fill: #0072B2; }
.draining { fill: #56B4E9; }
.name { text-anchor: end; }
line { stroke: #999; stroke-opacity: 0.4; }
"""


def timeline(graph: ir.Graph, found: artifact.Artifact) -> str:
    """Return the schedule of a Verilog artifact as SVG.

    Args:
        graph: The int8 graph that it was made from.
        found: The artifact, which says how many lanes there are.
    """
    lanes = found.count("lanes", MOST_LANES)
    keep = len(found.detail("given", list)) > 1
    return picture(step_times(compile_graph(graph, lanes, keep), lanes), lanes)


def picture(times: Sequence[StepTime], lanes: int) -> str:
    """Return a schedule as SVG: what happens in an op's steps, and when.

    A bar's parts are as long as what they stand for takes in all of the op's steps, not in the
    order of single cycles: filters are loaded, work and drain in turns, which its title counts.

    Args:
        times: In order.
        lanes: Of the engine.
    """
    rows = [list(steps) for _, steps in itertools.groupby(times, lambda each: each.source)]
    total = times[-1].start + times[-1].cycles
    height = _TOP + _ROW * len(rows) + 30
    bottom = _TOP + _ROW * len(rows) + 4
    heading = f"{total:,} cycles of one inference, {lanes} lanes; one thing at a time"
    parts = itertools.chain(
        [f'<text x="12" y="20">{heading}</text>\n'],
        _legend(),
        _axis(total, bottom),
        *(_row(steps, total, _TOP + _ROW * number) for number, steps in enumerate(rows)),
    )
    return svg.document(_LEFT + _WIDTH + 120, height, heading, _STYLE, parts)


def _legend() -> Iterator[str]:
    for number, (kind, told) in enumerate(_KINDS.items()):
        x = 12 + 170 * number
        yield (
            f'<rect class="{kind}" x="{x}" y="34" width="12" height="12"/>'
            f'<text class="small" x="{x + 18}" y="44">{told}</text>\n'
        )


def _axis(total: int, bottom: int) -> Iterator[str]:
    for quarter in range(5):
        x = _LEFT + _WIDTH * quarter // 4
        yield (
            f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{bottom}"/>'
            f'<text class="small" x="{x}" y="{bottom + 14}">{total * quarter // 4:,}</text>\n'
        )


def _row(steps: Sequence[StepTime], total: int, y: int) -> Iterator[str]:
    first = steps[0]
    cycles = sum(step.cycles for step in steps)
    name = f"{first.run} {first.source}".strip()
    scale = _WIDTH / total
    x = _LEFT + first.start * scale
    yield f"<g><title>{_about(steps, cycles, total)}</title>"
    yield f'<text class="small name" x="{_LEFT - 8}" y="{y + 12}">{svg.text(name, 40)}</text>'
    for kind in _KINDS:
        width = sum(getattr(step, kind) for step in steps) * scale
        yield f'<rect class="{kind}" x="{x:.2f}" y="{y}" width="{width:.2f}" height="16"/>'
        x += width
    yield f'<text class="small" x="{x + 4:.2f}" y="{y + 12}">{cycles:,}</text></g>\n'


def _about(steps: Sequence[StepTime], cycles: int, total: int) -> str:
    """Say in numbers what a bar shows."""
    parts = [
        f"{steps[0].run} {steps[0].source}".strip(),
        f"cycles {steps[0].start:,} to {steps[0].start + cycles:,}, {cycles / total:.1%} of all",
        *(f"{told}: {sum(getattr(s, kind) for s in steps):,}" for kind, told in _KINDS.items()),
    ]
    if turns := sum(step.turns for step in steps):
        working = sum(step.working for step in steps)
        used = sum(step.working * (step.used or 0) for step in steps) / max(1, working)
        parts.append(f"{turns} loads of a filter per lane; lanes are {used:.0%} used")
    return svg.text("; ".join(parts), 400)
