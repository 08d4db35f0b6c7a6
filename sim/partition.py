"""Split one data set over the devices of a simulated fleet.

The partitioners are those of flwr-datasets and keep their names and meaning. They run on labels
and owners alone; inputs are touched only when a share is cut out. A split equals what
`FederatedDataset(seed=seed, partitioners={...: partitioner(seed=seed)})` gives: all examples are
shuffled with the seed, then partitioned. Where flwr-datasets would quietly leave classes out or
hand over a share that cannot be trained on, an error says so.
"""

from __future__ import annotations

import importlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.core.text import listed
from fedkit.tasks.targets import describe
from fedkit.tasks.task import Examples

Kind = Literal["iid", "dirichlet", "pathological", "natural-id"]

_BY_LABEL = ("dirichlet", "pathological")
"""Kinds that share examples out by their class."""


@dataclass(frozen=True)
class Partition:
    """How examples are split over devices.

    Attributes:
        kind: `iid`: shares of equal size, drawn at random. `dirichlet`: each class is divided by
            proportions from a symmetric Dirichlet distribution. `pathological`: each device holds
            a fixed number of classes, the first of them in turn, the others at random.
            `natural-id`: one device per owner, in ascending order of owners.
        devices: Number of devices; for `natural-id` the number of owners.
        alpha: Concentration of `dirichlet`, > 0; the smaller, the fewer classes per device.
        min_size: Examples that each device of `dirichlet` gets at least; it draws up to 11 times.
        classes_per_device: Classes on each device of `pathological`.
        seed: Seed of every random choice, >= 0.
        single_class: Whether a device may hold examples of one class only. With `pathological`
            and one class per device it always may.
    """

    kind: Kind
    devices: int
    alpha: float = 0.5
    min_size: int = 10
    classes_per_device: int = 2
    seed: int = 0
    single_class: Literal["error", "allow"] = "error"


def split(examples: Examples, how: Partition) -> list[Examples]:
    """Return the share of each device; see `assign` for order and errors."""
    return [examples.take(indices) for indices in assign(examples, how)]


def assign(examples: Examples, how: Partition) -> list[NDArray[np.int64]]:
    """Return which examples each device holds, as indices in the order the device sees them.

    Args:
        examples: The data of the whole fleet, [n] examples.
        how: The partition.

    Returns:
        One int64 array per device. Together they hold each of 0 .. n - 1 exactly once. The same
        arguments always give the same arrays.

    Raises:
        DataError: The partition is impossible, or a device would hold no example, or one class
            only where that is not allowed.
    """
    if how.kind not in _CHECKS:
        raise DataError(f"unknown partition {how.kind!r}; allowed: {', '.join(_CHECKS)}")
    _check_fleet(examples, how)
    _CHECKS[how.kind](examples, how)
    shares = _run_partitioner(examples, how)
    _check_coverage(examples, shares, how)
    _check_shares(examples, shares, how)
    return shares


def _run_partitioner(examples: Examples, how: Partition) -> list[NDArray[np.int64]]:
    # Imported here because it takes seconds, and a device that is given its share needs none of it.
    from datasets import Dataset

    # What datasets.Dataset.shuffle(seed) does; as a plain gather it reads ten times faster later.
    order = np.random.default_rng(how.seed).permutation(len(examples))
    columns: dict[str, Any] = {"index": order}
    # Ranks order like what they stand for, and no label or name is beyond what the columns hold.
    if how.kind in _BY_LABEL:
        columns["label"] = _ranks(examples.targets)[order]
    if how.kind == "natural-id":
        columns["owner"] = _ranks(_owners(examples))[order]
    partitioner = _make_partitioner(how)
    try:
        with _quiet():
            partitioner.dataset = Dataset.from_dict(columns)
            parts = [partitioner.load_partition(device) for device in range(how.devices)]
            return [np.asarray(part.with_format("numpy")[:]["index"], np.int64) for part in parts]
    except ValueError as error:
        raise DataError(_refusal(examples, how)) from error


