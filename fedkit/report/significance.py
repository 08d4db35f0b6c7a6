"""Whether lines of a comparison differ by more than their seeds do: paired over seeds.

Two lines that ran with the same seeds are compared by their differences, one per seed, with the
two-sided paired t test (W. S. Gosset, "The probable error of a mean", 1908). It takes the
differences as drawn from one normal distribution. Where several lines are compared with the best
one, their p values are also corrected by S. Holm's method ("A simple sequentially rejective
multiple test procedure", 1979).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedkit.report.comparison import Result, namer
from fedkit.tasks.task import Metric

FEWEST = 3
"""Seeds that two lines must have in common, or nothing is said of them."""

LEVEL = 0.05
"""What p must be below for a difference to count as shown."""

SETTING = ("task", "model", "alpha", "density")
"""What lines have in common that are compared with each other."""

Setting = tuple[object, ...]
Values = Mapping[int, float]
"""Seed -> the metric."""


@dataclass(frozen=True)
class Contrast:
    """Two lines of one setting.

    Attributes:
        setting: Their task, model, alpha and density.
        one: The line with the better mean.
        other: The one that is compared with it.
        seeds: That they have in common.
        mean: Of `one` minus `other`, over those seeds.
        low: Where the interval of the mean begins that has 95 % confidence; None where nothing can
            be said: of fewer than `FEWEST` seeds, or of differences that are all the same.
        high: Where it ends.
        p: Of the paired t test, two-sided; None where nothing can be said.
        holm: p, corrected for the comparisons with the best line of the setting; None for others.
    """

    setting: Setting
    one: str
    other: str
    seeds: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm: float | None = None

    @property
    def verdict(self) -> str:
        """What may be said of the two."""
        if self.seeds < FEWEST:
            return f"too few seeds: {self.seeds}, and {FEWEST} are needed"
        if self.p is None:
            return "nothing: the difference is the same for each seed"
        p = self.p if self.holm is None else self.holm
        return "they differ" if p < LEVEL else "no difference shown"


def against_best(result: Result) -> list[Contrast]:
    """Compare every line with the best one of its setting, in the order of their means."""
    found = []
    for setting, lines in _settings(result).items():
        best, *others = lines
        apart = (_difference(setting, lines, best, each) for each in others)
        found += _corrected([each for each in apart if each is not None])
    return found


def pairs(result: Result) -> Iterator[Contrast]:
    """Compare every two lines of a setting; those with the best one come with `holm`."""
    corrected = {(each.setting, each.one, each.other): each for each in against_best(result)}
    for setting, lines in _settings(result).items():
        for one, other in itertools.combinations(lines, 2):
            known = corrected.get((setting, one, other))
            if (found := known or _difference(setting, lines, one, other)) is not None:
                yield found


def _settings(result: Result) -> dict[Setting, dict[str, Values]]:
    """Return the lines of each setting, the best mean first, and of each the metric by seed."""
    found: dict[Setting, dict[str, dict[int, float]]] = {}
    higher, name_of = dict[Setting, bool](), namer(result)
    for row in result["rows"]:
        setting = tuple(row[key] for key in SETTING)
        higher[setting] = Metric.of(row.get("metric")).higher_is_better
        lines = found.setdefault(setting, {})
        lines.setdefault(name_of(row), {})[row["seed"]] = row["accuracy"]
    return {setting: _ranked(lines, higher[setting]) for setting, lines in found.items()}


def _ranked(lines: Mapping[str, Values], higher: bool) -> dict[str, Values]:
    means = {name: statistics.fmean(values.values()) for name, values in lines.items()}
    return {name: lines[name] for name in sorted(means, key=means.__getitem__, reverse=higher)}


def _difference(
    setting: Setting, lines: Mapping[str, Values], one: str, other: str
) -> Contrast | None:
    """Compare two lines; None where they have no seed in common."""
    seeds = sorted(lines[one].keys() & lines[other].keys())
    if not seeds:
        return None
    apart = [lines[one][seed] - lines[other][seed] for seed in seeds]
    found = Contrast(setting, one, other, len(seeds), statistics.fmean(apart))
    return found if len(seeds) < FEWEST else _tested(found, apart)


def _tested(found: Contrast, apart: Sequence[float]) -> Contrast:
    from scipy.special import stdtr, stdtrit  # of Student's distribution, and the way back

    free = len(apart) - 1
    error = statistics.stdev(apart) / math.sqrt(len(apart))
    if error <= 1e-12 * abs(found.mean):
        return replace(found, p=1.0) if found.mean == 0 else found
    p = 2 * float(stdtr(free, -abs(found.mean) / error))
    half = float(stdtrit(free, 1 - LEVEL / 2)) * error
    return replace(found, low=found.mean - half, high=found.mean + half, p=p)


def _corrected(found: Sequence[Contrast]) -> list[Contrast]:
    """Correct the p values of a family: the least times their number, the next times one less."""
    tested = [each for each in found if each.p is not None]
    holm: dict[str, float] = {}
    least = 0.0
    for rank, each in enumerate(sorted(tested, key=lambda each: each.p or 0.0)):
        least = max(least, min(1.0, (len(tested) - rank) * (each.p or 0.0)))
        holm[each.other] = least
    return [replace(each, holm=holm.get(each.other)) for each in found]
