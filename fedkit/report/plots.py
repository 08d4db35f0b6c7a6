"""A comparison as two pictures: accuracy versus bytes, and versus density.

matplotlib comes with the extra `plots` and is imported when a picture is drawn. Text stays text in
the SVG, and the same result always gives the same bytes with the same matplotlib.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkit.report.comparison import Result, means, metric, namer, series_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind people tell apart; its yellow is too faint here."""

MARKERS, DASHES = "osD^vPX*<>", ("-", "--", ":")
"""Lines of one colour differ in marker, and in dashes from one turn of the colours to the next."""

_TITLE_WIDTH = 70
"""Characters that a line of the title holds in any usual font."""

_Row = Mapping[str, Any]


def plots(result: Path) -> dict[str, str]:
    """Return file name -> SVG of a comparison's two pictures; none of a single density."""
    content = json.loads(result.read_text(encoding="utf-8"))
    if len({row["density"] for row in content["rows"]}) == 1:
        return {}
    return {
        f"{result.stem}-bytes.svg": bytes_plot(content),
        f"{result.stem}-density.svg": density_plot(content),
    }


def bytes_plot(result: Result) -> str:
    """Draw mean accuracy versus all bytes of a run as SVG, a line per method."""
    label = "bytes of a run, all devices, both ways (MB)"
    return _plot(result, "bytes", label, lambda row: row["bytes"] / 1e6, deviations=False)


def density_plot(result: Result) -> str:
    """Draw accuracy, mean and standard deviation, versus density as SVG, a line per method."""
    label = "density, kept share of the prunable weights (%)"
    return _plot(result, "density", label, lambda row: 100 * row["density"], deviations=True)


def _plot(
    result: Result, versus: str, label: str, x_of: Callable[[_Row], float], deviations: bool
) -> str:
    return to_svg(lambda: _figure(result, versus, label, x_of, deviations))


def to_svg(draw: Callable[[], Figure]) -> str:
    """Return what is drawn as SVG, the same bytes each time."""
    svg = _drawn(draw, "svg", {"Date": None, "Creator": None}).decode()
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def to_png(draw: Callable[[], Figure]) -> bytes:
    """Return what is drawn as PNG, the same bytes each time."""
    return _drawn(draw, "png", {"Software": None})


def _drawn(draw: Callable[[], Figure], form: str, metadata: Mapping[str, None]) -> bytes:
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedkit", "font.size": 10}):
        content = io.BytesIO()
        draw().savefig(content, format=form, metadata=metadata, dpi=150)
    return content.getvalue()


def _figure(
    result: Result, versus: str, label: str, x_of: Callable[[_Row], float], deviations: bool
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(_series(result).items()):
        _line(axes, number, name, _scaled(result, sorted(rows, key=x_of)), x_of, deviations)
    _title(figure, f"{metric(result).name} versus {versus}", _about(result))
    axes.set_xlabel(label)
    unit = " (%)" if _scale(result) == 100 else ""
    axes.set_ylabel(f"{metric(result).name}{unit}{_over_seeds(result, deviations)}")
    _log_scale(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _title(figure: Figure, what: str, about: str) -> None:
    """Write the title in lines from the left edge, as one over the axes would be cut off there."""
    lines = textwrap.wrap(about, _TITLE_WIDTH)
    figure.suptitle("\n".join([what, *lines]), x=0.02, ha="left", fontsize=11)


def _scale(result: Result) -> int:
    """Return what values are multiplied with: 100 where they are read in per cent."""
    return 100 if metric(result).form.endswith("%") else 1


def _scaled(result: Result, rows: Sequence[_Row]) -> list[_Row]:
    factor = _scale(result)
    return [
        {
            **row,
            "accuracy": factor * row["accuracy"],
            "accuracy_sd": factor * (row["accuracy_sd"] or 0),
        }
        for row in rows
    ]


def _over_seeds(result: Result, deviations: bool) -> str:
    count = len(result["seeds"])
    return f", mean{' ± sd' * deviations} of {count} seeds" if count > 1 else ""


def _series(result: Result) -> dict[str, list[_Row]]:
    """Return line name -> its rows."""
    name_of, lines = namer(result), dict[str, list[_Row]]()
    for row in means(result):
        lines.setdefault(name_of(row), []).append(row)
    return lines


def _line(
    axes: Axes,
    number: int,
    name: str,
    rows: Sequence[_Row],
    x_of: Callable[[_Row], float],
    deviations: bool,
) -> None:
    axes.errorbar(
        [x_of(row) for row in rows],
        [row["accuracy"] for row in rows],
        yerr=[row["accuracy_sd"] for row in rows] if deviations else None,
        label=name,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=DASHES[number // len(COLOURS) % len(DASHES)],
        markersize=5,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=3,
    )


def _log_scale(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _about(result: Result) -> str:
    """Return the name of the comparison, and task, model and alpha where there is one of them."""
    row, varied = result["rows"][0], series_keys(result)
    fixed = {key: row[key] for key in ("task", "model", "alpha") if key not in varied}
    if "alpha" in fixed:
        fixed["alpha"] = f"alpha {fixed['alpha']:g}"
    return f"{result['name']} ({', '.join(filter(None, fixed.values()))})"
