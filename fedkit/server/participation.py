"""Who takes part in a round: those that are there, and of them as many as are asked.

What is drawn depends on the run's seed and the number of the round alone, so a simulation, a run
through Flower and one that goes on later ask the same devices. A private run is the exception: its
epsilon counts on a draw that nobody knows, so that comes from the operating system's entropy.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedkit.config import RunConfig
from fedkit.core.errors import ConfigError, FleetError
from fedkit.core.files import read_whole

Present = Callable[[RunConfig, int, str], NDArray[np.bool_]]
"""(run, round, text behind the kind) -> which devices are there, [devices]."""

OPENING = 0
"""The round that the exchanges before training count as."""


class Choice(NamedTuple):
    """Whom a round asks.

    Attributes:
        order: Devices that are there, in the order in which they are asked.
        taken: How many answers it takes.
        spare: Further devices that it asks.
    """

    order: list[int]
    taken: int
    spare: int = 0


def choice(config: RunConfig, number: int) -> Choice | None:
    """Return whom a round asks; None where every round asks every device.

    In a private run each device is asked by a chance of its own, `config.sampling_rate`, which is
    what its epsilon is counted for (`fedkit.server.privacy`); that may be nobody.

    Raises:
        ConfigError: See `order`.
        FleetError: See `order`.
    """
    if config.sampling_rate < 1:
        chances = np.random.default_rng().random(config.devices)
        drawn = np.flatnonzero(chances < config.sampling_rate)
        return Choice(drawn.tolist(), len(drawn))
    if (there := order(config, number)) is None:
        return None
    return Choice(there.tolist(), config.asked, config.spare)


def order(config: RunConfig, number: int) -> NDArray[np.int64] | None:
    """Return the devices that are there, in the order in which a round asks them.

    Args:
        config: The run; a round asks the first `devices_per_round` of the order.
        number: Of the round; `OPENING` before training.

    Returns:
        int64 [m], or None where every round asks every device.

    Raises:
        ConfigError: `availability` is none of the kinds.
        FleetError: No device is there.
    """
    if not config.devices_per_round and config.availability == "always":
        return None
    kind, _, text = config.availability.partition(":")
    there = _KINDS[kind](config, number, text) if kind in _KINDS else None
    if there is None:
        raise _unknown(config)
    drawn = np.random.default_rng([config.seed, 8, number]).permutation(config.devices)
    found: NDArray[np.int64] = drawn[there[drawn]].astype(np.int64)
    if not len(found):
        raise FleetError(
            f"none of {config.devices} devices is there in round {number} (availability "
            f"{config.availability}); raise it, or use more devices"
        )
    return found


def check_participation(config: RunConfig) -> None:
    """Refuse a run whose `availability` cannot be read.

    Raises:
        ConfigError: Says what it must be.
        FleetError: Before training, no device is there.
    """
    order(config, OPENING)


def _always(config: RunConfig, number: int, text: str) -> NDArray[np.bool_]:
    if text:
        raise _unknown(config)
    return np.ones(config.devices, np.bool_)


def _random(config: RunConfig, number: int, text: str) -> NDArray[np.bool_]:
    rate = _share(config, text)
    there: NDArray[np.bool_] = (
        np.random.default_rng([config.seed, 9, number]).random(config.devices) < rate
    )
    return there


def _cycle(config: RunConfig, number: int, text: str) -> NDArray[np.bool_]:
    """Day and night: each device is there for a part of each period, one after the other."""
    period, _, rate = text.partition(":")
    if not period.isdecimal() or not 0 < int(period) <= _LONGEST:
        raise _unknown(config)
    phase = np.arange(config.devices) / config.devices
    there: NDArray[np.bool_] = (number / int(period) + phase) % 1 < _share(config, rate)
    return there


def _trace(config: RunConfig, number: int, text: str) -> NDArray[np.bool_]:
    """A file of lines `device,first round,last round`."""
    there = np.zeros(config.devices, np.bool_)
    for line, (device, first, last) in enumerate(_lines(config, text), 1):
        if device >= config.devices or first > last:
            raise ConfigError(
                f"line {line} of {text} is {device},{first},{last}; it must be a device from 0 to "
                f"{config.devices - 1}, and the first and the last round in which it is there"
            )
        there[device] |= first <= number <= last
    return there


def _lines(config: RunConfig, text: str) -> list[tuple[int, int, int]]:
    try:
        content = read_whole(Path(text), _MOST_BYTES).decode()
        rows = [row for row in csv.reader(io.StringIO(content)) if row]
        if any(len(row) != 3 or not all(part.strip().isdecimal() for part in row) for row in rows):
            raise ValueError("a line is not three numbers: device,first round,last round")
        return [(int(row[0]), int(row[1]), int(row[2])) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"availability is {config.availability!r}, and {text!r} cannot be read ({error})"
        ) from error


def _share(config: RunConfig, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise _unknown(config) from None
    if not 0 < share <= 1:
        raise _unknown(config)
    return share


def _unknown(config: RunConfig) -> ConfigError:
    return ConfigError(
        f"availability is {config.availability!r}; it must be always, random:SHARE, "
        "cycle:ROUNDS:SHARE or trace:FILE, with a share above 0 and up to 1"
    )


_KINDS: dict[str, Present] = {
    "always": _always,
    "random": _random,
    "cycle": _cycle,
    "trace": _trace,
}
_LONGEST = 10**9
_MOST_BYTES = 1 << 28
