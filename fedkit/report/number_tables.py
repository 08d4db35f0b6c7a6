"""The numbers of a report: tables of a part of them, and files of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkit.report import artifact_tables
from fedkit.report.device_charts import partitions
from fedkit.report.downloads import File
from fedkit.report.markup import folded, plain, table
from fedkit.report.reading import LayerDensity, Named, Run
from fedkit.report.thin import spread
from fedkit.server.shares import Shares

_STEP_ROWS, _DEVICE_ROWS, _MOST_CELLS = 1_000, 400, 8_000
"""Of the tables of all runs together, at most."""

_CLASS_COLUMNS = 20
_LEAST_ROWS = 10

_STEP_KEYS = ("phase", "round", "accuracy", "loss", "density", "bytes_down", "bytes_up")
_MORE_KEYS = (
    *("message_bytes_down", "message_bytes_up", "seconds", "epsilon", "epsilon_known"),
    *("devices_mean", "devices_spread", "devices_worst", "devices_least", "devices_lower"),
    *("devices_median", "devices_upper", "devices_most", "devices_measured"),
)


def numbers(told: Named) -> str:
    """Return tables of steps, layers, partitions and devices; each says what it leaves out."""
    makers = (_step_tables, _layer_tables, _moved_table, _share_tables, _part_table, _device_tables)
    return "".join(make(told) for make in makers)


def files(told: Named) -> list[File]:
    """Return what the tables are parts of, with the longest last; empty ones are left out."""
    makers = (_device_file, _part_file, _layer_file, _moved_file, _share_file, _step_file)
    found = [*artifact_tables.files(told), *(make(told) for make in makers)]
    return [file for file in found if file.count]


def _title(what: str, shown: int, all_of_them: int, unit: str) -> str:
    part = f" ({shown:,} of {all_of_them:,} {unit})" if shown < all_of_them else ""
    return f"{what}{part}"


# Steps -----------------------------------------------------------------------------------------


def _step_tables(told: Named) -> str:
    there = [(run, name) for run, name in told if run.steps]
    return "".join(_step_table(run, name, len(there)) for run, name in there)


def _step_file(told: Named) -> File:
    steps = [(run, name, step) for run, name in told for step in run.steps]
    keys = (*_STEP_KEYS, *_MORE_KEYS)

    def row(number: int) -> list[object]:
        run, name, step = steps[number]
        return [name, run.metric.name, *map(step.get, keys)]

    return File("steps", "steps", ("run", "metric", *keys), len(steps), row)


def _step_table(run: Run, name: str, runs: int) -> str:
    shown = spread(len(run.steps), max(_LEAST_ROWS, _STEP_ROWS // runs))
    more = [key for key in _MORE_KEYS if any(key in step for step in run.steps)]
    keys = (*_STEP_KEYS, *more)
    head = [run.metric.name if key == "accuracy" else key.replace("_", " ") for key in keys]
    rows = [[run.steps[each].get(key) for key in keys] for each in shown]
    title = _title(f"Steps of {name}", len(shown), len(run.steps), "steps")
    return folded(title, table(f"Steps of {plain(name)}", head, rows))


# Layers ----------------------------------------------------------------------------------------


def _layer_tables(told: Named) -> str:
    file = _layer_file(told)
    if not file.count:
        return ""
    shown = spread(file.count, max(_LEAST_ROWS, _MOST_CELLS // len(file.head)))
    title = _title("Density of each layer", len(shown), file.count, file.what)
    caption = "Kept weights of each layer in the last checkpoint"
    return folded(title, table(caption, file.head, map(file.row, shown)))


def _layer_file(told: Named) -> File:
    there = [(run, name) for run, name in told if run.layers]
    found = [{layer.name: layer for layer in run.layers} for run, _ in there]
    layers = list({name: layer for each in reversed(found) for name, layer in each.items()}.items())
    columns = [f"{name}, {what}" for _, name in there for what in ("kept", "share")]

    def row(number: int) -> list[object]:
        name, layer = layers[number]
        return [name, " x ".join(map(str, layer.shape)), *_kept(found, name)]

    return File("layers", "layers", ["layer", "shape", *columns], len(layers), row)


def _kept(found: Sequence[Mapping[str, LayerDensity]], name: str) -> list[object]:
    there = [each.get(name) for each in found]
    return [v for layer in there for v in ((layer.kept, layer.density) if layer else (None, None))]


_MOVED_KEYS = ("kept", "pruned", "grown", "of_first")


def _moved_table(told: Named) -> str:
    file = _moved_file(told)
    if not file.count:
        return ""
    shown = spread(file.count, _STEP_ROWS)
    title = _title("Weights that moved", len(shown), file.count, "lines")
    caption = "Weights of layers that each step changed"
    head = [name.replace("_", " ") for name in file.head]
    return folded(title, table(caption, head, map(file.row, shown)))


def _moved_file(told: Named) -> File:
    """Return a row per step and layer that it changed."""
    cells = [
        (name, step, layer, counts)
        for run, name in told
        for step in run.steps
        for layer, counts in step.get("layers", {}).items()
    ]

    def row(number: int) -> list[object]:
        name, step, layer, counts = cells[number]
        return [name, step["round"], step["phase"], layer, *map(counts.get, _MOVED_KEYS)]

    head = ("run", "round", "phase", "layer", *_MOVED_KEYS)
    return File("moved", "layers that a step changed", head, len(cells), row)


# Partitions ------------------------------------------------------------------------------------


def _share_tables(told: Named) -> str:
    groups = partitions(told)
    if not groups:
        return ""
    most = max(_LEAST_ROWS, _DEVICE_ROWS // len(groups))
    return "".join(_share_table(shares, names, most) for shares, names in groups)


def _share_file(told: Named) -> File:
    """Return a row per device and class that it has, or per device of data without classes."""
    groups = partitions(told)
    cells = [_held(shares) for shares, _ in groups]
    ends = np.cumsum([len(each) for each in cells])

    def row(number: int) -> list[object]:
        group = int(np.searchsorted(ends, number, side="right"))
        names, held = groups[group][1], cells[group]
        device, target, count = held[number - int(ends[group]) + len(held)].tolist()
        target = target if len(groups[group][0].classes) else None
        return [", ".join(names), device, target, count]

    what = "counts of the examples of a class on a device"
    return File(
        "examples", what, ("runs", "device", "class", "examples"), sum(map(len, cells)), row
    )


def _held(shares: Shares) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return device, class and count of what each device holds, int64 [n, 3]."""
    if not len(shares.classes):
        count = len(shares.devices)
        return np.stack([np.arange(count), np.zeros(count, np.int64), shares.sizes], axis=1)
    devices, classes = np.nonzero(shares.counts)
    counts = shares.counts[devices, classes]
    return np.stack([devices, shares.classes[classes], counts], axis=1)


