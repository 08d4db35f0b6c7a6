"""The partitions by name: a row for each partitioner of flwr-datasets.

A row says which numbers the partitioner goes by, makes it, and has what is to be said where it
cannot be done.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedkit.config import PartitionKind
from fedkit.core.errors import DataError
from fedkit.tasks.targets import describe
from fedkit.tasks.task import Examples


@dataclass(frozen=True)
class Partition:
    """How examples are split over devices.

    Attributes:
        kind: `iid`: shares of equal size, drawn at random. `dirichlet`: each class is divided by
            proportions from a symmetric Dirichlet distribution. `pathological`: each device holds
            a fixed number of classes, the first of them in turn, the others at random.
            `natural-id`: one device per owner, in ascending order of owners. `linear`, `square`,
            `exponential`: random shares whose sizes grow as d, d^2 or e^d. `continuous`: devices
            hold neighbouring values of a column, such as a time.
        devices: Number of devices; for `natural-id` the number of owners.
        alpha: Concentration of `dirichlet`, > 0; the smaller, the fewer classes per device.
        min_size: Examples that each device of `dirichlet` gets at least; it draws up to 11 times.
        classes_per_device: Classes on each device of `pathological`.
        by: Column of the examples that `natural-id` and `continuous` go by; "" is their owners.
        strictness: How much of `continuous` is the column and how much chance, 0 .. 1.
        seed: Seed of every random choice, >= 0.
        single_class: Whether a device may hold examples of one class only. With `pathological`
            and one class per device it always may.
    """

    kind: PartitionKind
    devices: int
    alpha: float = 0.5
    min_size: int = 10
    classes_per_device: int = 2
    by: str = ""
    strictness: float = 1.0
    seed: int = 0
    single_class: Literal["error", "allow"] = "error"


Indices = NDArray[np.int64]
Cut = Callable[[Indices, NDArray[Any], Partition], list[Indices]]


@dataclass(frozen=True)
class PartitionRow:
    """What there is to know of one kind.

    Attributes:
        make: Makes the partitioner of the module `flwr_datasets.partitioner`; what it goes by is
            its column "by".
        more_classes: What gives devices more classes.
        column: That column of the examples, [n].
        check: Refuses, by a `DataError`, what the partitioner would not.
        refusal: Says why the partitioner gave up.
        cut: Makes of the shuffled indices [n] and their column [n] what the partitioner would, in
            milliseconds where it takes 5 per device; None where it is needed itself.
    """

    make: Callable[[Any, Partition], Any]
    more_classes: str
    column: Callable[[Examples, Partition], NDArray[Any]] = lambda examples, how: np.zeros(
        len(examples), np.int64
    )
    check: Callable[[Examples, Partition], None] = lambda examples, how: None
    refusal: Callable[[Examples, Partition], str] = lambda examples, how: (
        f"the {how.kind} partition cannot share {len(examples)} examples out to {how.devices} "
        "devices; use fewer devices"
    )
    cut: Cut | None = None


def imported() -> Any:
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


# Columns -------------------------------------------------------------------------------------
# Ranks order like what they stand for, and no label or name is beyond what datasets can hold.


def _labels(examples: Examples, how: Partition) -> NDArray[np.int64]:
    return _ranks(examples.targets)


def _groups(examples: Examples, how: Partition) -> NDArray[np.int64]:
    return _ranks(_named(examples, how))


def _ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each value how many distinct ones are smaller, int64 [n]."""
    ranks: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return ranks


def _numbers(examples: Examples, how: Partition) -> NDArray[np.float64]:
    """Return the column about its mean, which float32 then holds to its last bit."""
    values = _named(examples, how).astype(np.float64)
    spread = np.abs(values - values.mean()).max()
    scaled: NDArray[np.float64] = (values - values.mean()) / (spread or 1)
    return scaled


def _named(examples: Examples, how: Partition) -> NDArray[Any]:
    """Return the column that the partition goes by, [n].

    Raises:
        DataError: The examples have none of that name.
    """
    if how.by == "targets":
        return examples.targets[:]
    if not how.by and examples.owners is not None:
        return np.array(examples.owners.tolist())
    if how.by in examples.columns:
        return np.array(examples.columns[how.by].tolist())
    wanted = (
        f"a column {how.by!r}, and the examples have {', '.join(examples.columns) or 'none'}"
        if how.by
        else "to know who owns each example, and this data set does not say"
    )
    raise DataError(
        f"the {how.kind} partition needs {wanted}; set `owners` or `columns` of its Examples, go "
        "by another (--partition-by) or choose another partition"
    )


# Checks --------------------------------------------------------------------------------------


