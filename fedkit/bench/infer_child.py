"""Print what instances of a model add to the memory of this process: `infer_child.py ARTIFACT`."""

from __future__ import annotations

import json
import sys

from edge.runners import open_runner
from fedkit.bench.process import memory

_INSTANCES = 8


def main(path: str) -> None:
    """Load and run a model once, then some more times, and print the memory of one of those."""
    kept = [open_runner(path)]
    kept[0].latency(repeats=1)
    before = memory("VmRSS")
    for _ in range(_INSTANCES):
        kept.append(open_runner(path))
        kept[-1].latency(repeats=1)
    print(json.dumps({"ram_bytes": (memory("VmRSS") - before) // _INSTANCES}))


if __name__ == "__main__":
    main(sys.argv[1])
