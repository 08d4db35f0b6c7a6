"""Strategies for a ServerApp of a user's own: any method of fedkit, in the place of FedAvg.

    strategy = FedTiny(Net, density=0.1)
    result = strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=20)

The ClientApp is what `fedkit.flower.sparse_client.sparse_client` makes of a training function.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, FleetError
from fedkit.engine.base import Engine
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import to_records
from fedkit.methods.registry import resolve
from fedkit.methods.schedule import kept_per_layer
from fedkit.server.participation import check_participation
from fedkit.server.rounds import Report, Server, run_rounds
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from fedkit.wire.messages import Packet
from fedkit.wire.validation import largest_reply

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, RUN = "config", "fedkit"
"""Record of a message that holds the train config, and its key that holds the run's."""

_POLL_SECONDS = 0.2

_TAKEN = {"rounds", "deadline", "method", "devices_per_round"}
_TAKEN |= {"device_eval", "validation_share", "backbone"}


class SparseStrategy(FedAvg):
    """A method of fedkit as a strategy of Flower: masks, sparse messages, merging.

    Federated evaluation is FedAvg's own: messages `evaluate` with dense arrays, for the ClientApp's
    `@app.evaluate()`. Mods of the ClientApp see sparse messages; those that expect every weight in
    them, such as Flower's own for differential privacy, do not fit (see `dp_clip`).

    Args:
        model: Makes the model; its class, for example.
        method: What is run: a name, or `package.module:name`.
        loss: (outputs, targets) -> scalar tensor; candidates are ranked by it.
        input_shape: Shape of one input, which `bn_merge="exact"` and SynFlow need.
        server_data: Examples of the server's own, for methods that score or tune there: the dense
            model is pre-trained on them (`server_epochs`), and the first sparse one tuned.
        fraction_train: Share of the nodes that train in a round.
        fraction_evaluate: Share of the nodes that evaluate after each; 0 asks none.
        min_available_nodes: Nodes that are waited for.
        **settings: Keys of `RunConfig`, like `density`, `epochs`, `uplink_bits`, `seed`. `rounds`,
            `devices` and `deadline` follow from how it is started.

    Raises:
        ConfigError: There is no such setting, or a value breaks its rule.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        method: str = "fedtiny",
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        input_shape: tuple[int, ...] = (),
        server_data: Examples | None = None,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_available_nodes: int = 2,
        **settings: Any,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_available_nodes=min_available_nodes,
            min_evaluate_nodes=min(2, min_available_nodes),
        )
        if not 0 < fraction_train <= 1:
            raise ConfigError(f"fraction_train is {fraction_train}; it must be above 0, up to 1")
        if taken := sorted(_TAKEN & set(settings)):
            raise ConfigError(
                f"{', '.join(taken)} cannot be set here: rounds and deadline are num_rounds and "
                "timeout of start, devices_per_round follows from fraction_train, devices measure "
                "by the ClientApp's own evaluate, and backbone is the initial arrays"
            )
        self._model, self._loss, self._shape = model, loss, input_shape
        self._server_data = server_data
        self._settings = {**settings, "method": method}
        self._config(max(1, min_available_nodes), rounds=1, timeout=1.0)  # what is wrong is told

    def summary(self) -> None:
        """Log nothing more than Flower does."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds; see `flwr.serverapp.strategy.Strategy.start`.

        Args:
            grid: The nodes.
            initial_arrays: The dense model to begin with, as `ArrayRecord(model.state_dict())`.
            num_rounds: Rounds of training.
            timeout: Seconds that nodes have to answer.
            train_config: Sent with every message that is fedkit's, for the training function.
            evaluate_config: Sent with messages to evaluate.
            evaluate_fn: (round, dense arrays) -> metrics, called before the first round, after the
                first masks and after each round.

        Returns:
            The final model as dense arrays with zeros, and metrics by round; those of training are
            `train_loss`, `density`, `bytes_down` and `bytes_up`. Round 0 is the first sparse model.

        Raises:
            FedkitError: The run cannot begin, or too few nodes answer.
        """
        engine = self._engine(initial_arrays)
        config = self._config(_wait(grid, self.min_available_nodes, timeout), num_rounds, timeout)
        kept_per_layer(config, engine.layout.prunable_shapes)
        check_participation(config)
        fleet = _ConfiguredFleet(grid, config, largest_reply(engine.layout, config))
        fleet.train_config = dict(train_config or {})
        server, result = _ModelServer(config, engine, self._shape), Result()
        for report in run_rounds(server, fleet, self._server_data):
            result.arrays = ArrayRecord(server.module(report.state).state_dict())
            if evaluate_fn and (found := evaluate_fn(report.round, result.arrays)) is not None:
                result.evaluate_metrics_serverapp[report.round] = found
            result.train_metrics_clientapp[report.round] = _metrics(report)
            if report.phase == "round":
                self._evaluate(grid, report.round, timeout, evaluate_config, result)
        return result

    def _engine(self, arrays: ArrayRecord) -> Engine:
        from fedkit.engine.torch import TorchEngine

        model = self._model()
        try:
            model.load_state_dict(arrays.to_torch_state_dict())
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the initial arrays are not those of {type(model).__name__} ({error}); give "
                "ArrayRecord(model.state_dict())"
            ) from error
        return TorchEngine(model, self._loss)

    def _config(self, nodes: int, rounds: int, timeout: float) -> RunConfig:
        own = {"devices": nodes, "rounds": rounds, "deadline": timeout, **self._settings}
        if self.fraction_train < 1:
            asked = max(1, round(self.fraction_train * int(own["devices"])))
            own["devices_per_round"] = asked
        return resolve(make_config(own))

    def _evaluate(
        self,
        grid: Grid,
        number: int,
        timeout: float,
        config: ConfigRecord | None,
        result: Result,
    ) -> None:
        if self.fraction_evaluate == 0:
            return
        asked = self.configure_evaluate(number, result.arrays, config or ConfigRecord(), grid)
        replies = grid.send_and_receive(messages=asked, timeout=timeout)
        if (found := self.aggregate_evaluate(number, replies)) is not None:
            result.evaluate_metrics_clientapp[number] = found


class FedTiny(SparseStrategy):
    """FedTiny (Huang et al., 2023): adaptive BN selection and progressive pruning."""

    def __init__(self, model: Callable[[], nn.Module], **settings: Any) -> None:
        super().__init__(model, "fedtiny", **settings)


class _ConfiguredFleet(FlowerFleet):
    """Sends the run's configuration with every message, as its devices have no other way to it."""

    train_config: dict[str, Any]

    def records(self, packet: Packet) -> RecordDict:
        records = to_records(packet)
        run = {RUN: json.dumps(self._config.as_dict())}
        records[CONFIG] = ConfigRecord({**self.train_config, **run})
        return records


