"""Write README's result tables from `results/*.json`: `python -m fedkit.bench.readme [--check]`.

A table stands between two comment lines that name it, and carries the command and the commit that
made its figures. Nothing in it is written by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Result = Mapping[str, Any]


def _main_job(result: Result) -> list[str]:
    sent = result["bytes_up"] + result["bytes_down"]
    rows = {
        "accuracy of the dense start": f"{result['accuracy_dense_start']:.2%}",
        "accuracy of the selected candidate, untrained": f"{result['accuracy_selected']:.2%}",
        "accuracy of the final sparse model": f"{result['accuracy_sparse']:.2%}",
        "accuracy of its int8 artifact": f"{result['accuracy_int8']:.2%}",
        "accuracy of dense FedAvg, same rounds": f"{result['accuracy_dense_fedavg']:.2%}",
        "density": f"{result['density']:.2%}",
        "bytes down / up, all devices": f"{_mb(result['bytes_down'])} / {_mb(result['bytes_up'])}",
        "bytes of dense FedAvg, both ways": f"{_mb(result['bytes_dense_fedavg'])} "
        f"({result['bytes_dense_fedavg'] / sent:.1f} times as many)",
        "seconds of the sparse rounds": f"{result['seconds']:.0f}",
        "artifact": f"{result['artifact_bytes'] / 1e3:.1f} kB .tflite",
        "latency in LiteRT, one thread, same machine": f"{result['latency_median_us']:.0f} us",
    }
    return [
        "| | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]


def _wire(result: Result) -> list[str]:
    head = "| density | bytes up | bytes down | dense float32, both ways | ratio | of the bound |"
    rows = (
        f"| {row['density']:.0%} | {row['bytes_up']:,} | {row['bytes_down']:,} "
        f"| {row['bytes_dense_fp32']:,} | {row['ratio_dense']:.1f}x | {row['ratio_bound']:.3f} |"
        for row in result["rows"]
    )
    return [head, "|---|---|---|---|---|---|", *rows]


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


TABLES: dict[str, Callable[[Result], list[str]]] = {"main-digits": _main_job, "wire": _wire}
"""Name of a table and of its file in results/ -> what writes its lines."""


def render(text: str, results: Path) -> str:
    """Return README's text with every table written anew.

    Args:
        text: README.
        results: Folder of the JSON files.

    Raises:
        ValueError: A table has no place in the text.
    """
    for name, write in TABLES.items():
        result = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        made = f"`{result['command']}`, seed {result['seed']}, commit {result['commit']}"
        source = f"Made by {made}."
        table = "\n".join([*write(result), "", source])
        place = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        escaped = table.replace("\\", r"\\")
        text, found = place.subn(rf"\g<1>{escaped}\n\g<2>", text)
        if found != 1:
            raise ValueError(f"README has {found} places for table {name!r}; it needs one")
    return text


def main() -> int:
    """Write the tables; with `--check` only say whether they are up to date."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = render(old, ROOT / "results")
    if "--check" not in sys.argv:
        readme.write_text(new, encoding="utf-8")
        return 0
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
