"""`fedkit bench personal`: some weights trained alone, and norms or head kept on devices.

Two questions, on the digits task, three seeds each. `tune`: a ResNet-18 with widths of 16 to 128 is
trained on the server's own images, and then in a fleet whose devices differ in their classes: all
of it, its norms, or norms and head, each at several learning rates, as few weights stand, and need,
larger steps than all. `skew`: devices see the world through cameras of their own; a
ResNet-8 is trained by FedAvg, with local norms, or with a local head, and measured on what devices
hold out. Seconds are those of the processor, of one thread.
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedkit.bench import markdown
from fedkit.config import RunConfig, make_config
from fedkit.core.supervise import guard, start_worker
from fedkit.server.rounds import Report, dense_start, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.sparse.state import ModelState
from fedkit.tasks import load_task
from fedkit.tasks.task import Examples, Task
from sim.scenario import share_out

Rows = Sequence[Mapping[str, Any]]

_SEEDS = (1, 2, 3)
_TUNE: dict[str, Any] = {
    "task": "digits",
    "model": "resnet18-w16",
    "method": "dense",
    "devices": 5,
    "partition": "dirichlet",
    "alpha": 0.3,
    "server_share": 0.2,
    "server_epochs": 8,
    "sparse_epochs": 0,
    "rounds": 6,
    "epochs": 1,
    "batch_size": 32,
    "lr": 0.05,
    "measure_every": 6,
}
_RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Learning rates of the devices of `tune`; the backbone is always trained at that of `_TUNE`."""

_SKEW: dict[str, Any] = {
    "task": "cameras",
    "model": "resnet8",
    "method": "dense",
    "devices": 6,
    "partition": "natural-id",
    "server_share": 0.0,
    "rounds": 10,
    "epochs": 1,
    "batch_size": 32,
    "measure_every": 10,
    "device_eval": 10,
    "validation_share": 0.4,
}


def bench_personal(quick: bool) -> dict[str, Any]:
    """Run all of it.

    Args:
        quick: One seed, one round.
    """
    seeds, less = (_SEEDS[:1], _QUICK) if quick else (_SEEDS, {})
    parts = [(part, make_config({**how, **less, "seed": n})) for n in seeds for part, how in _PARTS]
    spawn = multiprocessing.get_context("spawn")
    guard()
    with ProcessPoolExecutor(1 if quick else 3, spawn, start_worker) as pool:
        rows = [row for found in pool.map(_part, *zip(*parts, strict=True)) for row in found]
    return {
        "benchmark": "personal",
        "seeds": list(seeds),
        "tune": _TUNE,
        "skew": _SKEW,
        "rows": rows,
    }


_QUICK = {
    "rounds": 1,
    "server_epochs": 1,
    "examples_per_device": 40,
    "test_examples": 100,
    "measure_every": 1,
}


_PARTS = (("tune", _TUNE), ("skew", _SKEW))


def _part(part: str, config: RunConfig) -> list[dict[str, Any]]:
    return _tune(config) if part == "tune" else _skew(config)


# Some weights alone --------------------------------------------------------------------------


def _tune(config: RunConfig) -> list[dict[str, Any]]:
    task = load_task(config.task)
    scenario = share_out(config, task)
    start = dense_start(scenario.server(), scenario.server_data)
    begun = scenario.server().report("start", 0, start, None)
    rows = []
    for train, rate in itertools.product(("all", "norm", "norm+head"), _RATES):
        how = config.changed(train=train, lr=rate)
        seconds, reports = _timed(share_out(how, task), start)
        last = reports[-1]
        rows.append(
            {
                "part": "tune",
                "kind": train,
                "lr": rate,
                "seed": config.seed,
                "accuracy_start": begun.accuracy,
                "accuracy": last.accuracy,
                "bytes_up": sum(report.bytes_up for report in reports),
                "bytes_down_round": last.bytes_down,
                "cpu_seconds": seconds,
            }
        )
    return rows


def _timed(scenario: Scenario, start: ModelState | None = None) -> tuple[float, list[Report]]:
    """Run all rounds on one thread; return the seconds of the processor, and the steps."""
    scenario.check()
    server, fleet = scenario.server(), scenario.local_fleet()
    began = time.process_time()
    reports = list(run_rounds(server, fleet, scenario.server_data, start))
    return round(time.process_time() - began, 2), reports


# Tensors of devices' own ---------------------------------------------------------------------


def _skew(config: RunConfig) -> list[dict[str, Any]]:
    task = _cameras(config.devices, config.seed)
    rows = []
    for local in ("", "norm", "head"):
        how = config.changed(local=local)
        seconds, reports = _timed(share_out(how, task))
        found = reports[-1].devices
        assert found is not None  # The last round is measured.
        rows.append(
            {
                "part": "skew",
                "kind": local or "fedavg",
                "seed": config.seed,
                "accuracy": found.mean,
                "accuracy_worst": found.worst,
                "accuracy_spread": found.spread,
                "bytes_up": sum(report.bytes_up for report in reports),
                "cpu_seconds": seconds,
            }
        )
    return rows