class _ModelServer(Server):
    """A server that has a model and no data; others measure."""

    def __init__(self, config: RunConfig, engine: Engine, shape: tuple[int, ...]) -> None:
        self.config, self.engine = config, engine
        self.test = Examples(np.zeros((1, *shape), np.float32), np.zeros(1, np.int64))

    def module(self, state: ModelState) -> nn.Module:
        """Return a copy of the model, loaded with `state`."""
        from fedkit.engine.torch import TorchEngine

        assert isinstance(self.engine, TorchEngine)
        return copy.deepcopy(self.engine.module(state))

    def _accuracy(self, state: ModelState) -> None:
        """Measure nothing."""


def _metrics(report: Report) -> MetricRecord:
    loss = {} if report.loss is None else {"train_loss": report.loss}
    figures = {key: vars(report)[key] for key in ("density", "bytes_down", "bytes_up")}
    return MetricRecord({**loss, **figures})


def _wait(grid: Grid, nodes: int, timeout: float) -> int:
    """Return how many nodes there are, once there are so many."""
    deadline = time.monotonic() + timeout
    while len(found := list(grid.get_node_ids())) < nodes:
        if time.monotonic() > deadline:
            raise FleetError(
                f"{len(found)} nodes connected within {timeout:.0f} s, and min_available_nodes is "
                f"{nodes}; start more, or lower it"
            )
        time.sleep(_POLL_SECONDS)
    return len(found)
