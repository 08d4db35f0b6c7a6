"""A device may have no torch: everything but a few modules is imported where there is none."""

from __future__ import annotations

import subprocess
import sys

from tests.imports import ROOT, inside, module_name

NEEDS_TORCH = (
    "fedkit.__main__",
    "fedkit.bench",
    "fedkit.cli",
    "fedkit.engine.choose",
    "fedkit.engine.integer.model",
    "fedkit.engine.own_loop",
    "fedkit.engine.plan.call_log",
    "fedkit.engine.plan.capture",
    "fedkit.engine.plan.side_effects",
    "fedkit.engine.torch",
    "fedkit.engine.trial",
    "fedkit.graph.from_torch",
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
