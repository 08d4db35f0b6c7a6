"""The page of a comparison: lines of methods with bands, what differs, and all numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedkit.report import sections
from fedkit.report.comparison import Result, means
from fedkit.report.comparison import metric as metric_of
from fedkit.report.comparison_charts import charts
from fedkit.report.comparison_reading import Comparison, read_comparison
from fedkit.report.downloads import File
from fedkit.report.markup import folded, safe, table
from fedkit.report.page import Content, Drawn, page, with_files
from fedkit.report.plotly_library import require
from fedkit.report.significance import FEWEST, LEVEL, SETTING, Contrast, against_best, pairs
from fedkit.report.thin import spread

_MOST_ROWS = 1_000
"""Of a table; the files have all."""


def comparison_report(path: Path) -> str:
    """Return a page about a result of `fedkit compare`, or a grid that has not ended.

    Raises:
        ConfigError: plotly is not installed.
        CheckpointError: It is neither, or no cell of it is there.
    """
    require()
    return page(content(read_comparison(path)))


def content(found: Comparison) -> Content:
    """Return what a page shows of a comparison."""
    result = found.result
    drawn = Drawn.of(charts(result))
    shown = (
        _overview(found)
        + sections.missing([(result["name"], what) for what in found.missing])
        + sections.section("Charts", drawn.html)
        + sections.section("What differs", _differences(result))
        + sections.section("Numbers", _tables(result))
        + _origin(found)
    )
    return with_files(f"Comparison {result['name']}", shown, drawn, _files(result))


def _overview(found: Comparison) -> str:
    result, rows = found.result, found.result["rows"]
    there = f"{len(rows):,} of {found.planned:,}"
    about = {
        "cells": there if len(rows) < found.planned else f"{len(rows):,}",
        **{
            f"{key}s": ", ".join(dict.fromkeys(str(row[key]) for row in rows))
            for key in ("task", "model", "method", "seed")
        },
        "densities": ", ".join(f"{each:.4g}" for each in sorted({row["density"] for row in rows})),
        "metric": metric_of(result).name,
    }
    lines = table("The comparison", ("", result["name"]), list(about.items()))
    return sections.section("Overview", lines)


# What differs ----------------------------------------------------------------------------------

_DIFFERENCE = (
    *(*SETTING, "one", "other", "seeds"),
    *("difference", "low_95", "high_95", "p", "p_holm", "verdict"),
)


def _differences(result: Result) -> str:
    found = against_best(result)
    if not found:
        return "<p>Nothing ran beside another line at the same density.</p>\n"
    shown = [found[each] for each in spread(len(found), _MOST_ROWS)]
    varied = [
        place for place in range(len(SETTING)) if len({each.setting[place] for each in found}) > 1
    ]
    head = [
        *("best - other", *(SETTING[place] for place in varied)),
        *("seeds", "difference", "95 % interval", "p", "p, corrected", "what it says"),
    ]
    rows = [_line(each, varied) for each in shown]
    told = table("The best line of each density, and every other one", head, rows)
    return f"{_about(found)}{told}"


def _line(each: Contrast, varied: Sequence[int]) -> list[object]:
    low, high = each.low, each.high
    interval = "" if low is None or high is None else f"{low:+.3g} to {high:+.3g}"
    return [
        *(f"{each.one} - {each.other}", *(each.setting[place] for place in varied)),
        *(each.seeds, f"{each.mean:+.3g}", interval, _three(each.p), _three(each.holm)),
        each.verdict,
    ]


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cells(each: Contrast) -> list[object]:
    numbers = (each.mean, each.low, each.high, each.p, each.holm)
    return [*each.setting, each.one, each.other, each.seeds, *numbers, each.verdict]


def _about(found: Sequence[Contrast]) -> str:
    seeds = max(each.seeds for each in found)
    said = (
        "Lines of one density are compared seed by seed with the one whose mean is best: the "
        "two-sided paired t test, which takes the differences as normally distributed, with "
        f"Holm's correction for the comparisons of that density. They differ where the corrected p "
        f"is below {LEVEL:g}. The best line was chosen by the same seeds, so what is close to it "
        "may be as good."
    )
    return f"<p>{safe(said, 1000)}</p>\n<p>{safe(_power(seeds), 1000)}</p>\n"


def _power(seeds: int) -> str:
    """Say plainly what so few seeds can show."""
    if seeds < FEWEST:
        return (
            f"With {seeds} seed{'s' * (seeds != 1)} nothing can be said: {FEWEST} are needed at "
            "least. The order of the lines may be chance."
        )
    from scipy.special import stdtrit

    times = float(stdtrit(seeds - 1, 1 - LEVEL / 2)) / seeds**0.5
    few = "so few seeds show large differences only; " if seeds < 10 else ""
    return (
        f"With {seeds} seeds a difference is shown, before the correction, where its mean is more "
        f"than {times:.2g} times its standard deviation over the seeds: {few}what is not shown "
        "may be there."
    )


# Numbers ---------------------------------------------------------------------------------------

_CELL = (
    *("task", "model", "alpha", "method", "density", "seed", "accuracy", "density_measured"),
    *("rounds", "devices", "bytes_up", "bytes_down", "train_flops", "peak_bytes", "seconds"),
)


def _cell_keys(result: Result) -> list[str]:
    others = [axis for axis in result["grid"]["axes"] if axis not in _CELL]
    there = {key for row in result["rows"] for key in row}
    return [*others, *(key for key in _CELL if key in there)]


def _mean_file(result: Result) -> File:
    rows = [{key: value for key, value in row.items() if key != "metric"} for row in means(result)]
    keys = ["method", *(key for key in rows[0] if key != "method")]
    name = metric_of(result).name
    head = [key.replace("accuracy", name) for key in keys]
    return File("means", "means", head, len(rows), lambda each: [rows[each][key] for key in keys])


def _cell_file(result: Result) -> File:
    rows, keys = result["rows"], _cell_keys(result)
    return File("cells", "cells", keys, len(rows), lambda each: [rows[each].get(k) for k in keys])


def _difference_file(result: Result) -> File:
    found = list(pairs(result))
    return File(
        "differences", "pairs of lines", _DIFFERENCE, len(found), lambda n: _cells(found[n])
    )


def _files(result: Result) -> list[File]:
    found = [_mean_file(result), _difference_file(result), _cell_file(result)]
    return [file for file in found if file.count]


def _tables(result: Result) -> str:
    named = {"Means over the seeds": _mean_file(result), "Cells": _cell_file(result)}
    return "".join(_table(title, file) for title, file in named.items())


def _table(title: str, file: File) -> str:
    shown = spread(file.count, _MOST_ROWS)
    part = f" ({len(shown):,} of {file.count:,} {file.what})" if len(shown) < file.count else ""
    head = [name.replace("_", " ") for name in file.head]
    return folded(f"{title}{part}", table(title, head, map(file.row, shown)))


def _origin(found: Comparison) -> str:
    result = found.result
    commits = dict.fromkeys(str(row["commit"]) for row in result["rows"] if row.get("commit"))
    told = {
        "from": str(found.path),
        **{key: result.get(key) for key in ("command", "commit", "processor")},
        "commits of the cells": ", ".join(commits),
    }
    rows = [(key, value) for key, value in told.items() if value]
    keys = {**_as_dict(result["grid"].get("run")), **result["grid"]["axes"]}
    grid = [(key, _listed(value)) for key, value in keys.items()]
    origin = table("Where the comparison comes from", ("key", result["name"]), rows)
    config = table("Keys of its runs; of an axis all values", ("key", result["name"]), grid)
    return sections.section("Configuration and origin", origin + folded("Grid", config))


def _as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
