"""`fedkit bench client`: what the process costs that answers on a device, with and without torch.

Each kind of client runs in a process of its own: it imports what its ClientApp imports, then
answers one message to train (ResNet-8, 200 random examples of 3x32x32, batches of 32, one epoch).
The SuperNode beside it is not counted, it is the same for both. Memory is read where Linux tells
it.
"""

from __future__ import annotations

import os
import pickle
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import numpy as np

from fedkit.bench import markdown
from fedkit.bench.client_child import IMPORTS
from fedkit.bench.client_child import __file__ as _CHILD
from fedkit.bench.process import run_json
from fedkit.config import make_config
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import save_plan
from fedkit.engine.torch import TorchEngine
from fedkit.methods.schedule import pool_for
from fedkit.nn.zoo import build_model, seeded
from fedkit.tasks.task import cross_entropy
from fedkit.wire import messages
from fedkit.wire.messages import Packet

_SHAPE = (3, 32, 32)
_CLASSES = 10
_EXAMPLES = 200
_DENSITY = 0.1
_SEED = 0
_REPEATS = 5


def bench_client(quick: bool) -> dict[str, Any]:
    """Measure a device's process for each kind of client, the median of several starts.

    Args:
        quick: Start each kind once.

    Raises:
        subprocess.CalledProcessError: A client failed.
    """
    with tempfile.TemporaryDirectory(prefix="fedkit-bench-") as name:
        folder = Path(name)
        _prepare(folder)
        rows = [_row(client, folder, 1 if quick else _REPEATS) for client in IMPORTS]
    return {
        "benchmark": "client",
        "model": "resnet8",
        "seed": _SEED,
        "examples": _EXAMPLES,
        "density": _DENSITY,
        "rows": rows,
    }


def _prepare(folder: Path) -> None:
    """Write what the clients read: a plan, data, and a message that asks to train."""
    rng = np.random.default_rng(_SEED)
    np.savez(
        folder / "mine.npz",
        inputs=rng.standard_normal((_EXAMPLES, *_SHAPE)).astype(np.float32),
        targets=rng.integers(0, _CLASSES, _EXAMPLES),
    )
    model = seeded(lambda: build_model("resnet8", _SHAPE, _CLASSES), _SEED)
    save_plan(capture(model, _SHAPE), folder / "model.plan")
    plain = {"adjust_every": 10}  # No masks change in the round below.
    config = make_config({"density": _DENSITY, "epochs": 1, "batch_size": 32, **plain})
    pool = pool_for(config, TorchEngine(model, cross_entropy).initial_state())
    packed = messages.pack_state(pool.candidate(0), None)
    request = Packet(packed.arrays, {**packed.numbers, "round": 2})
    (folder / "request.pickle").write_bytes(pickle.dumps((config, request)))


def _row(client: str, folder: Path, repeats: int) -> dict[str, Any]:
    measured = [run_json("-P", str(_CHILD), client, str(folder)) for _ in range(repeats)]
    used = imported_distributions(measured[0]["files"])
    return {
        "client": client,
        "seconds_import": round(statistics.median(m["seconds_import"] for m in measured), 3),
        "idle_bytes": statistics.median_low(m["idle_bytes"] for m in measured),
        "peak_bytes": statistics.median_low(m["peak_bytes"] for m in measured),
        "installed_bytes": sum(installed_bytes(distribution) for distribution in used),
    }


def imported_distributions(files: Iterable[str]) -> list[Distribution]:
    """Return the installed distributions that own any of these files, without fedkit itself.

    Args:
        files: Files of imported modules; those of Python itself belong to no distribution.
    """
    imported = {os.path.realpath(file) for file in files}
    return [
        distribution
        for distribution in distributions()
        if distribution.name != "fedkit" and imported.intersection(_paths(distribution))
    ]


def installed_bytes(distribution: Distribution) -> int:
    """Return the size of all files of a distribution, without Python's compiled caches."""
    paths = (Path(path) for path in _paths(distribution))
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())


def _paths(distribution: Distribution) -> list[str]:
    root = os.path.realpath(str(distribution.locate_file("")))
    return [os.path.normpath(os.path.join(root, file)) for file in distribution.files or ()]


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of README's table."""
    head = "| client | seconds to import | idle memory | peak memory | installed |"
    rows = (
        f"| {row['client']} | {row['seconds_import']:.2f} | {markdown.mb(row['idle_bytes'])} "
        f"| {markdown.mb(row['peak_bytes'])} | {markdown.mb(row['installed_bytes'])} |"
        for row in result["rows"]
    )
    return markdown.table(head, rows)
