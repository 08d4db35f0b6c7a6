"""A device's own data, divided: what it trains on, and what it measures on."""

from __future__ import annotations

import numpy as np

from fedkit.config import RunConfig
from fedkit.core.errors import DataError
from fedkit.device.round import Device
from fedkit.engine.base import Engine
from fedkit.sparse.counts import round_share
from fedkit.tasks.task import Examples


def device_of(index: int, examples: Examples, engine: Engine, config: RunConfig) -> Device:
    """Return a device that holds `validation_share` of its examples out of training.

    Which they are depends on the run's seed and the device alone.

    Raises:
        DataError: Too few are left to train on.
    """
    if not config.validation_share:
        return Device(index, examples, engine, config)
    count, held = len(examples), max(1, round_share(config.validation_share, len(examples)))
    if count - held < 2:
        raise DataError(
            f"device {index} has {count} example(s), and with validation_share "
            f"{config.validation_share:g} holds {held} out; norm layers need at least 2 to train "
            "on: use fewer devices, or a smaller share"
        )
    order = np.random.default_rng([config.seed, 10, index]).permutation(count)
    own, out = (examples.take(np.sort(part)) for part in (order[held:], order[:held]))
    return Device(index, own, engine, config, out)
