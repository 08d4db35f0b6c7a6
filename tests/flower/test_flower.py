"""The Flower side against the real thing: SuperLink, simulated SuperNodes, `flwr run sim/app`."""

from __future__ import annotations

import io
import tomllib
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import FedkitError, WireError
from fedkit.flower.client_app import MESSAGE_TYPES, make_client_app
from fedkit.flower.fleet import OWN_NUMBERS
from fedkit.flower.processes import tail
from fedkit.flower.run_config import SERVER_KEYS, SIMULATION_KEYS
from fedkit.flower.wire import from_records, lone_message, packet_bytes, to_records
from fedkit.methods.interface import Phase
from fedkit.methods.registry import METHODS
from fedkit.server.checkpoint import RunFolder
from fedkit.server.record import record
from fedkit.server.rounds import LocalFleet, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.wire.messages import Packet
from sim.scenario import make_scenario
from sim.simulation import APP, FlowerSimulation
from tests.flower.same_bits import assert_same_bits
from tests.processes import HANG
from tests.sets import slow

BOARD = Path(__file__).resolve().parents[2] / "fedkit" / "flower" / "apps" / "board"

CONFIG = make_config(
    {
        "devices": 2,
        "rounds": 2,
        "epochs": 1,
        "examples_per_device": 40,
        "adjust_every": 1,
        "adjust_stop": 2,
        "server_epochs": 1,
        "sparse_epochs": 2,
    }
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RunFolder]:
    """The same run in this process and behind a real SuperLink."""
    path = tmp_path_factory.mktemp("runs")
    scenario = make_scenario(CONFIG)
    here = record(scenario, scenario.local_fleet(), path / "here", lambda step: None)
    with FlowerSimulation(path / "log") as simulation:
        simulation.submit(CONFIG, path / "flower", workers=2, backend="processes").wait(HANG)
    assert (path / "flower" / "metrics.jsonl").is_file(), tail(path / "log", 60)
    return here, RunFolder.open(path / "flower")


def test_flower_run_equals_in_process_run_bit_for_bit(runs: tuple[RunFolder, RunFolder]) -> None:
    here, flower = (folder.load() for folder in runs)
    assert here.round == flower.round == CONFIG.rounds
    assert_same_bits(here.state, flower.state)


@pytest.mark.slow
def test_baselines_too_run_on_ray_as_in_process(tmp_path: Path) -> None:
    """A method that asks devices before training, and one whose masks come from devices."""
    configs = {name: CONFIG.changed(method=name) for name in ("ssfl", "feddst")}
    with FlowerSimulation(tmp_path / "log") as simulation:
        for name, config in configs.items():
            simulation.submit(config, tmp_path / name, workers=2).wait(HANG)
    for name, config in configs.items():
        scenario = make_scenario(config)
        *_, last = run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)
        flower = RunFolder.open(tmp_path / name).load()
        assert flower.round == config.rounds, tail(tmp_path / "log", 60)
        assert_same_bits(flower.state, last.state)


class ClientApps(LocalFleet):
    """A fleet of ClientApps, each with a context of its own; no SuperLink is between."""

    def __init__(self, scenario: Scenario) -> None:
        devices = range(len(scenario.devices))
        super().__init__([scenario.device(index) for index in devices])
        self._app = make_client_app(lambda context: scenario.device(context.node_id))
        self._contexts = [Context(1, node, {}, RecordDict(), {}) for node in devices]

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        message_type = MESSAGE_TYPES[phase]
        replies = [
            from_records(self._app(lone_message(request, message_type), context).content)
            for context in (self._contexts[index] for index in asked)
        ]
        return [without_own(reply) for reply in replies]


