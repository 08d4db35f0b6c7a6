"""A user's own ServerApp and ClientApp: their loop and our masks, as a loop that masks itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import message_size_mod
from torch import nn
from torch.utils.data import TensorDataset

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, FleetError, TaskError
from fedkit.device.round import Device
from fedkit.engine.base import GradientSums, LocalTraining
from fedkit.engine.own_loop import OwnLoopEngine
from fedkit.engine.torch import TorchEngine, drawn_from, one_thread
from fedkit.flower import sparse_client as client_module
from fedkit.flower.sparse_client import sparse_client
from fedkit.flower.strategy import FedTiny, SparseStrategy, _ModelServer
from fedkit.methods.registry import resolve
from fedkit.server.rounds import LocalFleet, Report, run_rounds
from fedkit.sparse.state import ModelState
from fedkit.tasks import digits
from fedkit.tasks.task import Examples, cross_entropy
from tests.fleet.grids import ScriptedGrid
from tests.sets import slow

HOW = LocalTraining(1, 8, lr=0.1, momentum=0.0, weight_decay=0.0)  # of which loops know nothing
NODES = 3
ROUNDS = 4
SETTINGS: dict[str, Any] = {
    "density": 0.3,
    "development_share": 0.5,
    "adjust_every": 1,
    "adjust_stop": 3,
    "pool_size": 2,
}


@pytest.fixture(autouse=True)
def other_run() -> None:
    """All runs here have one number."""
    client_module._held.clear()


class Net(nn.Module):
    """A user's model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        return out


def share(index: int) -> Examples:
    return digits.train_data().take(np.arange(60) + 60 * index)


def batches(data: Examples) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.from_numpy(data.inputs), torch.from_numpy(data.targets)
    for rows in torch.randperm(len(data)).split(20):
        yield x[rows], y[rows]


Optimiser = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def loop_of(make: Optimiser) -> Callable[[nn.Module, Mapping[str, Any], Context], float]:
    """Return a training function as people write it."""

    def train(model: nn.Module, config: Mapping[str, Any], context: Context) -> float:
        optimiser, losses = make(model.parameters()), []
        with one_thread():
            for x, y in batches(share(int(context.node_config["partition-id"]))):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
        return sum(losses) / len(losses)

    return train


class MasksItself(TorchEngine):
    """The slow reference: the same loop, which multiplies gradients with masks by hand."""

    index = 0

    def train(
        self,
        state: ModelState,
        examples: Examples,
        how: LocalTraining,
        seed: int,
        gradient_sums: GradientSums | None = None,
    ) -> tuple[ModelState, float]:
        with one_thread(), drawn_from(seed):
            model = self.module(state).train()
            assert isinstance(model, Net)
            model.norm.reset_running_stats()
            model.norm.momentum = None
            named, losses = dict(model.named_parameters()), []
            optimiser = sgd(model.parameters())
            for x, y in batches(examples):
                optimiser.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                losses.append(loss.item())
                for name, mask in state.masks.items():
                    gradient = named[name].grad
                    assert gradient is not None
                    if gradient_sums is not None:
                        before = gradient_sums.get(name, np.float32(0))
                        gradient_sums[name] = before + gradient.numpy()
                    gradient.mul_(torch.from_numpy(mask))
                optimiser.step()
            return self._read(state.masks), sum(losses) / len(losses)


def first_model() -> Net:
    torch.manual_seed(3)
    return Net()


def app_of(train: Any = None, **changes: Any) -> ClientApp:
    given: dict[str, Any] = {
        "model": Net,
        "train": train or loop_of(sgd),
        "data": lambda context: share(int(context.node_config["partition-id"])),
    }
    return sparse_client(**{**given, **changes})


