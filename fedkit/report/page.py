"""A report: one HTML page about some runs, which opens from a disk and asks no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkit.core.errors import ConfigError
from fedkit.core.version import __version__
from fedkit.report import plotly_library, sections
from fedkit.report.artifact_tables import artifacts
from fedkit.report.charts import charts
from fedkit.report.downloads import File, downloads
from fedkit.report.figures import Chart
from fedkit.report.markup import label, plain, safe
from fedkit.report.number_tables import files, numbers
from fedkit.report.reading import Look, Run, look_at_none, read_run

MOST_RUNS = 100
"""Of a report; lines of more could not be told apart."""

_MOST_BYTES = 4_900_000
"""Of a report, as far as the files in it decide."""

MARK = '<meta name="generator" content="fedkit report">'
"""Stands near the beginning of every report."""

PAUSE = 1000
"""Milliseconds between two questions of a live page."""

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load for the page: nothing that is not in it."""

_LIVE = "; connect-src 'self'"
"""What a page may ask besides that is served: what is new."""

_NO_CHARTS = "The charts could not be drawn. They need JavaScript, in a browser of 2023 or later."


@dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        title: Of the page.
        body: HTML, with an empty element for each chart.
        figures: Identifier of the element -> traces and layout of its chart.
    """

    title: str
    body: str
    figures: Mapping[str, Mapping[str, Any]]


def report(paths: Sequence[Path], look: Look = look_at_none) -> str:
    """Return a page about the runs in some folders.

    Args:
        paths: The folders.
        look: Tells the layers of an artifact.

    Raises:
        ConfigError: plotly is not installed, or there are too many runs.
        CheckpointError: A folder is no run folder.
    """
    plotly_library.require()
    paths = list({path.resolve(): path for path in paths}.values())
    if not 1 <= len(paths) <= MOST_RUNS:
        raise ConfigError(f"a report is of 1 to {MOST_RUNS} runs, and these are {len(paths)}")
    return page(content([read_run(path, look) for path in paths]))


def content(runs: Sequence[Run]) -> Content:
    """Return what a page shows of runs that were read."""
    names = names_of([run.path for run in runs])
    told = list(zip(runs, names, strict=True))
    title = f"Report of {names[0]}" if len(runs) == 1 else f"Report of {len(runs)} runs"
    drawn = Drawn.of(charts(runs, names))
    shown = (
        sections.overview(told)
        + sections.missing([(name, what) for run, name in told for what in run.missing])
        + sections.section("Charts", drawn.html)
        + (sections.section("Artifacts", made) if (made := artifacts(told)) else "")
        + sections.section("Numbers", numbers(told))
        + sections.origin(told)
    )
    return with_files(title, shown, drawn, files(told))


@dataclass(frozen=True)
class Drawn:
    """Charts on their way into a page.

    Attributes:
        html: Their headings and notes, with an empty element for each.
        figures: Identifier of the element -> traces and layout.
    """

    html: str
    figures: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, charts: Iterable[Chart]) -> Drawn:
        """Take those charts that have anything to show, and of each the traces that do."""
        shown = [chart for chart in map(_with_values, charts) if chart.figure["data"]]
        figures = {_name(number): chart.figure for number, chart in enumerate(shown)}
        return cls("".join(map(_chart, range(len(shown)), shown)), figures)


def with_files(title: str, shown: str, drawn: Drawn, files: Sequence[File]) -> Content:
    """Return a page's content: what is shown, then files of all numbers as far as there is room."""
    taken = (plotly_library.packed(), to_json(drawn.figures), shown.encode())
    links = downloads(files, _MOST_BYTES - sum(map(len, taken)))
    return Content(title, shown + sections.section("Files with all numbers", links), drawn.figures)


def page(shown: Content, live: bool = False) -> str:
    """Return a whole page; plotly must be installed.

    Args:
        shown: What is in it.
        live: It asks the server that it comes from for what is new.
    """
    policy = _POLICY + (_LIVE if live else "")
    note = f'<p id="live" data-pause="{PAUSE}" class="note" role="status"></p>\n' if live else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{MARK}\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{safe(shown.title)}</title>\n<style>\n{_file('page.css')}</style>\n"
        f"</head>\n<body>\n<main>\n<h1>{safe(shown.title)}</h1>\n{note}"
        f'<p id="no-charts" class="note">{_NO_CHARTS}</p>\n'
        f'<div id="content">\n{shown.body}</div>\n</main>\n'
        f'<footer><p class="note">Written by fedkit {safe(__version__)}.</p></footer>\n'
        f'<script id="figures" type="application/json">{to_json(shown.figures)}</script>\n'
        f'<script id="plotly" type="application/gzip">{plotly_library.packed()}</script>\n'
        f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def to_json(value: Mapping[str, Any]) -> str:
    """Return JSON that may stand in a script element: without `<`, and with finite numbers."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each run: that of its folder, or the path where two are the same."""
    short = [plain(path.resolve().name, 60) for path in paths]
    return [
        name if short.count(name) == 1 else f"{plain(path, 60)} ({number})"
        for number, (name, path) in enumerate(zip(short, paths, strict=True), 1)
    ]


def _with_values(chart: Chart) -> Chart:
    """Return a chart without traces of nothing.

    What a reader hid in it stays hidden when it is drawn anew, but not where it is another chart.
    """
    data = [trace for trace in chart.figure["data"] if any(v is not None for v in trace["y"])]
    layout = {**chart.figure["layout"], "uirevision": label(chart.title)}
    return replace(chart, figure={"data": data, "layout": layout})


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _name(number: int) -> str:
    return f"chart-{number}"


def _chart(number: int, chart: Chart) -> str:
    note = f"<p>{safe(chart.note, 400)}</p>" if chart.note else ""
    height = chart.figure["layout"]["height"]
    return (
        f'<h3 id="title-{number}">{safe(chart.title)}</h3>\n'
        f'<figure aria-labelledby="title-{number}">\n'
        f'<div id="{_name(number)}" class="chart" style="height: {height}px"></div>\n'
        f"<figcaption>{note}<p>The numbers are in the tables and files below.</p>"
        "</figcaption>\n</figure>\n"
    )