def without_own(packet: Packet) -> Packet:
    kept = {key: value for key, value in packet.numbers.items() if key not in OWN_NUMBERS}
    return Packet(packet.arrays, kept)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ssfl", {}),
        ("prunefl", {"uplink_bits": 4}),
        *(slow((name, {})) for name in ("fedtiny-vanilla", "prunefl", "feddst")),
        slow(("feddst", {"uplink_bits": 4})),
        slow(("fedtiny-vanilla", {"precision": "int8"})),
    ],
)
def test_the_client_app_answers_what_every_kind_of_method_asks(
    name: str, changes: dict[str, Any]
) -> None:
    """Whatever is kept on a device between rounds lives in Flower's context."""
    of_method = {"method": name, "rounds": 3, "adjust_every": 2, "adjust_stop": 3}
    config = CONFIG.changed(**{**of_method, **changes})
    scenario = make_scenario(config)
    here, apps = (
        list(run_rounds(scenario.server(), fleet, scenario.server_data))
        for fleet in (scenario.local_fleet(), ClientApps(scenario))
    )
    assert (METHODS[name].survey is not None) == (name == "ssfl")
    assert len(here) == len(apps) == 2 + config.rounds
    for one, other in zip(here, apps, strict=True):
        assert_same_bits(one.state, other.state)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)
    changed = any((here[3].state.masks[n] != m).any() for n, m in here[1].state.masks.items())
    assert changed == (name != "ssfl")


def test_metrics_are_equal_too(runs: tuple[RunFolder, RunFolder]) -> None:
    of_transport = {"seconds", "message_bytes_down", "message_bytes_up"}
    here, flower = (
        [{k: v for k, v in line.items() if k not in of_transport} for line in folder.metrics()]
        for folder in runs
    )
    assert here == flower
    assert len(here) == CONFIG.rounds + 2


def test_message_bytes_are_the_payload_and_a_small_envelope(
    runs: tuple[RunFolder, RunFolder],
) -> None:
    for line in runs[1].metrics()[1:]:
        messages = CONFIG.devices * (2 if line["phase"] == "selection" else 1)
        for way in ("down", "up"):
            envelope = line[f"message_bytes_{way}"] - line[f"bytes_{way}"]
            assert 0 < envelope < 3000 * messages


FAILING = CONFIG.changed(lr=1e20, epochs=3, server_epochs=0, sparse_epochs=0)


def test_a_failing_device_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    scenario = make_scenario(FAILING)
    with pytest.raises(FedkitError, match="lower lr"):
        record(scenario, scenario.local_fleet(), tmp_path / "failing", lambda step: None)
    assert "lower lr" in (tmp_path / "failing" / "error.txt").read_text()


@pytest.mark.slow
def test_the_reason_of_a_failing_device_comes_through_flower(tmp_path: Path) -> None:
    with FlowerSimulation(tmp_path / "log") as simulation:
        simulation.submit(FAILING, tmp_path / "failing", workers=2).wait(HANG)
    reason = (tmp_path / "failing" / "error.txt").read_text()
    assert "devices failed in phase 'train'" in reason
    assert "lower lr" in reason


@pytest.mark.parametrize("app", [APP, BOARD], ids=["sim", "board"])
def test_the_apps_run_config_has_every_key_and_default(app: Path) -> None:
    settings = tomllib.loads((app / "pyproject.toml").read_text())
    keys = settings["tool"]["flwr"]["app"]["config"]
    own = {**SIMULATION_KEYS, "devices": 0} if app == APP else {}
    assert keys == {**SERVER_KEYS, **RunConfig().as_dict(), **own}


class RecordsFleet(LocalFleet):
    """Every packet, and all that a device remembers, goes through Flower's records and back."""

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        for index in asked:
            self._memories.put(index, from_records(to_records(self.memory(index))))
        replies = super().answers(phase, from_records(to_records(request)), asked)
        return [from_records(to_records(reply)) for reply in replies]


@pytest.mark.parametrize(
    "changes", [slow({}), slow({"wire": "fp16"}), {"precision": "int8", "uplink_bits": 4}], ids=str
)
def test_a_run_through_records_equals_one_without_bit_for_bit(changes: dict[str, Any]) -> None:
    config = make_config({**CONFIG.as_dict(), **changes})
    scenario = make_scenario(config)
    devices = [scenario.device(index) for index in range(config.devices)]
    fleets = (LocalFleet(devices), RecordsFleet(devices))
    here, there = (
        list(run_rounds(scenario.server(), fleet, scenario.server_data)) for fleet in fleets
    )
    assert len(here) == len(there) == config.rounds + 2
    for mine, theirs in zip(here, there, strict=True):
        assert (mine.accuracy, mine.loss, mine.bytes_up) == (
            theirs.accuracy,
            theirs.loss,
            theirs.bytes_up,
        )
        for kind in ("weights", "stats", "masks"):
            ours, others = getattr(mine.state, kind), getattr(theirs.state, kind)
            assert all(ours[name].tobytes() == others[name].tobytes() for name in ours), kind