def _cameras(devices: int, seed: int) -> Task:
    """Return the digits as seen by so many cameras, each example by one of them."""
    plain = load_task("digits")
    train, test = plain.examples("train"), plain.examples("test")
    owners = np.random.default_rng([seed, 77]).integers(0, devices, len(train))
    inputs = np.stack(
        [_seen(image, int(owner)) for image, owner in zip(train.inputs[:], owners, strict=True)]
    )
    seen = Examples(inputs, train.targets, owners)
    return Task("cameras", "resnet8", lambda: seen, lambda: test)


def _seen(image: NDArray[np.float32], camera: int) -> NDArray[np.float32]:
    """Return an image as a camera sees it: plain, negative, dim, bright, in stripes, reversed."""
    height = image.shape[-2]
    stripes = (np.arange(height) % 4 < 2)[:, None] * np.float32(2)
    changes: tuple[Callable[[NDArray[np.float32]], NDArray[np.float32]], ...] = (
        lambda x: x,
        lambda x: -x,
        lambda x: np.float32(0.2) * x + np.float32(1),
        lambda x: np.float32(3) * x - np.float32(2),
        lambda x: x + stripes,
        lambda x: np.abs(x) - np.float32(1),
    )
    return np.asarray(changes[camera % len(changes)](image), np.float32)


# The tables ----------------------------------------------------------------------------------


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines of the tables of results."""
    tune, skew = ([row for row in result["rows"] if row["part"] == part] for part in _NAMES)
    starts = np.mean([row["accuracy_start"] for row in tune])
    return [f"Accuracy of the backbone: {starts:.1%}.", "", *_tuned(tune), "", *_skewed(skew)]


def _tuned(rows: Rows) -> list[str]:
    """Return a line for each way to train, at each learning rate and at its best."""
    rates = sorted({row["lr"] for row in rows})
    kinds = {kind: _by(rows, "kind", kind) for kind in _NAMES["tune"]}
    best = {kind: max(rates, key=_accuracy_at(each)) for kind, each in kinds.items()}
    whole = _by(kinds["all"], "lr", best["all"])
    lines = []
    for kind, each in kinds.items():
        found = _by(each, "lr", best[kind])
        least, mean = _kept(found, whole)
        means = " | ".join(f"{_accuracy_at(each)(rate):.1%}" for rate in rates)
        shares = f"{mean:.1%} | {least:.1%} | {_costs(found, whole)}"
        lines.append(f"| {_NAMES['tune'][kind]} | {means} | {shares} |")
    columns = " | ".join(f"lr {rate}" for rate in rates)
    head = f"| backbone | {columns} | of the best of all | least seed | uplink | processor time |"
    return markdown.table(head, lines)


def _skewed(rows: Rows) -> list[str]:
    lines = []
    for kind, name in _NAMES["skew"].items():
        found = _by(rows, "kind", kind)
        accuracy, worst = ([row[key] for row in found] for key in ("accuracy", "accuracy_worst"))
        lines.append(
            f"| {name} | {np.mean(accuracy):.1%} | {min(accuracy):.1%} to {max(accuracy):.1%} "
            f"| {np.mean(worst):.1%} | {_costs(found, _by(rows, 'kind', 'fedavg'))} |"
        )
    head = "| cameras | accuracy | of each seed | worst tenth | uplink | processor time |"
    return markdown.table(head, lines)


def _by(rows: Rows, key: str, value: object) -> Rows:
    return [row for row in rows if row[key] == value]


def _accuracy_at(rows: Rows) -> Callable[[float], float]:
    return lambda rate: float(np.mean([row["accuracy"] for row in _by(rows, "lr", rate)]))


def _kept(rows: Rows, whole: Rows) -> tuple[float, float]:
    """Return which share of others' accuracy is reached, by the worst seed and in the mean."""
    pairs = [(row["accuracy"], other["accuracy"]) for row, other in zip(rows, whole, strict=True)]
    found, wanted = zip(*pairs, strict=True)
    return min(a / b for a, b in pairs), sum(found) / sum(wanted)


def _costs(rows: Rows, whole: Rows) -> str:
    """Return uplink and seconds as shares of others'."""
    up, seconds = (
        sum(row[key] for row in rows) / sum(row[key] for row in whole)
        for key in ("bytes_up", "cpu_seconds")
    )
    return f"{up:.2%} | {seconds:.0%}"


_NAMES = {
    "tune": {
        "all": "all trained",
        "norm": "`--train norm`",
        "norm+head": "`--train norm+head`",
    },
    "skew": {
        "fedavg": "FedAvg",
        "norm": "`--local norm`",
        "head": "`--local head`",
    },
}
"""Part -> kind -> what it is called."""
