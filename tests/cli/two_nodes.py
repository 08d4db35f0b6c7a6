"""A Ray cluster with one core on each of two nodes of this machine, in a process of its own.

Run as a module it starts the cluster, prints its address and the process of the second node, and
stops it when its input ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fedkit.flower.processes import ENVIRONMENT
from tests.imports import ROOT


class TwoNodes:
    """The cluster as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.two_nodes"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        told = next(line for line in self._process.stdout if line.startswith("cluster "))
        _, self.address, second = told.split()
        self._second = int(second)

    def works_on_the_second(self) -> bool:
        """Whether a task runs on the second node: its worker is called after the task."""
        return any(title.startswith("ray::_told") for title in titles_below(self._second))

    def kill_the_second(self) -> None:
        """As a power cut does."""
        os.kill(self._second, signal.SIGKILL)

    def stop(self) -> None:
        self._process.communicate()


def titles_below(parent: int) -> list[str]:
    """What the children of a process are called."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append((path / "cmdline").read_text())
        except (OSError, ValueError):
            continue
    return found


def main() -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1)
    print("cluster", cluster.address, second.all_processes["raylet"][0].process.pid, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
