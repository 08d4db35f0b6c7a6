"""The bits of a run do not depend on how the numpy that is installed promotes types.

numpy 1.26 can promote as numpy 2 does (NEP 50), and can warn wherever the two differ, which is an
error in tests. Under numpy 2 there is no other way to compare with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from torch import nn

from fedkit.config import make_config
from fedkit.server.rounds import run_rounds
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, Task
from sim.scenario import make_scenario
from tests.sets import slow_but


def small_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def small_data(count: int, seed: int) -> Examples:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, count)
    inputs = rng.standard_normal((count, 1, 6, 6)) + targets[:, None, None, None]
    return Examples(inputs.astype(np.float32), targets)


TASK = Task("small", small_model, lambda: small_data(200, 0), lambda: small_data(30, 1))

RUN = {
    "task": f"{__name__}:TASK",
    "devices": 3,
    "density": 0.4,
    "rounds": 3,
    "epochs": 1,
    "adjust_every": 1,
    "adjust_stop": 3,
    "server_epochs": 1,
    "sparse_epochs": 1,
    "seed": 2,
}

CASES: dict[str, dict[str, Any]] = {
    "sparse": {"engine": "sparse"},
    "torch": {"engine": "torch"},
    "integer": {"precision": "int8"},
    "few bits": {"precision": "int4", "uplink_bits": 4},
    "median": {"aggregation": "median"},
    "fp16": {"wire": "fp16"},
    "prunefl": {"method": "prunefl"},
    "feddst": {"method": "feddst"},
    "clipped": {"dp_clip": 1.0, "dp_noise": 0.0, "adjust_share": 0.0, "selection": "none"},
}


@contextmanager
def promotion(state: str) -> Iterator[None]:
    before = np._get_promotion_state()
    np._set_promotion_state(state)
    try:
        yield
    finally:
        np._set_promotion_state(before)


def digest_of(state: ModelState) -> str:
    found = hashlib.sha256()
    for arrays in (state.weights, state.stats, state.masks):
        for name, array in arrays.items():
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def digest_of_run(**changes: Any) -> str:
    scenario = make_scenario(make_config({**RUN, **changes}))
    *_, last = run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)
    return digest_of(last.state)


@pytest.mark.skipif(int(np.__version__.split(".")[0]) > 1, reason="numpy 2 has no other promotion")
@pytest.mark.parametrize("case", slow_but(("sparse", "few bits", "median", "clipped"), CASES))
def test_a_run_has_the_same_bits_under_either_promotion(case: str) -> None:
    with promotion("legacy"):
        expected = digest_of_run(**CASES[case])
    with promotion("weak_and_warn"):
        assert digest_of_run(**CASES[case]) == expected


@pytest.mark.skipif(int(np.__version__.split(".")[0]) > 1, reason="numpy 2 has no other promotion")
def test_a_product_that_promotion_decides_would_be_found() -> None:
    values, share = np.ones(2, np.float32), np.float64(1 / 3)
    with promotion("weak_and_warn"), pytest.warns(UserWarning, match="result dtype changed"):
        values * share
