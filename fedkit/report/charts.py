"""The charts of a report of runs: over rounds, of layers and of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from fedkit.report.artifact_tables import cost_charts
from fedkit.report.device_charts import answer_charts, participation_charts, partition_charts
from fedkit.report.figures import (
    MOST_POINTS,
    Chart,
    Curve,
    band,
    density_axis,
    line_chart,
    metric_axis,
    metric_title,
    two_by_two,
)
from fedkit.report.layer_charts import layer_charts
from fedkit.report.reading import Named, Run
from fedkit.report.run_steps import Step, counted, is_number
from fedkit.report.thin import spread


def charts(runs: Sequence[Run], names: Sequence[str]) -> list[Chart]:
    """Return the charts of some runs, laid over each other; names tell their lines apart."""
    told = list(zip(runs, names, strict=True))
    return [
        *_metric_charts(told),
        *_own_data_charts(told),
        line_chart("Loss over rounds", "loss", [_line(run, name, "loss") for run, name in told]),
        _bytes_chart(told),
        line_chart("Seconds over rounds", "seconds", [_line(r, n, "seconds") for r, n in told]),
        _density_chart(told),
        *layer_charts(told),
        *partition_charts(told),
        *participation_charts(told),
        *answer_charts(told),
        *cost_charts(told),
    ]


def _metric_charts(told: Named) -> list[Chart]:
    """Return a chart for each metric that runs have: values of two metrics share no axis."""
    found = []
    for name in dict.fromkeys(run.metric.name for run, _ in told):
        those = [(run, each) for run, each in told if run.metric.name == name]
        metric, lines = those[0][0].metric, [_line(run, each, "accuracy") for run, each in those]
        found.append(line_chart(metric_title(metric, "over rounds"), name, lines))
        metric_axis(found[-1].figure, metric)
    return found


def _own_data_charts(told: Named) -> list[Chart]:
    """Return a chart of what devices measured themselves, if any did: how it is spread."""
    those = [(run, name) for run, name in told if any("devices_mean" in s for s in run.steps)]
    if not those:
        return []
    lines = [
        Curve.of(f"{name}, {what}", *_measured(run, key))
        for run, name in those
        for what, key in (("mean", "devices_mean"), ("worst tenth", "devices_worst"))
    ]
    what = ", ".join(dict.fromkeys(run.metric.name for run, _ in those))
    chart = line_chart("Spread over devices, on their own data", what, lines)
    two_by_two(chart)
    bands = [each for n, (run, name) in enumerate(those) for each in _spread(n, run, name)]
    chart.figure["data"] = bands + chart.figure["data"]
    metric_axis(chart.figure, those[0][0].metric)
    note = "The darker band holds the middle half of the devices, the lighter one all of them."
    return [replace(chart, note=f"{note if bands else ''} {chart.note}".strip())]


_BANDS = (("devices_least", "devices_most"), ("devices_lower", "devices_upper"))


def _spread(number: int, run: Run, name: str) -> list[dict[str, Any]]:
    """Return the bands of a run that belong to the line of its mean."""
    found = []
    for low, high in _BANDS:
        steps, values = _measured(run, low)
        places = spread(len(steps), MOST_POINTS // 4)
        xs = [steps[each]["round"] for each in places]
        tops = [_number(steps[each], high) for each in places]
        found.append(band(number, f"{name}, mean", xs, [values[each] for each in places], tops))
    return [each for each in found if each["x"]]


def _measured(run: Run, key: str) -> tuple[list[Step], list[float | None]]:
    """Return the steps in which devices measured, and a value of each."""
    steps = [step for step in run.steps if key in step]
    return steps, [_number(step, key) for step in steps]


def _bytes_chart(told: Named) -> Chart:
    lines = [line for run, name in told for line in _bytes_lines(run, name)]
    chart = line_chart("Bytes sent so far, all devices", "bytes", lines)
    two_by_two(chart)
    return chart


def _bytes_lines(run: Run, name: str) -> list[Curve]:
    key = counted(run.steps)
    sums = {
        way: list(accumulate(step.get(f"{key}_{way}", 0) for step in run.steps))
        for way in ("down", "up")
    }
    return [Curve.of(f"{name}, {way}", run.steps, values) for way, values in sums.items()]


def _density_chart(told: Named) -> Chart:
    lines = [_line(run, name, "density") for run, name in told]
    chart = line_chart("Density over rounds", "kept share of the prunable weights", lines)
    chart.figure["layout"]["yaxis"] |= {"tickformat": ".3~%"} | density_axis(lines)
    return chart


def _line(run: Run, name: str, key: str) -> Curve:
    return Curve.of(name, run.steps, [_number(step, key) for step in run.steps])


def _number(step: Step, key: str) -> float | None:
    value = step.get(key)
    return value if is_number(value) else None
