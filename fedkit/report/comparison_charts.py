"""The charts of a comparison: a line per method with the band of its seeds, and what differs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedkit.report.comparison import Result, means, namer
from fedkit.report.figures import (
    COLOURS,
    Chart,
    band,
    metric_axis,
    metric_title,
    new_figure,
    style,
    whole_ticks,
)
from fedkit.report.markup import label
from fedkit.report.run_steps import is_number
from fedkit.report.significance import Contrast, Setting, against_best
from fedkit.report.thin import spread
from fedkit.tasks.task import Metric

BAND = "from the least to the largest value over the seeds"
"""What bands are."""

_HEIGHT = 440
"""Of charts of lines, in pixels: their legends are long."""

_MOST_TASKS = 8
_MOST_LINES = 40
_MOST_DENSITIES = 8
_MOST_POINTS = 200
_MOST_COMPARED = 60

_Row = Mapping[str, Any]


def charts(result: Result) -> list[Chart]:
    """Return the charts of a comparison: those of a task first, then those of the next one."""
    rows = means(result)
    found: list[Chart] = []
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks[:_MOST_TASKS]:
        those = [row for row in rows if row["task"] == task]
        metric, where = Metric.of(those[0].get("metric")), _where(rows, task)
        found += [
            _chart(result, those, metric, f"versus density{where}", _DENSITY),
            _chart(result, those, metric, f"versus bytes of a device per round{where}", _BYTES),
            *_round_charts(result, task, metric, where),
            _differences(result, task, metric, where),
        ]
    if len(tasks) > _MOST_TASKS:
        note = f"Of {len(tasks):,} tasks, the first {_MOST_TASKS} are drawn."
        found[0] = replace(found[0], note=f"{found[0].note} {note}")
    return found


def _where(rows: Sequence[_Row], task: str) -> str:
    return f", {task}" if len({row["task"] for row in rows}) > 1 else ""


# Means ---------------------------------------------------------------------------------------

_Axis = tuple[Callable[[_Row], float], Mapping[str, Any]]

_DENSITY: _Axis = (
    lambda row: row["density"],
    {
        "title": {"text": "density, kept share of the prunable weights"},
        "tickformat": ".3~%",
        "dtick": "D2",
    },
)
_BYTES: _Axis = (
    lambda row: row["bytes_device_round"],
    {"title": {"text": "bytes of one device in one round, both ways"}, "tickformat": "~s"},
)


def _chart(result: Result, rows: Sequence[_Row], metric: Metric, versus: str, axis: _Axis) -> Chart:
    x_of, look = axis
    lines, count = _shown_lines(result, sorted(rows, key=x_of))
    traces = [
        trace
        for number, (name, own) in enumerate(lines.items())
        for trace in _mean_line(number, name, own, x_of, metric)
    ]
    figure = new_figure(traces, f"{metric.name}, mean", _HEIGHT)
    metric_axis(figure, metric)
    figure["layout"]["xaxis"] |= {"type": "log", **look}
    return Chart(metric_title(metric, versus), figure, _note(len(lines), count))


def _shown_lines(result: Result, rows: Sequence[_Row]) -> tuple[dict[str, list[_Row]], int]:
    """Return the rows of each line by its name, of many lines some, and how many there are."""
    name_of, lines = namer(result), dict[str, list[_Row]]()
    for row in rows:
        lines.setdefault(name_of(row), []).append(row)
    names = sorted(lines)
    shown = [names[each] for each in spread(len(names), _MOST_LINES)]
    return {name: lines[name] for name in shown}, len(names)


def _mean_line(
    number: int, name: str, rows: Sequence[_Row], x_of: Callable[[_Row], float], metric: Metric
) -> list[dict[str, Any]]:
    """Return a line and its band; a single place has a bar in place of the band."""
    xs, mean = [x_of(row) for row in rows], [row["accuracy"] for row in rows]
    low, high = [row["accuracy_least"] for row in rows], [row["accuracy_most"] for row in rows]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(name),
        "legendgroup": label(name),
        "x": xs,
        "y": mean,
        "text": [_seeds(row, metric) for row in rows],
        "line": style(number),
    }
    if len(rows) > 1:
        return [band(number, name, xs, low, high), line]
    up, down = [high[0] - mean[0]], [mean[0] - low[0]]
    return [line | {"error_y": {"array": up, "arrayminus": down, "symmetric": False}}]


def _seeds(row: _Row, metric: Metric) -> str:
    least, most = metric.text(row["accuracy_least"]), metric.text(row["accuracy_most"])
    return f"{least} to {most}, {row['seeds']} seed{'s' * (row['seeds'] != 1)}"


def _note(shown: int, count: int) -> str:
    part = f" Of {count:,} lines, {shown:,} are drawn." if shown < count else ""
    return f"Lines are means over the seeds. Bands go {BAND}.{part}"


# Over rounds -----------------------------------------------------------------------------------


def _round_charts(result: Result, task: str, metric: Metric, where: str) -> list[Chart]:
    """Return a chart per density of what was measured after rounds, where that was more than once.

    Lines of methods that run at one density alone, as dense does, are in each.
    """
    rows = [row for row in result["rows"] if row["task"] == task and len(_measured(result, row))]
    many = sorted({row["density"] for row in rows} - {1.0}) or [1.0]
    densities = [many[each] for each in spread(len(many), _MOST_DENSITIES)]
    if not rows:
        return []
    found = []
    for density in densities:
        those = [row for row in rows if row["density"] in (density, 1.0)]
        found.append(_round_chart(those, result, density, metric, where))
    return found


def _measured(result: Result, row: _Row) -> list[int]:
    """Return after which rounds a cell was measured; none where it was once, or nobody knows."""
    values, grid = row.get("accuracies"), result["grid"]
    every = row.get("measure_every", (grid.get("run") or {}).get("measure_every", 1))
    if not isinstance(values, list) or not all(map(is_number, values)) or len(values) < 2:
        return []
    if not isinstance(every, int) or every < 1:
        return []
    last = row["rounds"]
    rounds = [*range(every, last + 1, every), *([last] if last % every else [])]
    return rounds if len(rounds) == len(values) else []


def _round_chart(
    rows: Sequence[_Row], result: Result, density: float, metric: Metric, where: str
) -> Chart:
    lines, count = _shown_lines(result, rows)
    traces = [
        trace
        for number, (name, cells) in enumerate(lines.items())
        for trace in _round_line(number, name, cells, _measured(result, cells[0]))
    ]
    figure = new_figure(traces, f"{metric.name}, mean", _HEIGHT)
    metric_axis(figure, metric)
    figure["layout"]["xaxis"] |= whole_ticks(max(row["rounds"] for row in rows))
    title = metric_title(metric, f"over rounds at density {density:.4g}{where}")
    return Chart(title, figure, _note(len(lines), count))


def _round_line(
    number: int, name: str, cells: Sequence[_Row], rounds: Sequence[int]
) -> list[dict[str, Any]]:
    same = [cell["accuracies"] for cell in cells if len(cell["accuracies"]) == len(rounds)]
    at = spread(len(rounds), _MOST_POINTS)
    values = [[each[place] for each in same] for place in at]
    xs = [rounds[place] for place in at]
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(at) <= 60 else "lines",
        "name": label(name),
        "legendgroup": label(name),
        "x": xs,
        "y": [statistics.fmean(each) for each in values],
        "line": style(number),
    }
    return [band(number, name, xs, [min(v) for v in values], [max(v) for v in values]), line]


# Differences -----------------------------------------------------------------------------------


def _differences(result: Result, task: str, metric: Metric, where: str) -> Chart:
    settings: dict[Setting, list[Contrast]] = {}
    for each in against_best(result):
        if each.setting[0] == task:
            settings.setdefault(each.setting, []).append(each)
    others = list(dict.fromkeys(each.other for found in settings.values() for each in found))
    shown = [others[each] for each in spread(len(others), _MOST_COMPARED)]
    places = {name: place for place, name in enumerate(shown)}
    traces = [
        _behind(number, setting, found, places, metric, len(settings))
        for number, (setting, found) in enumerate(settings.items())
    ]
    height = 160 + len(shown) * max(24, 12 * min(8, len(settings)))
    figure = new_figure(traces, "", height)
    metric_axis(figure, metric, "xaxis")
    figure["layout"]["xaxis"]["title"] = {"text": f"behind the best line, {metric.name}"}
    figure["layout"]["yaxis"] |= {
        "tickvals": list(places.values()),
        "ticktext": [label(name, 40) for name in places],
        "range": [len(places) - 0.5, -0.5],
    }
    note = "Bars are the intervals that hold the mean difference with 95 % confidence."
    if len(shown) < len(others):
        note += f" Of {len(others):,} lines, {len(shown):,} are drawn."
    return Chart(f"How far behind the best of each density{where}", figure, note)


def _behind(
    number: int,
    setting: Setting,
    found: Sequence[Contrast],
    places: Mapping[str, int],
    metric: Metric,
    settings: int,
) -> dict[str, Any]:
    drawn = [each for each in found if each.other in places]
    sign, colour = 1 if metric.higher_is_better else -1, COLOURS[number % len(COLOURS)]
    aside = 0.6 * ((number + 0.5) / settings - 0.5)  # one line's points of several densities
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(setting_name(setting, found[0].one)),
        "x": [sign * each.mean for each in drawn],
        "y": [places[each.other] + aside for each in drawn],
        "text": [f"{label(each.other)}: {each.verdict}" for each in drawn],
        "hovertemplate": "%{text}<br>%{x}<extra></extra>",
        "marker": {"color": colour, "size": 8},
        "error_x": {"array": [_half(each) for each in drawn], "color": colour, "width": 3},
    }


def _half(each: Contrast) -> float | None:
    return None if each.low is None else each.mean - each.low


def setting_name(setting: Setting, best: str) -> str:
    """Return what the comparisons of a setting are called."""
    _, model, alpha, density = setting
    return f"density {density:.4g}, behind {best} ({model}, alpha {alpha:g})"
