from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest

from fedkit.bench.client import bench_client, imported_distributions, installed_bytes


def test_files_are_traced_to_the_distributions_that_own_them() -> None:
    files = [np.__file__, str(Path(np.__file__).parent / "version.py"), pytest.__file__, __file__]
    found = {used.name for used in imported_distributions(files)}
    assert found == {"numpy", "pytest"}


def test_what_is_installed_counts_every_file_once_and_no_cache() -> None:
    size = installed_bytes(distribution("numpy"))
    package = [path for path in Path(np.__file__).parent.rglob("*") if path.suffix != ".pyc"]
    assert size >= sum(path.stat().st_size for path in package if path.is_file())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux tells it")
def test_a_client_without_torch_is_smaller_in_every_way() -> None:
    dense, sparse = bench_client(quick=True)["rows"]
    assert (dense["client"], sparse["client"]) == ("torch", "sparse")
    for row in (dense, sparse):
        assert row["peak_bytes"] > row["idle_bytes"] > 0
    for key in ("seconds_import", "idle_bytes", "peak_bytes", "installed_bytes"):
        assert sparse[key] < dense[key] / 2, key
