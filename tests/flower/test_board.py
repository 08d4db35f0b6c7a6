"""Real devices: SuperNodes without torch, each with data and a plan of its own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedkit.config import make_config
from fedkit.core.errors import ConfigError, DataError, EngineError, FedkitError, PlanError
from fedkit.device.data import Expected
from fedkit.device.round import Device
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.plan import load_plan, plan_digest, save_plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.flower.device_app import device_from_context
from fedkit.flower.local_superlink import SuperLink
from fedkit.flower.processes import free_port, tail, toml_pairs
from fedkit.flower.run_config import FOLDER_KEY, SERVER_KEYS
from fedkit.methods.interface import Phase
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.server.scenario import server_scenario
from fedkit.tasks.task import Examples
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from tests.processes import HANG

ROOT = Path(__file__).resolve().parents[2]
BOARD = ROOT / "fedkit" / "flower" / "apps" / "board"

CONFIG = make_config(
    {
        "devices": 2,
        "partition": "iid",
        "examples_per_device": 24,
        "test_examples": 40,
        "pool_size": 2,
        "rounds": 2,
        "epochs": 1,
        "batch_size": 12,
        "adjust_every": 1,
        "adjust_stop": 2,
        "server_epochs": 1,
        "sparse_epochs": 2,
    }
)


@dataclass(frozen=True)
class Boards:
    """What lies on the devices: a plan and the data of each."""

    plan: Path
    data: list[Path]

    def node(self, device: int) -> dict[str, str | int | float]:
        return {"plan": str(self.plan), "data": str(self.data[device]), "device": device}

    def devices(self, **keys: Any) -> list[Device]:
        return [device_from_context(context(self.node(device), **keys)) for device in (0, 1)]


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Boards:
    folder = tmp_path_factory.mktemp("boards")
    scenario = make_scenario(CONFIG)
    model = scenario.task.build_model(CONFIG.seed)
    save_plan(capture(model, scenario.test.inputs.shape[1:]), folder / "resnet8.plan")
    files = [folder / f"{device}.npz" for device in range(CONFIG.devices)]
    for file, share in zip(files, scenario.devices, strict=True):
        np.savez(file, inputs=share.inputs, targets=share.targets)
    return Boards(folder / "resnet8.plan", files)


def context(node: dict[str, Any], **keys: Any) -> Context:
    values = {**SERVER_KEYS, **CONFIG.as_dict(), **keys}
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=values)


# What a node's config says


def test_a_node_is_the_device_that_a_simulation_would_make_of_its_data(boards: Boards) -> None:
    for index, device in enumerate(boards.devices()):
        share = make_scenario(CONFIG).devices[index]
        assert (device.index, device.config) == (index, CONFIG)
        assert device.examples.inputs.tobytes() == share.inputs.tobytes()
        assert device.examples.targets.tobytes() == share.targets.tobytes()
        assert device.engine.layout == load_plan(boards.plan).layout


def test_a_device_is_made_once_per_process(boards: Boards) -> None:
    first = device_from_context(context(boards.node(0)))
    assert device_from_context(context(boards.node(0))) is first
    assert device_from_context(context(boards.node(0), seed=2)) is not first


def test_the_run_says_how_much_of_the_data_is_used(boards: Boards) -> None:
    few = device_from_context(context(boards.node(0), examples_per_device=20))
    assert len(few.examples) == 20
    every = device_from_context(context(boards.node(0), examples_per_device=0))
    assert len(every.examples) == 24


def test_a_device_says_before_training_what_its_memory_allows(
    boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    device_from_context(context(boards.node(0), memory="2MB", seed=3))
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("engine: sparse") and "within 2 MB a step" in told[0]
    assert told[1].startswith("memory: a step of 12 stores 32 bits and plans") and " ms" in told[1]
    with pytest.raises(EngineError, match=r"memory is 0\.01 MB: give more"):
        device_from_context(context(boards.node(0), memory="10kB", seed=4))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"device": None}, ConfigError, r"lacks device; it holds \['data', 'plan'\]"),
        ({"data": None}, ConfigError, "lacks data; .* start the SuperNode with --node-config"),
        ({"device": None}, ConfigError, "lacks device"),
        ({"plan": 3}, ConfigError, "plan of the node config is 3; it must be text"),
        ({"data": ""}, ConfigError, "data of the node config is ''"),
        ({"device": "0"}, ConfigError, "device of the node config is '0'; it must be a whole"),
        ({"device": True}, ConfigError, "device of the node config is True"),
        ({"device": 2}, ConfigError, r"is 2; .* 0 \.\. 1, since the run has devices=2"),
        ({"device": -1}, ConfigError, r"is -1; .* 0 \.\. 1"),
        ({"plan": "nowhere.plan"}, PlanError, "nowhere.plan"),
        ({"data": "nowhere.npz"}, DataError, "nowhere.npz cannot be read"),
    ],
)
def test_a_wrong_node_config_is_named(
    boards: Boards, change: dict[str, Any], error: type[FedkitError], message: str
) -> None:
    node = {**boards.node(0), **change}
    given = {key: value for key, value in node.items() if value is not None}
    with pytest.raises(error, match=message):
        device_from_context(context(given))


def test_a_node_without_a_plan_computes_what_a_simulation_would(boards: Boards) -> None:
    node = {key: value for key, value in boards.node(0).items() if key != "plan"}
    device = device_from_context(context(node, engine="torch"))
    assert isinstance(device.engine, TorchEngine)
    assert device.engine.layout == make_scenario(CONFIG).engine.layout
    assert isinstance(device_from_context(context(node, engine="auto")).engine, SparseEngine)


def test_a_device_trains_in_the_precision_of_the_run_and_says_so(
    boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = device_from_context(context(boards.node(0), precision="int6")).engine
    assert isinstance(engine, IntegerEngine)
    assert engine.bits == 6
    assert "engine: integer, 6 bits" in capsys.readouterr().err


def test_a_wrong_run_config_is_named(boards: Boards) -> None:
    with pytest.raises(ConfigError, match="unknown key 'epoch'"):
        device_from_context(context(boards.node(0), epoch=1))
    with pytest.raises(ConfigError, match=r"engine is 'torch', .* set engine to sparse or auto"):
        device_from_context(context(boards.node(0), engine="torch"))


def wider(share: Examples) -> Examples:
    return Examples(np.repeat(share.inputs, 3, axis=1), share.targets)


def unknown_class(share: Examples) -> Examples:
    return Examples(share.inputs, share.targets + 1)


def one_class(share: Examples) -> Examples:
    return Examples(share.inputs, np.full_like(share.targets, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"inputs have shape \(3, 8, 8\), the plan's model takes \(1, 8, 8\)"),
        (unknown_class, "targets are from .* to 10; the model has 10 classes"),
        (one_class, "class 3 only"),
    ],
)
def test_data_that_does_not_fit_the_plan_is_refused(
    boards: Boards, tmp_path: Path, change: Callable[[Examples], Examples], message: str
) -> None:
    changed = change(make_scenario(CONFIG.changed(examples_per_device=0)).devices[0])
    np.savez(tmp_path / "odd.npz", inputs=changed.inputs, targets=changed.targets)
    node = {**boards.node(0), "data": str(tmp_path / "odd.npz")}
    with pytest.raises(DataError, match=message):
        device_from_context(context(node, examples_per_device=0))


def test_a_device_takes_no_part_in_a_run_of_another_task(boards: Boards) -> None:
    node = {**boards.node(0), "task": "digits"}
    assert device_from_context(context(node)).index == 0
    with pytest.raises(DataError, match=r"holds data of task 'digits', and the run is of task 'fa"):
        device_from_context(context(node, task="fashion-mnist"))


def test_a_device_holds_what_its_server_expects(boards: Boards) -> None:
    test, digest = make_scenario(CONFIG).test, plan_digest(load_plan(boards.plan))
    right = Expected.of("digits", test, digest)
    for wrong, words in (
        (right, ""),
        (replace(right, shape=(1, 28, 28)), "inputs have shape"),
        (replace(right, scale=255 * right.scale), "not in one unit"),
        (replace(right, plan="0" * 64), "this device's plan has SHA-256"),
    ):
        asked = context(boards.node(0), expected=wrong.text())
        if words:
            with pytest.raises(DataError, match=words):
                device_from_context(asked)
        else:
            assert device_from_context(asked).index == 0


# Without torch


class Recording(LocalFleet):
    """A fleet in this process that keeps what it carried."""

    def __init__(self, devices: list[Device]) -> None:
        super().__init__(devices)
        self.requests: list[tuple[Phase, Packet]] = []
        self.replies: list[list[Packet]] = []

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        self.requests.append((phase, request))
        self.replies.append(super().answers(phase, request, asked))
        return self.replies[-1]


BOARD_PROCESS = """
import pickle, sys
from flwr.app import Context, RecordDict
from fedkit.flower.client_app import MESSAGE_TYPES
from fedkit.flower.device_app import app
from fedkit.flower.wire import from_records, lone_message