def _ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each value how many distinct ones are smaller, int64 [n]."""
    ranks: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return ranks


def _make_partitioner(how: Partition) -> Any:
    flower = _partitioners()
    match how.kind:
        case "iid":
            return flower.IidPartitioner(how.devices)
        case "dirichlet":
            return flower.DirichletPartitioner(
                how.devices,
                partition_by="label",
                alpha=float(how.alpha),
                min_partition_size=how.min_size,
                seed=how.seed,
            )
        case "pathological":
            return flower.PathologicalPartitioner(
                how.devices,
                partition_by="label",
                num_classes_per_partition=how.classes_per_device,
                class_assignment_mode="first-deterministic",
                seed=how.seed,
            )
        case "natural-id":
            return flower.NaturalIdPartitioner(partition_by="owner")


def _partitioners() -> Any:
    """Import Flower's partitioners, and seaborn, which takes seconds, when a plot is drawn."""
    if "seaborn" in sys.modules:
        return importlib.import_module("flwr_datasets.partitioner")
    later = ModuleType("seaborn")
    later.__dict__["__getattr__"] = lambda name: getattr(importlib.import_module("seaborn"), name)
    sys.modules["seaborn"] = later
    try:
        return importlib.import_module("flwr_datasets.partitioner")
    finally:
        del sys.modules["seaborn"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warning of each repeated draw; errors still raise."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _owners(examples: Examples) -> NDArray[Any]:
    """Return owners as int or str, [n]; empty where the data set names none."""
    return np.array([] if examples.owners is None else examples.owners.tolist())


def _check_labels(examples: Examples, how: Partition) -> None:
    if not examples.labelled:
        raise DataError(
            f"the {how.kind} partition shares examples out by class, and these have targets "
            f"{describe(examples.targets)} instead of one class index each; share them out at "
            "random (--partition iid), or by owner (--partition natural-id)"
        )


def _check_fleet(examples: Examples, how: Partition) -> None:
    if how.seed < 0:
        raise DataError(f"seed of the partition is {how.seed}; it must be 0 or more")
    if not 1 <= how.devices <= len(examples):
        raise DataError(
            f"cannot split {len(examples)} examples over {how.devices} devices; each device needs "
            "at least one example, and a fleet one device: change devices or bring more data"
        )


def _check_nothing(examples: Examples, how: Partition) -> None:
    pass


def _check_alpha(examples: Examples, how: Partition) -> None:
    _check_labels(examples, how)
    if not (math.isfinite(how.alpha) and how.alpha > 0):
        raise DataError(
            f"alpha of the dirichlet partition is {how.alpha}; it must be a finite number above 0, "
            "such as 0.5 (for shares without skew use the iid partition)"
        )


def _check_class_number(examples: Examples, how: Partition) -> None:
    _check_labels(examples, how)
    classes = len(examples.classes)
    if not 1 <= how.classes_per_device <= classes:
        raise DataError(
            f"classes_per_device is {how.classes_per_device}, but the data has {classes} classes; "
            f"choose 1 to {classes}"
        )


def _check_owners(examples: Examples, how: Partition) -> None:
    named = _owners(examples)
    if len(named) == 0:
        raise DataError(
            "the natural-id partition needs to know who owns each example, and this data set does "
            "not say; set `owners` of its Examples or choose another partition"
        )
    if named.dtype.kind not in "iuU" or named.ndim != 1:
        raise DataError(
            f"owners of the examples have dtype {named.dtype} and shape {named.shape}; they must "
            "be whole numbers or text, one for each"
        )
    owners = np.unique(named)
    if len(owners) != how.devices:
        raise DataError(
            f"the data has {len(owners)} owners for {how.devices} devices; the natural-id "
            f"partition makes one device of each owner: set devices to {len(owners)}"
        )


_CHECKS: dict[str, Callable[[Examples, Partition], None]] = {
    "iid": _check_nothing,
    "dirichlet": _check_alpha,
    "pathological": _check_class_number,
    "natural-id": _check_owners,
}


def _refusal(examples: Examples, how: Partition) -> str:
    """Say why the partitioner of flwr-datasets gave up."""
    if how.kind == "dirichlet":
        return (
            f"no dirichlet draw with alpha {how.alpha} gave each of {how.devices} devices the "
            f"{how.min_size} examples of min_size ({len(examples)} in all, 11 draws); raise "
            "alpha, lower min_size or use fewer devices"
        )
    _, counts = np.unique(examples.targets, return_counts=True)
    return (
        f"the {how.kind} partition needs one example of a class for every device that holds the "
        f"class, and the smallest class has {counts.min()} for {how.devices} devices with "
        f"{how.classes_per_device} classes each; lower devices or classes_per_device"
    )


def _check_coverage(
    examples: Examples, shares: Sequence[NDArray[np.int64]], how: Partition
) -> None:
    """Refuse to leave classes out, which only the pathological partition can do."""
    if how.kind != "pathological":
        return
    held = examples.targets[np.concatenate(shares)]
    left_out = np.setdiff1d(examples.classes, held)
    if len(left_out) > 0:
        raise DataError(
            f"the {how.kind} partition leaves {listed('class', left_out.tolist())} on no device "
            f"({how.devices} devices with {how.classes_per_device} of {len(examples.classes)} "
            "classes each); every class must be held: use as many devices as classes, raise "
            "classes_per_device or change the seed"
        )


def _check_shares(examples: Examples, shares: Sequence[NDArray[np.int64]], how: Partition) -> None:
    empty = [device for device, share in enumerate(shares) if len(share) == 0]
    if empty:
        raise DataError(
            f"the {how.kind} partition leaves {listed('device', empty)} without examples; every "
            "device needs some: set min_size to 1 or more"
        )
    if not examples.labelled:
        return
    classes = [len(np.unique(examples.targets[share])) for share in shares]
    single = [device for device, count in enumerate(classes) if count == 1]
    if single and not _single_class_allowed(how):
        raise DataError(
            f"{listed('device', single)} would hold examples of one class only ({how.kind} "
            f"partition); a device needs two classes to learn to tell them apart: "
            f"{_MORE_CLASSES[how.kind]} or allow it (--single-class allow)"
        )


def _single_class_allowed(how: Partition) -> bool:
    asked_for = how.kind == "pathological" and how.classes_per_device == 1
    return asked_for or how.single_class == "allow"


_MORE_CLASSES: dict[str, str] = {
    "iid": "use fewer devices",
    "dirichlet": "raise alpha",
    "pathological": "raise classes_per_device",
    "natural-id": "leave those owners out",
}
