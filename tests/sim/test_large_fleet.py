"""Ten thousand devices, a hundred a round, and a gigabyte of data that memory never holds."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedkit.bench.process import shared_memory
from fedkit.flower.processes import marked
from tests.processes import started
from tests.sim.large_fleet import DEVICES, PER_DEVICE, ROUNDS, SHAPE

MOST_BYTES = 1e9


def write_data(folder: Path) -> int:
    """Write noisy stripes of ten kinds, a thousandth at a time; return the bytes of inputs."""
    count, rng = DEVICES * PER_DEVICE, np.random.default_rng(0)
    targets = rng.integers(0, 10, count)
    np.save(folder / "targets.npy", targets)
    np.save(folder / "owners.npy", np.arange(count) // PER_DEVICE)
    path = folder / "inputs.npy"
    inputs = np.lib.format.open_memmap(path, "w+", np.float32, (count, *SHAPE))
    stripes = np.sin(np.arange(10)[:, None] * np.arange(SHAPE[-1])).astype(np.float32)
    for part in np.array_split(np.arange(count), 1000):
        noise = rng.standard_normal((len(part), *SHAPE), np.float32)
        inputs[part[0] : part[-1] + 1] = stripes[targets[part]][:, None, None] + 0.1 * noise
    inputs.flush()
    return path.stat().st_size


@pytest.mark.slow
def test_ten_thousand_devices_take_no_more_memory_than_their_model_does(tmp_path: Path) -> None:
    assert write_data(tmp_path) > MOST_BYTES
    peak = 0
    root = str(Path(__file__).parents[2])
    command = ["-m", "tests.sim.large_fleet", str(tmp_path)]
    with started(tmp_path, *command, PYTHONPATH=root, OMP_NUM_THREADS="1") as process:
        while process.poll() is None:
            peak = max(peak, shared_memory(marked(f"FEDKIT_TEST={tmp_path}")))
            time.sleep(0.2)
        out, err = process.communicate()
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    print("all processes", peak, "the first", found["peak"], file=sys.stderr)
    assert found["round"] == ROUNDS and 0 < found["loss"] < 3
    assert found["peak"] < MOST_BYTES
    assert peak < 1.3 * MOST_BYTES