PACKET = Packet(
    {
        "a": np.arange(3, dtype=np.uint8),
        "b": np.zeros((2, 0), np.float32),
        "c": np.array([[0.1, 65504.0, -1e-7]], np.float16),
        "d": np.arange(6, dtype=np.int32).reshape(2, 3),
        "e": np.array([0.5]),
    },
    {"n": 3, "x": 0.1, "digest": "ab"},
)


def test_packets_survive_records() -> None:
    packet = PACKET
    back = from_records(to_records(packet))
    assert back.numbers == packet.numbers
    for name, array in packet.arrays.items():
        assert back.arrays[name].dtype == array.dtype
        assert np.array_equal(back.arrays[name], array)
    assert from_records(to_records(Packet({}))) == Packet({})


def records_of(**arrays: Array) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord(arrays)})


def array_of(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (3,), stype, data)


@settings(max_examples=300)
@given(st.sampled_from(list(PACKET.arrays)), st.data())
def test_an_array_with_an_altered_byte_is_refused_or_as_large_as_it_was(
    name: str, data: st.DataObject
) -> None:
    sent = Array(PACKET.arrays[name]).data
    altered = bytearray(sent)
    altered[data.draw(st.integers(0, len(sent) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        packet = from_records(records_of(x=array_of(bytes(altered))))
    except WireError as error:
        assert "array 'x' cannot be read" in str(error)
    else:
        assert packet.arrays["x"].nbytes == PACKET.arrays[name].nbytes


@pytest.mark.parametrize("name", PACKET.arrays)
def test_every_truncated_array_is_refused(name: str) -> None:
    data = Array(PACKET.arrays[name]).data
    for length in range(len(data)):
        with pytest.raises(WireError, match="array 'x' cannot be read"):
            from_records(records_of(x=array_of(data[:length])))


def npy(descr: str, shape: tuple[int, ...]) -> bytes:
    """A .npy file of that header and 16 bytes."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    format: Any = np.lib.format
    format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(16)


HOSTILE = {
    "a billion values": npy("<f4", (10**9,)),
    "a product that wraps to what is there": npy("<f4", (2**32, 2**32, 4)),
    "negative lengths": npy("<f4", (-2, -2)),
    "values of no size": npy("|V0", (10**9,)),
    "a text of 4 GB": npy("<U1000000000", (1,)),
    "objects": npy("|O", (2,)),
    "truth values": npy("|b1", (16,)),
    "a zip": b"PK\x03\x04" + bytes(60),
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_array_is_refused_before_it_costs_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"array 'x' cannot be read as .npy .* altered"):
            from_records(records_of(x=array_of(data)))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_array_of_another_library_is_refused() -> None:
    data = Array(PACKET.arrays["a"]).data
    assert from_records(records_of(x=array_of(data))).arrays["x"].tolist() == [0, 1, 2]
    with pytest.raises(WireError, match="'x' cannot be read"):
        from_records(records_of(x=array_of(data, "torch.tensor")))


def test_a_list_is_no_number() -> None:
    with pytest.raises(WireError, match="'n' arrived as list"):
        from_records(RecordDict({"numbers": ConfigRecord({"n": [1, 2]})}))


def test_packet_bytes_grow_with_the_payload() -> None:
    small, large = (Packet({"a": np.arange(n, dtype=np.uint8)}) for n in (100, 10_100))
    assert packet_bytes(large, "train") - packet_bytes(small, "train") in range(10_000, 10_010)


@pytest.mark.parametrize("app", [APP, BOARD], ids=["sim", "board"])
def test_the_app_folder_holds_only_what_flower_ships(app: Path) -> None:
    shipped = {path.name for path in app.iterdir() if path.name != "__pycache__"}
    assert shipped == {"pyproject.toml", "client_app.py", "server_app.py"}
