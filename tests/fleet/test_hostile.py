"""A hostile or broken device: nothing of it gets in, and the run goes on without it."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedkit.config import make_config
from fedkit.core.errors import WireError
from fedkit.flower.fleet import FlowerFleet
from fedkit.flower.wire import from_records, to_records
from fedkit.methods.interface import whole_model
from fedkit.server.events import EventLog, read_events
from fedkit.server.rounds import run_rounds
from fedkit.sparse.state import ModelState
from fedkit.wire.messages import Packet, packet_digest
from fedkit.wire.validation import admit_update, largest_reply
from sim.scenario import make_scenario
from tests.fleet.grids import Node, ScriptedGrid, client_nodes, lying, signed
from tests.fleet.partial import Partial, run
from tests.flower.same_bits import assert_same_bits
from tests.sets import slow, slow_but

CONFIG = make_config(
    {
        "devices": 4,
        "rounds": 4,
        "epochs": 1,
        "examples_per_device": 40,
        "adjust_every": 1,
        "adjust_stop": 3,
        "server_epochs": 2,
        "sparse_epochs": 2,
        "min_share": 0.5,
        "deadline": 5.0,
        "max_examples": 1000,
        "partition": "iid",
    }
)

Change = Callable[[Packet], Packet]


def array(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda packet: Packet(
        {**packet.arrays, name: change(packet.arrays[name])}, packet.numbers
    )


def number(name: str, value: Any) -> Change:
    return lambda packet: Packet(packet.arrays, {**packet.numbers, name: value})


def without(name: str) -> Change:
    return lambda packet: Packet(
        {key: value for key, value in packet.arrays.items() if key != name},
        {key: value for key, value in packet.numbers.items() if key != name},
    )


def one(value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        changed = values.copy()
        changed[len(changed) // 2] = value
        return changed

    return change


def noise(count: int) -> Any:
    return np.random.default_rng(1).integers(0, 256, count).astype(np.uint8)


LIES: dict[str, Change] = {
    "NaN": array("values", one(float("nan"))),
    "infinity": array("values", one(float("inf"))),
    "a huge norm": array("values", lambda v: v * np.float32(1e6)),
    "huge statistics": array("stats", lambda v: v + np.float32(1e20)),
    "NaN statistics": array("stats", one(float("nan"))),
    "a wrong shape": array("values", lambda v: v.reshape(1, -1)),
    "a wrong type": array("values", lambda v: v.astype(np.float64)),
    "too few values": array("values", lambda v: v[:-1]),
    "too many values": array("values", lambda v: np.append(v, np.float32(0))),
    "no values": without("values"),
    "a wrong mask": number("mask_digest", "0123456789abcdef"),
    "a mask of its own": lambda p: Packet(
        {**p.arrays, "masks": np.zeros(100, np.uint8)}, p.numbers
    ),
    "another round": lambda p: number("round", int(p.numbers["round"]) - 1)(p),
    "no round": without("round"),
    "a negative count": number("examples", -40),
    "no examples": number("examples", 0),
    "half an example": number("examples", 40.5),
    "a million examples": number("examples", 10**6),
    "a loss of NaN": number("loss", float("nan")),
    "no loss": without("loss"),
    "random bytes": lambda p: Packet(
        {name: noise(a.nbytes) for name, a in p.arrays.items()}, p.numbers
    ),
    "nothing": lambda p: Packet({}, {}),
}


@pytest.fixture(scope="module")
def scenario() -> Any:
    return make_scenario(CONFIG)


@pytest.fixture(scope="module")
def without_liar(scenario: Any) -> ModelState:
    """The last model of a run that device 2 takes no part in, but for the selection."""
    absent = {number: {2} for number in range(1, CONFIG.rounds + 1)}
    return run(scenario, Partial(scenario, absent))[-1].state


@pytest.fixture(scope="module")
def never_with_liar(scenario: Any) -> ModelState:
    """The last model of a run that device 2 takes no part in at all."""
    return run(scenario, Partial(scenario, {n: {2} for n in range(CONFIG.rounds + 1)}))[-1].state


WHOLE_RUNS = ("NaN", "a wrong mask", "another round", "random bytes")
"""Lies of each kind that go through a whole run; all others go through the checks they meet."""


@pytest.mark.parametrize("name", slow_but(WHOLE_RUNS, LIES))
def test_a_lie_is_refused_and_the_run_is_that_of_the_others(
    scenario: Any, without_liar: ModelState, name: str, tmp_path: Path
) -> None:
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")
    grid.nodes[102] = lying(grid.nodes[102], 2, LIES[name])
    steps = run(scenario, FlowerFleet(grid, CONFIG, log=log))
    assert_same_bits(steps[-1].state, without_liar)
    events = list(read_events(tmp_path / "events"))
    refused = [event for event in events if event["event"] == "refused"]
    assert [event["device"] for event in refused] == [2, 2, 2]  # then it is not asked any more
    assert [e["device"] for e in events if e["event"] == "quarantined"] == [2]
    assert all(len(event["reason"]) > 20 for event in refused)


def claims(header: str) -> RecordDict:
    """An array that claims to be larger than it is."""
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    return RecordDict(
        {
            "arrays": ArrayRecord({"values": Array("float32", (1,), "numpy.ndarray", npy)}),
            "numbers": ConfigRecord({"device": 2}),
        }
    )


RECORDS = {
    "a claim of 1 GiB": claims("{'descr': '<f4', 'fortran_order': False, 'shape': (268435456,)}\n"),
    "records of another app": RecordDict({"numbers": ConfigRecord({"device": [2, 2]})}),
    "empty records": RecordDict(),
}


@pytest.mark.parametrize("records", RECORDS.values(), ids=RECORDS)
def test_strange_records_cost_nothing_and_are_refused(
    scenario: Any, records: RecordDict, tmp_path: Path
) -> None:
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")
    grid.nodes[102] = lambda message: Message(records, reply_to=message)
    fleet = FlowerFleet(grid, CONFIG, log=log)
    tracemalloc.start()
    request = whole_model(empty(scenario)).changed(number("round", 1))
    answers = fleet.exchange("train", request, lambda packet: packet)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    assert len(answers) == 3
    refused = [e["node"] for e in read_events(tmp_path / "events") if e["event"] == "refused"]
    assert refused == ["102"]


def empty(scenario: Any) -> ModelState:
    state: ModelState = scenario.engine.initial_state()
    return state


@pytest.mark.parametrize(
    "error",
    [
        zlib.error("bad"),
        *(slow(e) for e in (ValueError("no UUID"), RuntimeError("no object"), KeyError(1))),
        slow(RecursionError()),
    ],
    ids=repr,
)
def test_bytes_that_cannot_even_be_unpacked_are_the_devices_fault(
    scenario: Any, never_with_liar: ModelState, tmp_path: Path, error: Exception
) -> None:
    class Unpacking(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = super().pull_messages(message_ids)
            if any(reply.metadata.src_node_id == 102 for reply in found):
                raise error
            return found

    grid, log = Unpacking(client_nodes(scenario)), EventLog(tmp_path / "events")
    steps = run(scenario, FlowerFleet(grid, CONFIG, log=log))
    assert_same_bits(steps[-1].state, never_with_liar)
    refused = [e["node"] for e in read_events(tmp_path / "events") if e["event"] == "refused"]
    assert refused == ["102"] * 3


def test_a_superlink_that_is_gone_ends_the_run(scenario: Any) -> None:
    class Gone(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise httpx.ConnectError("connection refused")

    with pytest.raises(httpx.ConnectError):
        run(scenario, FlowerFleet(Gone(client_nodes(scenario)), CONFIG))


def test_a_node_that_says_it_is_another_device_is_refused(
    scenario: Any, never_with_liar: ModelState, tmp_path: Path
) -> None:
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")

    def impostor(node: Node) -> Node:
        def answer(message: Message) -> Message | None:
            reply = node(message)
            assert reply is not None
            return Message(to_records(signed(from_records(reply.content), 0)), reply_to=message)

        return answer

    grid.nodes[102] = impostor(grid.nodes[102])
    given = {100: 0, 101: 1, 102: 2, 103: 3}
    steps = run(scenario, FlowerFleet(grid, CONFIG, indices=given, log=log))
    assert_same_bits(steps[-1].state, never_with_liar)
    reasons = [e["reason"] for e in read_events(tmp_path / "events") if e["event"] == "refused"]
    assert len(reasons) == 3 and "answers as device 0, which it is not" in reasons[0]


@pytest.mark.parametrize("peak", ["much", float("nan"), [1]], ids=str)
def test_memory_that_is_no_number_ends_in_no_log(scenario: Any, tmp_path: Path, peak: Any) -> None:
    grid, log = ScriptedGrid(client_nodes(scenario)), EventLog(tmp_path / "events")
    honest = grid.nodes[102]

    def odd(message: Message) -> Message | None:
        reply = honest(message)
        assert reply is not None
        record = reply.content.config_records["numbers"]
        record["peak_bytes"] = peak
        return Message(reply.content, reply_to=message)

    grid.nodes[102] = odd
    request = whole_model(empty(scenario)).changed(number("round", 1))
    FlowerFleet(grid, CONFIG, log=log).exchange("train", request, lambda packet: packet)
    events = {e.get("node", e.get("device")): e for e in read_events(tmp_path / "events")}
    if isinstance(peak, list):
        assert events["102"]["event"] == "refused"
    else:
        assert events[2]["event"] == "answer" and events[2]["peak_bytes"] == 0


def test_a_reply_larger_than_any_of_this_model_is_not_even_read(scenario: Any) -> None:
    grid = ScriptedGrid(client_nodes(scenario))
    largest = largest_reply(scenario.engine.layout, CONFIG)
    grid.nodes[102] = lying(
        grid.nodes[102], 2, array("values", lambda v: np.zeros(largest // 4 + 1, np.float32))
    )
    seen: list[str] = []

    def log(event: str, **fields: Any) -> None:
        seen.extend([fields["reason"]] if event == "refused" else [])

    run(scenario, FlowerFleet(grid, CONFIG, largest, log=log))
    assert len(seen) == 3 and all("this model's have" in reason for reason in seen)


# Thousands of altered replies


def applies(lie: Change, packet: Packet) -> bool:
    """Whether it changes something that this packet has."""
    try:
        return packet_digest(lie(packet)) != packet_digest(packet)
    except KeyError:
        return False


def altered(packet: Packet, rng: np.random.Generator) -> Iterator[tuple[Packet, bool]]:
    """Altered packets without end, and whether the device signs what it altered.

    What is signed breaks a rule by its making. A flipped bit in a value may be a number like any
    other; only the digest tells it from what the device made.
    """
    lies = [lie for lie in LIES.values() if applies(lie, packet)]
    for turn in itertools.count():
        arrays = {name: array.copy() for name, array in packet.arrays.items()}
        if turn % 2:
            yield lies[rng.integers(len(lies))](Packet(arrays, packet.numbers)), True
            continue
        name = list(arrays)[rng.integers(len(arrays))]
        flat = np.frombuffer(bytearray(arrays[name].tobytes()), np.uint8)
        kind = rng.integers(3)
        if kind == 0:
            flat[rng.integers(len(flat))] ^= np.uint8(rng.integers(1, 256))
        elif kind == 1:
            flat = flat[: len(flat) - arrays[name].itemsize * rng.integers(1, 4)]
        else:
            flat = np.concatenate([flat, flat[: arrays[name].itemsize]])
        arrays[name] = flat.view(arrays[name].dtype)
        yield Packet(arrays, packet.numbers), False


@pytest.mark.parametrize("bits", [slow(0), 4])
@pytest.mark.parametrize("count", slow_but((600,), (600, 10_000)))
def test_of_many_altered_replies_none_gets_in(scenario: Any, count: int, bits: int) -> None:
    config = CONFIG.changed(uplink_bits=bits)
    device = replace(scenario.device(2), config=config)
    dense = empty(scenario)
    rng = np.random.default_rng(0)
    masks = {name: rng.random(mask.shape) < 0.05 for name, mask in dense.masks.items()}
    sent, layout = dense.with_masks(masks), scenario.engine.layout
    request = whole_model(sent).whole()
    request = Packet(request.arrays, {**request.numbers, "round": 1})
    honest, _ = device.handle("train", request, Packet({}))
    layers = scenario.server().method.layers(config, layout.prunable, 1)

    grid = ScriptedGrid({node: lambda message: None for node in range(4)})
    fleet = FlowerFleet(grid, config, largest_reply(layout, config))

    def validated(packet: Packet) -> None:
        message = Message(RecordDict(), dst_node_id=2, message_type="train")
        _, opened = fleet.open(2, Message(to_records(packet), reply_to=message))
        admit_update(opened, layout, sent, config, 1, layers, own_masks=False)

    validated(signed(honest, 2))
    accepted = 0
    whole = signed(honest, 2)
    for packet, signs in itertools.islice(altered(whole, rng), count):
        try:
            validated(signed(packet, 2) if signs else packet)
        except WireError:
            continue
        accepted += 1
    assert accepted == 0


# Robust aggregation


@pytest.mark.parametrize("robust", ["median", slow("trimmed")])
def test_a_lie_that_fits_spoils_a_mean_but_no_robust_rule(robust: str) -> None:
    """Within every bound, and far off: what validation cannot know."""

    def turned(packet: Packet) -> Packet:
        return array("values", lambda v: v * np.float32(-20))(packet)

    accuracies = {}
    for rule in ("mean", robust):
        config = CONFIG.changed(aggregation=rule, epochs=3)
        liars = make_scenario(config)
        grid = ScriptedGrid(client_nodes(liars))
        grid.nodes[102] = lying(grid.nodes[102], 2, turned)
        *_, last = run_rounds(liars.server(), FlowerFleet(grid, config), liars.server_data)
        accuracies[rule] = last.accuracy or 0.0
    assert accuracies["mean"] < 0.4
    assert accuracies[robust] > accuracies["mean"] + 0.2
