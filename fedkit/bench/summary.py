"""The eight figures on README's page, each from one row of one file in `results/`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

_PLACE = re.compile(r"(<!-- summary -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Mapping[str, Any]


def with_summary(text: str, results: Path) -> str:
    """Return `text` with the summary written into its place, where it has one.

    Args:
        text: README, or all pages that hold tables.
        results: Folder of the JSON files.

    Raises:
        FileNotFoundError: There is a place, but a file that the summary reads is missing.
        ValueError: A file has no row, or several, where the summary reads one.
    """
    if _PLACE.search(text) is None:
        return text
    table = "\n".join(_lines(results))
    return _PLACE.sub(lambda place: f"{place[1]}{table}\n{place[2]}", text)


def _lines(results: Path) -> list[str]:
    rows = [
        _accuracy(results),
        _bytes(results),
        _training(results),
        _device(results),
        _integers(results),
        _inference(results),
        _exactness(results),
        _instructions(results),
    ]
    head = ["| what | measured | compared with | tables |", "|---|---|---|---|"]
    return head + [
        f"| {what} | {ours} | {other} | [{page}](docs/results/{page}.md) |"
        for what, ours, other, page in rows
    ]


def _rows(results: Path, name: str, **wanted: object) -> list[Row]:
    content = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    rows: list[Row] = content["rows"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _row(results: Path, name: str, **wanted: object) -> Row:
    found = _rows(results, name, **wanted)
    if len(found) != 1:
        raise ValueError(f"{name}.json has {len(found)} rows with {wanted}; the summary needs one")
    return found[0]


def _accuracy(results: Path) -> tuple[str, str, str, str]:
    def mean(method: str) -> float:
        rows = _rows(results, "compare-fashion-mnist", method=method, density=0.01)
        return 100 * fmean(row["accuracy"] for row in rows)

    return (
        "accuracy at 1 % density, Fashion-MNIST, ResNet-8, three seeds",
        f"{mean('fedtiny'):.1f} % (FedTiny)",
        f"{mean('synflow'):.1f} % (SynFlow)",
        "methods",
    )


def _bytes(results: Path) -> tuple[str, str, str, str]:
    row = _row(results, "wire", density=0.01, wire="fp16")
    return (
        "bytes of a round, both ways, ResNet-18 at 1 %, float16",
        f"{(row['bytes_up'] + row['bytes_down']) / 1e6:.2f} MB",
        f"{row['bytes_dense_fp32'] / 1e6:.1f} MB (dense float32)",
        "wire",
    )


def _training(results: Path) -> tuple[str, str, str, str]:
    row = _row(results, "sparsetrain", model="resnet18", density=0.01, stored_bits=32)
    return (
        "a training step, ResNet-18 at 1 %, batch 64, one thread",
        f"{1e3 * row['seconds_ours']:,.0f} ms",
        f"{1e3 * row['seconds_torch']:,.0f} ms (torch)",
        "training-speed",
    )


def _device(results: Path) -> tuple[str, str, str, str]:
    ours, torch = (_row(results, "client", client=name) for name in ("sparse", "torch"))
    return (
        "peak memory of a device that trains ResNet-8",
        f"{ours['peak_bytes'] / 1e6:.0f} MB",
        f"{torch['peak_bytes'] / 1e6:.0f} MB (torch)",
        "training-speed",
    )


def _integers(results: Path) -> tuple[str, str, str, str]:
    def mean(bits: int, gradient: str) -> float:
        wanted = {"bits": bits, "gradient": gradient, "norm": "l1"}
        rows = _rows(results, "inttrain-fashion-mnist", **wanted)
        return 100 * fmean(row["accuracy"] for row in rows)

    return (
        "accuracy of ResNet-8 trained in 4-bit integers, three seeds",
        f"{mean(4, 'shiftquant'):.1f} %",
        f"{mean(32, 'per-tensor'):.1f} % (float32)",
        "integer-training",
    )


def _inference(results: Path) -> tuple[str, str, str, str]:
    wanted = {"model": "resnet18-w16", "density": 0.01}
    ours, litert = (_row(results, "infer", runtime=name, **wanted) for name in ("c99", "litert"))
    return (
        "one inference, narrow ResNet-18 at 1 %, int8, one thread",
        f"{ours['microseconds']:.0f} us (C99)",
        f"{litert['microseconds']:.0f} us (LiteRT)",
        "inference",
    )


def _exactness(results: Path) -> tuple[str, str, str, str]:
    rows = [row for row in _rows(results, "exact") if "mismatches" in row]
    return (
        "integers of artifacts that differ from their definition",
        f"{sum(row['mismatches'] for row in rows):,}",
        f"of {sum(row['integers'] for row in rows):,} that were compared",
        "inference",
    )


def _instructions(results: Path) -> tuple[str, str, str, str]:
    dense, sparse = (
        _row(results, "device", target="cortex-m4", model="resnet8", density=density)
        for density in (1.0, 0.05)
    )
    return (
        "instructions of one inference on an emulated Cortex-M4, ResNet-8 at 5 %",
        f"{sparse['instructions'] / 1e6:.1f} M",
        f"{dense['instructions'] / 1e6:.1f} M (dense)",
        "processors",
    )
