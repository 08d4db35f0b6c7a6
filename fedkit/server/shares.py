"""Which examples each simulated device holds, as a file of the run folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedkit.tasks.task import Examples

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Shares:
    """How the training data of a task is shared out.

    Attributes:
        server: Which examples of the training data are the server's own, int64 [m].
        devices: Which each device holds, in the order it sees them; int64 [n] each.
        classes: Distinct targets, ascending, int64 [c]; none where targets are not class indices.
        counts: Examples of each class on each device, int64 [devices, c].
    """

    server: Indices
    devices: tuple[Indices, ...]
    classes: Indices
    counts: Indices

    @classmethod
    def of(cls, train: Examples, server: Indices, devices: Sequence[Indices]) -> Shares:
        """Return what is known of shares of the training data."""
        classes = train.classes if train.labelled else np.empty(0, np.int64)
        held = [np.searchsorted(classes, train.targets[share]) for share in devices]
        counts = [np.bincount(each, minlength=len(classes)) for each in held if len(classes)]
        table = np.array(counts, np.int64).reshape(len(devices), len(classes))
        return cls(server, tuple(devices), classes, table)

    @property
    def sizes(self) -> Indices:
        """Number of examples of each device, int64 [devices]."""
        return np.array([len(share) for share in self.devices], np.int64)

    def pack(self) -> bytes:
        """Return an .npz: the attributes, with the devices' `indices` in turn and their `ends`."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            server=self.server,
            indices=np.concatenate(self.devices),
            ends=np.cumsum(self.sizes),
            classes=self.classes,
            counts=self.counts,
        )
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Shares:
        """Invert `pack`.

        Raises:
            ValueError: It is not what `pack` returns; `KeyError` and errors of zip files too.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            devices = np.split(found["indices"], found["ends"][:-1])
            return cls(found["server"], tuple(devices), found["classes"], found["counts"])

    def same(self, other: Shares) -> bool:
        """Whether each device holds the same examples, as far as their numbers tell."""
        return (
            np.array_equal(self.server, other.server)
            and len(self.devices) == len(other.devices)
            and all(map(np.array_equal, self.devices, other.devices))
            and np.array_equal(self.counts, other.counts)
        )
