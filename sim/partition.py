"""Split one data set over the devices of a simulated fleet.

The partitioners are those of flwr-datasets and keep their names and meaning (`sim.partitioners` has
a row for each). They run on labels and columns alone; inputs are touched only when a share is cut
out. A split equals what `FederatedDataset(seed=seed, partitioners={...: partitioner(seed=seed)})`
gives: all examples are shuffled with the seed, then partitioned. Where flwr-datasets would quietly
leave classes out or hand over a share that cannot be trained on, an error says so.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr

import numpy as np
from numpy.typing import NDArray

from fedkit.core.errors import DataError
from fedkit.core.text import listed
from fedkit.tasks.task import Examples
from sim.partitioners import ROWS, Partition, imported

__all__ = ["Partition", "assign", "split"]


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
    if how.kind not in ROWS:
        raise DataError(f"unknown partition {how.kind!r}; allowed: {', '.join(ROWS)}")
    _check_fleet(examples, how)
    ROWS[how.kind].check(examples, how)
    shares = _run_partitioner(examples, how)
    _check_coverage(examples, shares, how)
    _check_shares(examples, shares, how)
    return shares


def _run_partitioner(examples: Examples, how: Partition) -> list[NDArray[np.int64]]:
    row = ROWS[how.kind]
    # What datasets.Dataset.shuffle(seed) does; as a plain gather it reads ten times faster later.
    order = np.random.default_rng(how.seed).permutation(len(examples))
    columns = {"index": order, "by": row.column(examples, how)[order]}
    if row.cut is not None:
        return row.cut(order, columns["by"], how)
    # Imported here because it takes seconds, and a device that is given its share needs none of it.
    from datasets import Dataset

    partitioner = row.make(imported(), how)
    try:
        with _quiet():
            partitioner.dataset = Dataset.from_dict(columns)
            parts = [partitioner.load_partition(device) for device in range(how.devices)]
            return [np.asarray(part.with_format("numpy")[:]["index"], np.int64) for part in parts]
    except ValueError as error:
        raise DataError(row.refusal(examples, how)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and the warning of each repeated draw; errors still raise."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _check_fleet(examples: Examples, how: Partition) -> None:
    if how.seed < 0:
        raise DataError(f"seed of the partition is {how.seed}; it must be 0 or more")
    if not 1 <= how.devices <= len(examples):
        raise DataError(
            f"cannot split {len(examples)} examples over {how.devices} devices; each device needs "
            "at least one example, and a fleet one device: change devices or bring more data"
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
            f"{ROWS[how.kind].more_classes} or allow it (--single-class allow)"
        )


def _single_class_allowed(how: Partition) -> bool:
    asked_for = how.kind == "pathological" and how.classes_per_device == 1
    return asked_for or how.single_class == "allow"