node, run, requests = pickle.load(sys.stdin.buffer)
context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)
messages = [lone_message(request, MESSAGE_TYPES[phase]) for phase, request in requests]
replies = [from_records(app(message, context).content) for message in messages]
assert "torch" not in sys.modules
sys.stdout.buffer.write(pickle.dumps(replies))
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"precision": "int8", "uplink_bits": 4}], ids=str)
def test_the_client_app_answers_a_whole_run_without_torch(
    boards: Boards, without_torch: dict[str, str], changes: dict[str, Any]
) -> None:
    run = {**CONFIG.as_dict(), **changes}
    scenario, fleet = server_scenario(make_config(run)), Recording(boards.devices(**changes))
    assert len(list(run_rounds(scenario.server(), fleet, scenario.server_data))) == 4
    ended = subprocess.run(
        [sys.executable, "-c", BOARD_PROCESS],
        input=pickle.dumps((boards.node(1), run, fleet.requests)),
        env=without_torch,
        cwd=ROOT,
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    answers = pickle.loads(ended.stdout)
    assert [phase for phase, _ in fleet.requests] == ["moments", "losses", "train", "train"]
    for answer, (_, expected) in zip(answers, fleet.replies, strict=True):
        own = {"device": 1, **{key: answer.numbers[key] for key in ("digest", "peak_bytes")}}
        assert answer.numbers == {**expected.numbers, **own}
        assert list(answer.arrays) == list(expected.arrays)
        for name, array in expected.arrays.items():
            assert answer.arrays[name].dtype == array.dtype
            assert answer.arrays[name].tobytes() == array.tobytes(), name


# A real SuperLink and real SuperNodes

DATA_MODULE = """
import importlib.util, sys
from fedkit.device.data import load_examples

def mine():
    assert importlib.util.find_spec("torch") is None and "torch" not in sys.modules
    return load_examples({path!r})
"""


def start_nodes(link: SuperLink, boards: Boards, environment: dict[str, str]) -> None:
    """Start a SuperNode per device; the data of the first comes from a function."""
    first = {**boards.node(0), "data": "board_data:mine"}
    for index, node in enumerate((first, boards.node(1))):
        link.start(
            "flower-supernode", "--insecure", "--superlink", link.address,
            "--port", str(free_port()), "--node-config", toml_pairs(node),
            home=f"node-{index}", environment=environment,
        )  # fmt: skip


@pytest.mark.slow
def test_supernodes_without_torch_run_as_in_process_bit_for_bit(
    boards: Boards, without_torch: dict[str, str], tmp_path: Path
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "board_data.py").write_text(DATA_MODULE.format(path=str(boards.data[0])))
    paths = {"PYTHONPATH": f"{without_torch['PYTHONPATH']}:{modules}"}
    log = tmp_path / "log"
    with SuperLink(log) as link:
        start_nodes(link, boards, paths)
        values = {**CONFIG.as_dict(), FOLDER_KEY: str(tmp_path / "flower")}
        link.run_app(BOARD, values).wait(HANG)
    assert (tmp_path / "flower" / "metrics.jsonl").is_file(), tail(log, 60)

    plan = load_plan(boards.plan)
    shares = make_scenario(CONFIG).devices
    fleet = LocalFleet(
        [Device(index, share, SparseEngine(plan), CONFIG) for index, share in enumerate(shares)]
    )
    here = record(server_scenario(CONFIG), fleet, tmp_path / "here", lambda step: None).load()
    there = RunFolder.open(tmp_path / "flower").load()
    assert here.round == there.round == CONFIG.rounds, tail(log, 60)
    for kind in ("weights", "stats", "masks"):
        mine, theirs = getattr(here.state, kind), getattr(there.state, kind)
        assert list(mine) == list(theirs)
        assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine), kind