class AnsweringGrid(ScriptedGrid):
    """Nodes in this process, which also answer Flower's own messages."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(list(self.push_messages(messages)))


def grid_of(app: ClientApp) -> AnsweringGrid:
    contexts = [
        Context(1, 100 + index, {"partition-id": index}, RecordDict(), {}) for index in range(NODES)
    ]

    def node(own: Context) -> Callable[[Message], Message]:
        return lambda message: app(message, own)

    return AnsweringGrid({context.node_id: node(context) for context in contexts})


def started(strategy: SparseStrategy, app: ClientApp, **given: Any) -> Any:
    arrays = ArrayRecord(first_model().state_dict())
    return strategy.start(grid_of(app), arrays, ROUNDS, timeout=0.5, **given)


def reference(method: str, **changes: Any) -> list[Report]:
    own = {"devices": NODES, "rounds": ROUNDS, "deadline": 0.5}
    config = resolve(make_config({**SETTINGS, **own, **changes, "method": method}))
    engine, data = MasksItself(first_model(), cross_entropy), own_data(method)
    server_engine = TorchEngine(first_model(), cross_entropy)
    devices = [Device(index, share(index), engine, config) for index in range(NODES)]
    server = _ModelServer(config, server_engine, (1, 8, 8))
    return list(run_rounds(server, LocalFleet(devices), data))


def own_data(method: str) -> Examples | None:
    return share(5) if method == "prunefl" else None


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("fedtiny", {}),
        ("prunefl", {"uplink_bits": 4, "server_epochs": 1, "sparse_epochs": 1}),
        slow(("feddst", {})),
        slow(("ssfl", {})),
        slow(("dense", {"density": 1.0})),
        slow(("fedtiny", {"wire": "fp16", "bn_merge": "exact"})),
    ],
)
def test_a_users_loop_trains_as_one_that_masks_itself(method: str, changes: dict[str, Any]) -> None:
    settings = {**SETTINGS, **changes}
    settings |= {"input_shape": (1, 8, 8), "server_data": own_data(method)}
    strategy = SparseStrategy(Net, method, fraction_evaluate=0, **settings)
    result, steps = started(strategy, app_of()), reference(method, **changes)
    final, found = steps[-1].state, result.arrays.to_torch_state_dict()
    for name, value in {**final.weights, **final.stats}.items():
        np.testing.assert_array_equal(found[name].numpy(), value)
    metrics = result.train_metrics_clientapp
    for step in steps[1:]:
        if step.phase == "round":
            assert metrics[step.round]["train_loss"] == step.loss
            assert metrics[step.round]["density"] == step.density
            assert metrics[step.round]["bytes_up"] == step.bytes_up


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
        lambda p: torch.optim.Rprop(p, lr=0.01),
    ],
    ids=["AdamW", "Adam", "RMSprop", "Rprop"],
)
def test_pruned_weights_stay_zero_under_any_optimiser(make: Optimiser) -> None:
    strategy = FedTiny(Net, fraction_evaluate=0, **SETTINGS)
    result = started(strategy, app_of(loop_of(make)))
    arrays = result.arrays.to_torch_state_dict()
    weights = [arrays[name] for name in ("conv.weight", "fc.weight")]
    kept = sum(int((weight != 0).sum()) for weight in weights)
    density = result.train_metrics_clientapp[ROUNDS]["density"]
    assert kept / sum(weight.numel() for weight in weights) <= density <= 0.3
    assert density > 0.29


def test_an_optimiser_that_moves_pruned_weights_is_mended() -> None:
    def noisy(model: nn.Module) -> float:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape))
        return 1.0

    engine = OwnLoopEngine(first_model(), cross_entropy, noisy)
    state = engine.initial_state()
    masks = {
        name: np.random.default_rng(0).random(m.shape) < 0.5 for name, m in state.masks.items()
    }
    start = ModelState(state.weights, state.stats, masks)
    trained, _ = engine.train(start, share(0), HOW, seed=0)
    for name, mask in masks.items():
        assert not trained.weights[name][~mask].any()
        assert (trained.weights[name][mask] != state.weights[name][mask]).all()
    again, _ = engine.train(start, share(0), HOW, seed=0)
    np.testing.assert_array_equal(again.weights["fc.weight"], trained.weights["fc.weight"])


def test_configs_and_evaluation_are_flowers_own() -> None:
    seen: list[float] = []

    def train(model: nn.Module, config: Mapping[str, Any], context: Context) -> float:
        seen.append(config["lr"])
        assert "fedkit" not in config
        return 1.0

    app = app_of(train)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = Net()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        assert message.content.config_records["config"]["split"] == "test"
        found = MetricRecord({"accuracy": 0.5, "num-examples": 10})
        return Message(RecordDict({"metrics": found}), reply_to=message)

    rounds: list[int] = []

    def at_the_server(number: int, arrays: ArrayRecord) -> MetricRecord:
        rounds.append(number)
        return MetricRecord({"zeros": int((arrays.to_torch_state_dict()["fc.weight"] == 0).sum())})

    result = started(
        FedTiny(Net, **SETTINGS),
        app,
        train_config=ConfigRecord({"lr": 0.25}),
        evaluate_config=ConfigRecord({"split": "test"}),
        evaluate_fn=at_the_server,
    )
    assert seen == [0.25] * NODES * ROUNDS
    assert rounds == [0, 0, 1, 2, 3, 4]
    assert list(result.evaluate_metrics_clientapp) == [1, 2, 3, 4]
    assert result.evaluate_metrics_clientapp[4]["accuracy"] == 0.5
    assert result.evaluate_metrics_serverapp[4]["zeros"] > 1000


def test_an_app_travels_to_workers_and_holds_data_once() -> None:
    """Ray sends a copy of the app with every message."""
    from ray import cloudpickle

    made: list[int] = []

    def data(context: Context) -> Examples:
        made.append(context.node_id)
        return share(0)

    context = Context(1, 100, {"partition-id": 0}, RecordDict(), {})
    copies = [cloudpickle.loads(cloudpickle.dumps(app_of(data=data))) for _ in range(2)]
    assert all(isinstance(copy, ClientApp) for copy in copies)
    for _ in copies:
        client_module._examples(data, 0, context)
    assert made == [100]
    for device in range(100):
        client_module._examples(data, device, context)
    assert len(client_module._held) == client_module._DEVICES


def test_a_fraction_trains() -> None:
    app, trained = None, list[int]()

    def train(model: nn.Module, config: Mapping[str, Any], context: Context) -> float:
        trained.append(context.node_id)
        return 1.0

    app = app_of(train)
    started(FedTiny(Net, fraction_train=0.34, fraction_evaluate=0, **SETTINGS), app)
    assert len(trained) == ROUNDS


# What does not fit


def test_settings_that_do_not_fit_are_refused_at_once() -> None:
    for given, message in (
        ({"densitty": 0.1}, "densitty"),
        ({"density": 2.0}, "density is 2"),
        ({"method": "no-such"}, "no-such"),
        ({"rounds": 3}, "rounds cannot be set here"),
        ({"fraction_train": 0.0}, "fraction_train is 0.0"),
    ):
        with pytest.raises(Exception, match=message) as caught:
            SparseStrategy(Net, **given)
        assert isinstance(caught.value, ConfigError)


def test_arrays_of_another_model_are_refused() -> None:
    other = ArrayRecord(nn.Linear(2, 2).state_dict())
    with pytest.raises(ConfigError, match="not those of Net"):
        FedTiny(Net).start(grid_of(app_of()), other, timeout=0.5)


def test_too_few_nodes_end_the_run() -> None:
    arrays = ArrayRecord(first_model().state_dict())
    with pytest.raises(FleetError, match="3 nodes connected within 0 s, and min_available"):
        FedTiny(Net, min_available_nodes=5).start(grid_of(app_of()), arrays, timeout=0.3)


def raising(*_: Any) -> float:
    raise ZeroDivisionError("in my loop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": raising}, "the training loop failed with ZeroDivisionError: in my loop"),
        ({"train": lambda *_: None}, "the training loop failed with TypeError"),
        ({"train": lambda *_: float("nan")}, "loss became nan"),
        ({"data": lambda _: [1, 2]}, "returned a list; it must return"),
        ({"data": raising}, "data of the ClientApp failed with ZeroDivisionError"),
        ({"index": lambda _: 7}, "answers as device 7|device must be|7"),
    ],
)
def test_what_a_client_does_wrong_is_told_at_the_server(
    changes: dict[str, Any], message: str
) -> None:
    app = app_of(**changes)
    with pytest.raises(FleetError, match=message):
        started(SparseStrategy(Net, "magnitude", density=0.3, fraction_evaluate=0), app)


def test_a_node_without_a_number_is_told_what_to_give() -> None:
    nodes = {1: lambda message: app_of()(message, Context(1, 1, {}, RecordDict(), {}))}
    arrays = ArrayRecord(first_model().state_dict())
    strategy = SparseStrategy(Net, "magnitude", min_available_nodes=1, density=0.3)
    with pytest.raises(FleetError, match="without a number partition-id; give sparse_client"):
        strategy.start(AnsweringGrid(nodes), arrays, timeout=0.5)


def test_a_message_of_another_strategy_is_refused() -> None:
    message_of_flower = RecordDict({"arrays": ArrayRecord(first_model().state_dict())})
    app, context = app_of(), Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    message = Message(message_of_flower, dst_node_id=1, message_type="train")
    message.metadata.__dict__["_src_node_id"] = 1
    message.metadata.__dict__["_message_id"] = "m"
    reply = app(message, context)
    assert "must run a strategy of fedkit" in (reply.error.reason or "")


def test_loops_raise_what_they_are() -> None:
    engine = OwnLoopEngine(first_model(), cross_entropy, raising)
    with pytest.raises(TaskError, match="the training loop failed"):
        engine.train(engine.initial_state(), share(0), HOW, 0)


def test_data_may_be_a_torch_dataset_and_flowers_mods_look_at_sparse_messages() -> None:
    seen: list[int] = []

    def look(message: Message, context: Context, answer: Any) -> Message:
        reply: Message = answer(message, context)
        seen.append(
            sum(len(a.data) for r in reply.content.array_records.values() for a in r.values())
        )
        return reply

    def dataset(context: Context) -> TensorDataset:
        data = share(int(context.node_config["partition-id"]))
        return TensorDataset(torch.from_numpy(data.inputs), torch.from_numpy(data.targets))

    def after(app: ClientApp) -> Any:
        strategy = FedTiny(Net, fraction_evaluate=0, **SETTINGS)
        return started(strategy, app).arrays.to_torch_state_dict()

    plain = after(app_of())
    client_module._held.clear()
    found = after(app_of(data=dataset, mods=[look, message_size_mod]))
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy())
    dense = sum(value.numel() * 4 for value in plain.values())
    assert len(seen) == NODES * (ROUNDS + 2) and max(seen[-NODES:]) < 0.5 * dense
