"""The model of one device, where its run's folder knows what the device keeps to itself."""

from __future__ import annotations

from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.device.memory import LastingMemory
from fedkit.device.staying import own_tensors, with_own
from fedkit.engine.base import Engine
from fedkit.methods.travel import Travel
from fedkit.server.checkpoint import Checkpoint, RunFolder
from fedkit.sparse.state import ModelState
from fedkit.wire.messages import Packet


def device_state(
    folder: RunFolder, checkpoint: Checkpoint, engine: Engine, index: int
) -> ModelState:
    """Return the server's last model with a device's own tensors in it.

    Args:
        folder: Of a simulation, in which devices that keep tensors remember them.
        checkpoint: Its last.
        engine: Of the run's model.
        index: The device.

    Raises:
        ConfigError: The run has no such device, or its devices keep nothing.
        CheckpointError: The folder does not hold what this device keeps.
    """
    config = checkpoint.config
    if not config.local:
        raise ConfigError(
            f"device is {index}, and devices of the run in {folder.path} keep no tensors of their "
            "own: all have the model that is exported without --device"
        )
    if not 0 <= index < config.devices:
        raise ConfigError(f"device is {index}; the run has devices 0 to {config.devices - 1}")
    parts = Travel.of(config, engine)
    kept = LastingMemory(folder.path / "devices" / str(index))
    memory = kept.before("train", Packet({}, {"round": checkpoint.round + 1}))
    if own_tensors(parts.local, memory) is None:
        raise CheckpointError(
            f"{folder.path} does not hold what device {index} keeps to itself: it has not trained "
            "yet, or it is a real device, whose own tensors never leave it; export another one, or "
            "leave out --device for the server's model"
        )
    return with_own(parts, checkpoint.state, memory)
