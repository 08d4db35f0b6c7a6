"""A ClientApp around a user's own training function, for `fedkit.flower.strategy`.

    def train(model, config, context):
        loader = DataLoader(my_data(context), batch_size=32, shuffle=True)
        return my_training_loop(model, loader, lr=config["lr"])

    app = sparse_client(Net, train, data=my_data)

Their loop and their optimiser stay; masks are kept around them. `@app.evaluate()` and what else a
ClientApp takes may be added to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, DataError
from fedkit.core.lookup import theirs
from fedkit.device.round import Device
from fedkit.flower.client_app import add_answers
from fedkit.flower.strategy import CONFIG, RUN
from fedkit.tasks import sources
from fedkit.tasks.task import Examples, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

Train = Callable[["nn.Module", Mapping[str, Any], Context], float]
"""(model, the strategy's train_config, context) -> mean training loss; trains in place."""

_DEVICES = 64
"""Devices whose data a process keeps at hand, where it stands for many."""

_held: dict[tuple[int, int], Examples] = {}
"""By run and device. Not in the app: Ray sends a copy of that with every message."""


def partition_id(context: Context) -> int:
    """Return which device a simulated node is."""
    try:
        return int(context.node_config["partition-id"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the node config is {dict(context.node_config)}, without a number partition-id; give "
            "sparse_client an `index` that says which device this is, from 0"
        ) from error


def sparse_client(
    model: Callable[[], nn.Module],
    train: Train,
    data: Callable[[Context], Examples | Dataset[Any]],
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    index: Callable[[Context], int] = partition_id,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a ClientApp that trains sparse.

    Args:
        model: Makes the model; the same as the strategy's.
        train: Trains the model in place for a round, on the device's own data, and returns the
            mean loss.
        data: Returns the device's training examples, for what is asked besides training: which
            candidate suits them, and which pruned weights have the largest gradients. The same
            at each call; a torch data set of (input, target) is taken as it is.
        loss: (outputs, targets) -> scalar tensor, the strategy's.
        index: Which device a node is, from 0, each once.
        mods: Flower's, around every answer. They see sparse messages; those that expect whole
            models, as its own for differential privacy, do not fit.
    """
    app = ClientApp(mods=list(mods))

    def device_of(message: Message, context: Context) -> Device:
        from fedkit.engine.own_loop import OwnLoopEngine

        config, others = _configs(message)
        device = index(context)
        engine = OwnLoopEngine(model(), loss, lambda module: train(module, others, context))
        return Device(device, _examples(data, device, context), engine, config)

    add_answers(app, device_of)
    return app


def _examples(
    data: Callable[[Context], Examples | Dataset[Any]], device: int, context: Context
) -> Examples:
    """Return a device's data, made once in a process that stands for few devices."""
    key = context.run_id, device
    if key not in _held:
        with theirs("data of the ClientApp", DataError):
            found: object = data(context)
        from torch.utils.data import Dataset

        if isinstance(found, Dataset):
            found = sources.torch_dataset(found)  # type: ignore[arg-type]  # it has a length
        if not isinstance(found, Examples):
            raise DataError(
                f"data of the ClientApp returned a {type(found).__name__}; it must return a torch "
                "Dataset or fedkit.Examples: see fedkit.tasks.sources"
            )
        while len(_held) >= _DEVICES:
            del _held[next(iter(_held))]
        _held[key] = found
    return _held[key]


def _configs(message: Message) -> tuple[RunConfig, dict[str, Any]]:
    """Return the run's configuration and the rest of the train config."""
    try:
        others = dict(message.content.config_records[CONFIG])
        return make_config(json.loads(str(others.pop(RUN)))), others
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "a message came without a run's configuration; the ServerApp must run a strategy of "
            "fedkit.flower.strategy of this version"
        ) from error
