"""Benchmarks: each a function of `quick` that returns one JSON object with `rows`."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

BENCHMARKS = (
    "wire",
    "sparsetrain",
    "run",
    "client",
    "cost",
    "intgemm",
    "l1norm",
    "inttrain",
    "intaccuracy",
    "infer",
    "exact",
    "device",
    "devicetrain",
    "fpga",
    "fleet",
)
"""Names for `fedkit bench NAME`; `NAME` is the function `bench_NAME` in the module of that name."""


def run_benchmark(name: str, quick: bool, **options: Any) -> dict[str, Any]:
    """Run one of `BENCHMARKS`; modules are imported when asked for, since they are heavy.

    Args:
        name: Its name.
        quick: Take little time.
        **options: What only this one takes.
    """
    from fedkit.core.provenance import made_by

    module = import_module(f"fedkit.bench.{name}")
    result = cast(dict[str, Any], getattr(module, f"bench_{name}")(quick, **options))
    return {**result, **made_by()}
