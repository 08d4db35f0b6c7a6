"""Plan files that somebody altered, with a digest that fits: refused in one line, or computed."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkit.core.errors import FedkitError, PlanError
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.ops.registry import check_integer, check_sparse
from fedkit.engine.plan.plan import _render, content_of, load_plan
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.tasks import losses
from fedkit.tasks.task import Examples
from tests.engine.ops.examples import AROUND, EXAMPLES, numbered, plan_of
from tests.engine.plan.plans import PlanCase
from tests.naive import plan as naive

Random = np.random.Generator
Place = tuple[Any, Any]
"""A list or object of JSON, and an index or key of it."""

_VALUES: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    3,
    5,
    2**31,
    2**63,
    10**400,
    0.5,
    1e400,
    True,
    None,
    "",
    "x",
    [],
    {},
)
_MOST = 1 << 20  # values of an example that a test wants to compute


def places(content: Any) -> Iterator[Place]:
    """Yield where every value of JSON stands."""
    keys: Any = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], list | dict):
            yield from places(content[key])


LOSSES = (
    losses.CrossEntropy((1.0, 0.0, 2.0), -1, 0.1),
    losses.Huber(2.0),
    losses.SmoothL1(0.5),
    losses.BCEWithLogits((1.0, 2.0, 3.0)),
    losses.BCEWithLogits(2.0),
    losses.TripletMargin(0.5),
    losses.InfoNCE(0.5),
    losses.MSE(),
)


def with_loss(plan: Plan, number: int) -> Plan:
    """Return a plan with a loss, one after the other."""
    return replace(plan, loss=LOSSES[number % len(LOSSES)])


def altered(plan: Plan, random: Random) -> Any:
    """Return a plan as JSON in which one or two values are others, gone, doubled or exchanged."""
    content = json.loads(json.dumps(content_of(plan)))
    for _ in range(int(random.integers(1, 3))):
        found = list(places(content))
        within, key = found[int(random.integers(len(found)))]
        other, its = found[int(random.integers(len(found)))]
        how = random.random()
        if how < 0.1:
            del within[key]
        elif how < 0.2 and isinstance(within, list):
            within.insert(key, copy.deepcopy(within[key]))
        elif how < 0.45:
            within[key] = copy.deepcopy(other[its])
        elif how < 0.7 and isinstance(within[key], int):
            within[key] += int(random.choice([-1, 1, 2]))
        else:
            within[key] = copy.deepcopy(_VALUES[int(random.integers(len(_VALUES)))])
    return content


def load(content: Any, folder: Path) -> Plan | None:
    """Return what is read of it; None if it is refused, in one line."""
    path = folder / "plan.json"
    path.write_bytes(_render(content))
    try:
        return load_plan(path)
    except PlanError as error:
        assert str(error).startswith(f"plan file {path}: ") and "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


def assert_computes(plan: Plan) -> None:
    """Compare both engines with the meaning of the plan."""
    values = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    if values + sum(map(math.prod, plan.weights.values())) > _MOST:
        return
    case = numbered(plan)
    weights, stats = (
        {name: torch.from_numpy(value).double() for name, value in arrays.items()}
        for arrays in (case.state.weights, case.state.stats)
    )
    inputs = torch.from_numpy(case.inputs).double()
    expected = naive.run(plan, weights, stats, inputs, training=False).numpy()
    check_sparse(plan)
    found = SparseEngine(plan).outputs(case.state, case.inputs)
    near = 1e-4 * np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=near)
    check_integer(plan)
    assert np.isfinite(IntegerEngine(plan).outputs(case.state, case.inputs)).all()
    assert_trains(plan, case)


def assert_trains(plan: Plan, case: PlanCase) -> None:
    """Take the loss in both engines; they differ by what integers cost."""
    targets = case.targets
    if plan.loss.targets_problem(plan.output_shape, targets):
        targets = np.zeros((len(case.inputs), *plan.output_shape), np.float32)
    data = Examples(case.inputs, targets)
    for engine in (SparseEngine(plan), IntegerEngine(plan)):
        assert math.isfinite(engine.loss(case.state, data))


def try_altered(seeds: range, folder: Path) -> int:
    """Alter a plan for every seed; return how many were taken."""
    plans = [plan_of(example, around) for example in EXAMPLES.values() for around in AROUND]
    plans += [with_loss(plan, number) for number, plan in enumerate(plans)]
    taken = 0
    for seed in seeds:
        random = np.random.default_rng(seed)
        plan = load(altered(plans[int(random.integers(len(plans)))], random), folder)
        if plan is not None:
            taken += 1
            try:
                assert_computes(plan)
            except FedkitError as error:
                assert "\n" not in str(error)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {plan}") from error
    return taken


def test_altered_plans_are_refused_or_computed(tmp_path: Path) -> None:
    assert 0 < try_altered(range(400), tmp_path) < 400


@pytest.mark.slow
def test_many_altered_plans_are_refused_or_computed(tmp_path: Path) -> None:
    assert try_altered(range(1000, 11_000), tmp_path) > 150
