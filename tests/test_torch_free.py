"""A device may have no torch: everything but a few modules is imported where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import nn

from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.tasks import losses
from tests.imports import ROOT, inside, module_name

NEEDS_TORCH = (
    "fedkit.__main__",
    "fedkit.bench",
    "fedkit.cli",
    "fedkit.engine.accelerator",
    "fedkit.engine.choose",
    "fedkit.engine.integer.model",
    "fedkit.engine.own_loop",
    "fedkit.engine.plan.call_log",
    "fedkit.engine.plan.capture",
    "fedkit.engine.plan.side_effects",
    "fedkit.engine.torch",
    "fedkit.engine.trial",
    "fedkit.graph.from_torch",
    "fedkit.graph.torch_attention",
    "fedkit.nn",
)
"""What a device never imports; a new module is on the device's side unless it is inside these."""


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_devices_side_is_imported_without_torch(without_torch: dict[str, str]) -> None:
    files = (ROOT / "fedkit").rglob("*.py")
    everything = (module_name(path.relative_to(ROOT)) for path in files)
    modules = sorted(module for module in everything if not inside(module, *NEEDS_TORCH))
    assert "fedkit.flower.client_app" in modules
    ended = run(f"import {', '.join(modules)}", without_torch)
    assert ended.returncode == 0, ended.stderr


def test_a_module_that_needs_torch_would_be_found(without_torch: dict[str, str]) -> None:
    ended = run("import fedkit.engine.torch", without_torch)
    assert "No module named 'torch'" in ended.stderr


def test_nothing_else_of_the_environment_is_hidden(without_torch: dict[str, str]) -> None:
    look = (
        "from importlib.util import find_spec; print(find_spec('torch'), find_spec('numpy').name)"
    )
    assert run(look, without_torch).stdout.split() == ["None", "numpy"]


ALONE = """
import sys
from pathlib import Path
import numpy as np
from fedkit.engine.base import LocalTraining, measure
from fedkit.engine.plan.plan import load_plan
from fedkit.engine.precision import plan_engine
from fedkit.sparse.state import ModelState
from fedkit.tasks import metrics
from fedkit.tasks.task import Examples, Metric

plan, random = load_plan(Path(sys.argv[1])), np.random.default_rng(0)
weights = {n: random.normal(0, 0.3, s).astype(np.float32) for n, s in plan.weights.items()}
masks = {n: np.ones(plan.weights[n], bool) for n in plan.prunable}
inputs = random.standard_normal((40, *plan.tensors[0].shape), np.float32)
targets = (inputs.reshape(40, -1)[:, :2] > 0).astype(np.int64)
data, how = Examples(inputs, targets), LocalTraining(20, 10, 0.3, 0.9, 0.0)
for precision in ("fp32", "int8"):
    engine, state = plan_engine(plan, precision), ModelState(weights, {}, masks)
    first = engine.loss(state, data)
    state, _ = engine.train(state, data, how, 1)
    found = measure(engine, state, data, Metric(metrics.F1(), "f1"))
    print(plan.loss.kind, engine.loss(state, data) < first / 2, found > 0.9)
"""


def test_a_device_trains_with_another_loss_without_torch(
    without_torch: dict[str, str], tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    save_plan(capture(model, (4,), losses.BCEWithLogits([1.0, 2.0])), tmp_path / "a.plan")
    command = [sys.executable, "-c", ALONE, str(tmp_path / "a.plan")]
    ended = subprocess.run(command, env=without_torch, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["binary_cross_entropy_with_logits True True"] * 2