def _check_labels(examples: Examples, how: Partition) -> None:
    if not examples.labelled:
        raise DataError(
            f"the {how.kind} partition shares examples out by class, and these have targets "
            f"{describe(examples.targets)} instead of one class index each; share them out at "
            "random (--partition iid), by owner (--partition natural-id) or by their size "
            "(--partition continuous --partition-by targets)"
        )


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
    named, what = _named(examples, how), how.by or "owners"
    if named.dtype.kind not in "iuU" or named.ndim != 1:
        raise DataError(
            f"{what} of the examples have dtype {named.dtype} and shape {named.shape}; they must "
            "be whole numbers or text, one for each"
        )
    owners = np.unique(named)
    if len(owners) != how.devices:
        raise DataError(
            f"the data has {len(owners)} {what} for {how.devices} devices; the natural-id "
            f"partition makes one device of each: set devices to {len(owners)}"
        )


def _check_numbers(examples: Examples, how: Partition) -> None:
    named, what = _named(examples, how), how.by or "owners"
    if named.dtype.kind not in "iuf" or named.ndim != 1 or not np.isfinite(named).all():
        raise DataError(
            f"{what} of the examples have dtype {named.dtype} and shape {named.shape}; the "
            "continuous partition goes by finite numbers, one for each"
        )
    if not 0 <= how.strictness <= 1:
        raise DataError(
            f"strictness of the continuous partition is {how.strictness}; it must be in 0 .. 1"
        )
    if len(np.unique(named)) == 1:
        raise DataError(
            f"{what} of the examples are all {named[0]}, and the continuous partition goes by "
            "their differences; go by another column (--partition-by)"
        )


# Refusals ------------------------------------------------------------------------------------


def _no_draw(examples: Examples, how: Partition) -> str:
    return (
        f"no dirichlet draw with alpha {how.alpha} gave each of {how.devices} devices the "
        f"{how.min_size} examples of min_size ({len(examples)} in all, 11 draws); raise "
        "alpha, lower min_size or use fewer devices"
    )


def _rare_class(examples: Examples, how: Partition) -> str:
    _, counts = np.unique(examples.targets, return_counts=True)
    return (
        f"the {how.kind} partition needs one example of a class for every device that holds the "
        f"class, and the smallest class has {counts.min()} for {how.devices} devices with "
        f"{how.classes_per_device} classes each; lower devices or classes_per_device"
    )


def _too_small(examples: Examples, how: Partition) -> str:
    return (
        f"the {how.kind} partition of {len(examples)} examples over {how.devices} devices leaves "
        "the first without examples; use fewer devices, or sizes that grow more slowly "
        "(--partition linear)"
    )


# Cuts ----------------------------------------------------------------------------------------


def _in_turn(order: Indices, column: NDArray[Any], how: Partition) -> list[Indices]:
    return np.array_split(order, how.devices)


def _by_group(order: Indices, column: NDArray[Any], how: Partition) -> list[Indices]:
    together = np.argsort(column, kind="stable")
    ends = np.cumsum(np.bincount(column, minlength=how.devices))[:-1]
    return np.split(order[together], ends)


# Rows ----------------------------------------------------------------------------------------

_FEWER = "use fewer devices"

ROWS: dict[PartitionKind, PartitionRow] = {
    "iid": PartitionRow(
        lambda flower, how: flower.IidPartitioner(how.devices), _FEWER, cut=_in_turn
    ),
    "dirichlet": PartitionRow(
        lambda flower, how: flower.DirichletPartitioner(
            how.devices,
            partition_by="by",
            alpha=float(how.alpha),
            min_partition_size=how.min_size,
            seed=how.seed,
        ),
        "raise alpha",
        _labels,
        _check_alpha,
        _no_draw,
    ),
    "pathological": PartitionRow(
        lambda flower, how: flower.PathologicalPartitioner(
            how.devices,
            partition_by="by",
            num_classes_per_partition=how.classes_per_device,
            class_assignment_mode="first-deterministic",
            seed=how.seed,
        ),
        "raise classes_per_device",
        _labels,
        _check_class_number,
        _rare_class,
    ),
    "natural-id": PartitionRow(
        lambda flower, how: flower.NaturalIdPartitioner(partition_by="by"),
        "leave those owners out",
        _groups,
        _check_owners,
        cut=_by_group,
    ),
    "linear": PartitionRow(
        lambda flower, how: flower.LinearPartitioner(how.devices), _FEWER, refusal=_too_small
    ),
    "square": PartitionRow(
        lambda flower, how: flower.SquarePartitioner(how.devices), _FEWER, refusal=_too_small
    ),
    "exponential": PartitionRow(
        lambda flower, how: flower.ExponentialPartitioner(how.devices), _FEWER, refusal=_too_small
    ),
    "continuous": PartitionRow(
        lambda flower, how: flower.ContinuousPartitioner(
            how.devices, partition_by="by", strictness=float(how.strictness), seed=how.seed
        ),
        "lower strictness",
        _numbers,
        _check_numbers,
    ),
}
"""Kind -> its row, for `--partition KIND`."""

assert tuple(ROWS) == get_args(PartitionKind)