def _share_table(shares: Shares, names: Sequence[str], most: int) -> str:
    devices = spread(len(shares.devices), most)
    classes = spread(len(shares.classes), _CLASS_COLUMNS)
    head = ["device", "examples", *(f"class {shares.classes[each]}" for each in classes)]
    rows = [
        [str(each), int(shares.sizes[each]), *shares.counts[each, classes].tolist()]
        for each in devices
    ]
    what = f"Examples on each device: {', '.join(names)}"
    title = _title(what, len(devices), len(shares.devices), "devices")
    title = _title(title, len(classes), len(shares.classes), "classes")
    return folded(title, table(what, head, rows))


def _part_table(told: Named) -> str:
    file = _part_file(told)
    if not file.count:
        return ""
    shown = spread(file.count, _DEVICE_ROWS)
    title = _title("Rounds in which devices took part", len(shown), file.count, file.what)
    head = [each.replace("_", " ") for each in file.head]
    return folded(title, table("Rounds of each device", head, map(file.row, shown)))


def _part_file(told: Named) -> File:
    rows = [(name, *each) for run, name in told for each in run.took_part.items()]
    head = ("run", "device", "rounds_asked")
    return File("participation", "devices", head, len(rows), rows.__getitem__)


# Devices ---------------------------------------------------------------------------------------

_DEVICE_KEYS = ("answers", "refused", "failed", "absent", "bytes_up", "peak_bytes", "quarantined")


def _device_tables(told: Named) -> str:
    there = [(run, name) for run, name in told if run.devices]
    if not there:
        return ""
    most = max(_LEAST_ROWS, _DEVICE_ROWS // len(there))
    return "".join(_device_table(run, name, most) for run, name in there)


def _device_file(told: Named) -> File:
    devices = [(name, index, device) for run, name in told for index, device in run.devices.items()]

    def row(number: int) -> list[object]:
        name, index, device = devices[number]
        return [name, index, *map(vars(device).get, _DEVICE_KEYS)]

    return File("devices", "devices", ("run", "device", *_DEVICE_KEYS), len(devices), row)


def _device_table(run: Run, name: str, most: int) -> str:
    numbers = list(run.devices)
    shown = [numbers[each] for each in spread(len(numbers), most)]
    rows = [[str(each), *map(vars(run.devices[each]).get, _DEVICE_KEYS)] for each in shown]
    head = ("device", *(key.replace("_", " ") for key in _DEVICE_KEYS))
    title = _title(f"Devices of {name}", len(shown), len(numbers), "devices")
    found = folded(title, table(f"Devices of {plain(name)}", head, rows))
    if not run.told:
        return found
    last = [[e["event"], e.get("device"), e.get("phase"), e.get("reason")] for e in run.told]
    reasons = table("Last refusals and failures", ("event", "device", "phase", "reason"), last)
    return found + folded(f"What devices of {name} were refused for", reasons)
