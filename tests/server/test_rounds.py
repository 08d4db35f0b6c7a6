from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import WireError
from fedkit.methods.interface import Opening, Phase
from fedkit.methods.schedule import adjusting_block
from fedkit.server.rounds import Channel, LocalFleet, Report, run_rounds, train_round
from fedkit.sparse.state import Weights, count_kept
from fedkit.wire import codec
from fedkit.wire.messages import Packet, Wire, as_received, narrow, pack_state, read_update
from sim.scenario import make_scenario
from tests.server.recording import RecordingFleet

SMALL = {
    "devices": 3,
    "rounds": 5,
    "epochs": 1,
    "examples_per_device": 40,
    "adjust_every": 1,
    "adjust_stop": 4,
    "server_epochs": 2,
    "sparse_epochs": 2,
    "seed": 2,
}


@functools.cache
def run(**changes: str | float) -> tuple[RunConfig, list[Report], RecordingFleet]:
    config = make_config({**SMALL, **changes})
    scenario = make_scenario(config)
    fleet = RecordingFleet(scenario.local_fleet())
    reports = list(run_rounds(scenario.server(), fleet, scenario.server_data))
    return config, reports, fleet


def test_steps_come_in_order_and_learning_happens() -> None:
    _, reports, _ = run()
    steps = [(report.phase, report.round) for report in reports]
    assert steps == [("start", 0), ("selection", 0), *(("round", n) for n in range(1, 6))]
    measured = [report.accuracy for report in reports if report.accuracy is not None]
    assert len(measured) == len(reports) and measured[-1] > measured[1]
    assert all(report.loss is None or math.isfinite(report.loss) for report in reports)
    assert [report.loss is None for report in reports[:2]] == [True, False]


def test_density_is_constant_over_every_adjustment_and_masks_do_change() -> None:
    config, reports, _ = run()
    rounds = reports[1:]
    assert len({report.density for report in rounds}) == 1
    assert rounds[0].density <= config.density
    for before, after in pairwise(rounds):
        block = adjusting_block(config, list(after.state.masks), after.round)
        assert count_kept(before.state.masks) == count_kept(after.state.masks)
        for name, mask in after.state.masks.items():
            changed = (mask != before.state.masks[name]).any()
            assert changed == (name in block and not mask.all()), name


def test_pruned_weights_are_zero_in_every_step() -> None:
    _, reports, _ = run()
    for report in reports:
        for name, mask in report.state.masks.items():
            assert not report.state.weights[name][~mask].any()


def test_wire_density_is_mask_density() -> None:
    _, reports, fleet = run()
    state = reports[-1].state
    kept = sum(count_kept(state.masks).values())
    rest = sum(w.size for name, w in state.weights.items() if name not in state.masks)
    for phase, _, replies in fleet.log:
        if phase == "train":
            assert {len(reply.arrays["values"]) for reply in replies} == {kept + rest}


def test_masks_travel_only_when_they_changed() -> None:
    config, reports, fleet = run()
    requests = [request for phase, request, _ in fleet.log if phase == "train"]
    assert "candidate" in requests[0].numbers and not requests[0].arrays
    prunable = list(reports[0].state.masks)
    for number, request in enumerate(requests[1:], start=2):
        assert "masks" not in request.arrays
        changed = bool(adjusting_block(config, prunable, number - 1))
        assert ("mask_changes" in request.arrays) == changed


def test_gradients_travel_only_in_adjusting_rounds() -> None:
    config, reports, fleet = run()
    prunable = list(reports[0].state.masks)
    replies = [replies for phase, _, replies in fleet.log if phase == "train"]
    for number, answers in enumerate(replies, start=1):
        adjusting = bool(adjusting_block(config, prunable, number))
        assert {("gradients" in reply.arrays) for reply in answers} == {adjusting}


def test_bytes_are_those_of_the_packets() -> None:
    config, reports, fleet = run()
    down = sum(request.nbytes * config.devices for _, request, _ in fleet.log)
    up = sum(reply.nbytes for _, _, replies in fleet.log for reply in replies)
    assert sum(report.bytes_down for report in reports) == down
    assert sum(report.bytes_up for report in reports) == up


def test_the_last_round_is_aggregated() -> None:
    _, reports, fleet = run()
    _, _, replies = fleet.log[-1]
    shares = np.array([reply.numbers["examples"] for reply in replies], np.float64)
    values = np.stack([reply.arrays["values"] for reply in replies]).astype(np.float64)
    mean = (shares / shares.sum()) @ values
    name = next(iter(reports[-1].state.weights))  # the stem comes first in the values
    state = reports[-1].state
    kept = state.weights[name][state.masks[name]]
    np.testing.assert_allclose(kept, mean[: len(kept)], rtol=1e-6)


def test_dense_fedavg_sends_and_keeps_everything() -> None:
    _, reports, fleet = run(method="dense")
    assert {report.density for report in reports} == {1.0}
    assert {phase for phase, _, _ in fleet.log} == {"train"}
    sparse = sum(report.bytes_up + report.bytes_down for report in run()[1])
    dense = sum(report.bytes_up + report.bytes_down for report in reports)
    assert dense > 5 * sparse


def test_accuracy_is_measured_as_often_as_asked_and_at_the_end() -> None:
    plain, seldom = run()[1], run(measure_every=2)[1]
    due = [report.round % 2 == 0 or report.round == 5 for report in seldom]
    assert [report.accuracy is not None for report in seldom] == due
    assert [r.accuracy for r in plain if r.round % 2 == 0 or r.round == 5] == [
        report.accuracy for report in seldom if report.accuracy is not None
    ]


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    first = run()[1][-1].state
    run.cache_clear()
    second, other = run()[1][-1].state, run(seed=3)[1][-1].state
    assert all(first.weights[n].tobytes() == second.weights[n].tobytes() for n in first.weights)
    assert any(first.weights[n].tobytes() != other.weights[n].tobytes() for n in first.weights)


def test_selection_takes_the_candidate_of_the_lowest_loss() -> None:
    _, reports, fleet = run(pool_size=5)
    _, _, answers = next(entry for entry in fleet.log if entry[0] == "losses")
    examples = np.array([reply.numbers["examples"] for reply in answers], np.float64)
    losses = examples @ np.stack([r.arrays["losses"] for r in answers]) / examples.sum()
    first_train = next(request for phase, request, _ in fleet.log if phase == "train")
    assert first_train.numbers["candidate"] == losses.argmin()
    assert reports[1].loss == pytest.approx(losses.min())
    assert len(set(losses.tolist())) == 5


def tampered(replies: list[Packet]) -> Iterator[tuple[str, list[Packet]]]:
    first = replies[0]

    def with_array(name: str, value: NDArray[Any]) -> list[Packet]:
        return [Packet({**first.arrays, name: value}, first.numbers), *replies[1:]]

    values = first.arrays["values"]
    yield "disagree about model or mask", with_array("values", values[:-1])
    yield "NaN", with_array("values", values * np.float32("nan"))
    yield "'stats' is float64", with_array("stats", first.arrays["stats"].astype(np.float64))
    yield (
        "'examples' is -1",
        [Packet(first.arrays, {**first.numbers, "examples": -1}), *replies[1:]],
    )
    yield "digest", [Packet(first.arrays, {**first.numbers, "mask_digest": "0"}), *replies[1:]]
    yield "lacks 'stats'", [Packet({"values": values}, first.numbers), *replies[1:]]


@pytest.mark.parametrize("case", range(6))
def test_a_reply_that_does_not_fit_is_refused_by_name(case: int) -> None:
    scenario = make_scenario(make_config({**SMALL, "method": "dense", "rounds": 1}))

    class Tampering(LocalFleet):
        expected = ""

        def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
            cases = list(tampered(super().answers(phase, request, asked)))
            self.expected, replies = cases[case]
            return replies

    fleet = Tampering(scenario.local_fleet()._devices)
    with pytest.raises(WireError) as caught:
        list(run_rounds(scenario.server(), fleet, scenario.server_data))
    assert fleet.expected in str(caught.value)


def test_under_fp16_half_the_bytes_travel_and_the_server_stays_float32() -> None:
    _, reports, fleet = run(wire="fp16")
    packets = [packet for _, request, replies in fleet.log for packet in (request, *replies)]
    widths = {array.dtype for packet in packets for array in packet.arrays.values()}
    assert np.dtype(np.float16) in widths and np.dtype(np.float32) not in widths
    sent = [sum(step.bytes_up + step.bytes_down for step in steps) for steps in (reports, run()[1])]
    assert 0.5 < sent[0] / sent[1] < 0.53
    measured = [report.accuracy for report in reports if report.accuracy is not None]
    assert measured[-1] > measured[1]
    for state in (report.state for report in reports[2:]):
        values = np.concatenate([value.reshape(-1) for value in state.weights.values()])
        assert values.dtype == np.float32
        assert (values != values.astype(np.float16)).any()  # a mean, not what travelled


def test_differences_in_few_bits_train_as_well_for_a_fraction_of_the_bytes() -> None:
    _, reports, fleet = run(uplink_bits=4)
    up = [
        [step.bytes_up for step in steps if step.phase == "round"] for steps in (reports, run()[1])
    ]
    assert 0.1 < sum(up[0]) / sum(up[1]) < 0.25  # Gradients of adjusting rounds travel whole.
    assert up[0][-1] / up[1][-1] < 1 / 6
    measured = [report.accuracy for report in reports if report.accuracy is not None]
    assert measured[-1] > measured[1]
    replies = [reply for phase, _, replies in fleet.log for reply in replies if phase == "train"]
    assert all("values" not in reply.arrays and "differences" in reply.arrays for reply in replies)


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_a_device_keeps_what_did_not_travel_and_sends_it_next_time(wire: Wire) -> None:
    """Told and kept make what a device trained, from the model as it arrived."""
    plain = make_scenario(make_config(SMALL)).device(0)
    config = make_config({**SMALL, "wire": wire, "uplink_bits": 3, "adjust_share": 0})
    device, layout = make_scenario(config).device(0), plain.engine.layout
    dense = plain.engine.initial_state()
    masks = {n: np.random.default_rng(1).random(m.shape) < 0.3 for n, m in dense.masks.items()}
    sent = dense.with_masks(masks)
    received, packed = as_received(sent, wire), pack_state(sent, None)
    request = narrow(Packet(packed.arrays, {**packed.numbers, "round": 1}), wire)
    trained = read_update(plain.handle("train", request, Packet({}))[0], layout, sent, []).state

    memory = Packet({})
    earlier: Weights = {name: np.zeros_like(w) for name, w in sent.weights.items()}
    for _ in range(3):
        reply, memory = device.handle("train", request, memory)
        told = read_update(reply, layout, received, [], bits=3).state
        kept = codec.decode_values(memory.arrays["remainder"], layout.weights, masks)
        for name, value in trained.weights.items():
            both = told.weights[name] + kept[name]
            np.testing.assert_allclose(both, value + earlier[name], atol=1e-5)
        assert any(value.any() for value in kept.values())
        earlier = kept


def test_server_and_devices_have_the_same_candidates_though_weights_were_rounded() -> None:
    config = make_config({**SMALL, "wire": "fp16"})
    scenario, dense = make_scenario(config), make_scenario(config).engine.initial_state()
    server, channel = scenario.server(), Channel(scenario.local_fleet(), "fp16")
    rng = np.random.default_rng(0)
    # So near each other that rounding makes ties, which the lower index wins.
    crowded = {
        name: (0.1 + 1e-5 * rng.random(value.shape)).astype(np.float32)
        for name, value in dense.weights.items()
    }
    start = replace(dense, weights=crowded)
    shape = server.test.inputs.shape[1:]
    opened = server.method.start(
        Opening(config, server.engine, start, None, channel, server.module, shape)
    )
    assert opened.request.short is not None and "candidate" in opened.request.short.numbers
    after, _ = train_round(server, channel, opened.request, opened.state, 1)  # refuses other masks
    assert after.density == opened.state.density


def test_values_too_large_for_fp16_end_the_run_at_their_sender() -> None:
    scenario = make_scenario(
        make_config({**SMALL, "wire": "fp16", "server_epochs": 0, "sparse_epochs": 0})
    )
    large = [
        replace(device, examples=replace(device.examples, inputs=device.examples.inputs * 1e4))
        for device in scenario.local_fleet()._devices
    ]
    with pytest.raises(WireError, match=r"values of 'stats' exceed float16.* set wire to fp32"):
        list(run_rounds(scenario.server(), LocalFleet(large), None))


def test_a_request_that_lacks_a_part_or_asks_for_what_is_not_there_is_refused() -> None:
    _, _, fleet = run()
    device, memory = make_scenario(make_config(SMALL)).device(0), Packet({})
    for phase, request, _ in fleet.log[:4]:
        bad = list(without_a_part(request))
        if "candidate" in request.numbers:
            bad.append(Packet({}, {**request.numbers, "candidate": 3}))
        for packet in bad:
            with pytest.raises(WireError):
                device.handle(phase, packet, memory)
        _, memory = device.handle(phase, request, memory)


def without_a_part(packet: Packet) -> Iterator[Packet]:
    for key in packet.arrays:
        yield Packet({k: v for k, v in packet.arrays.items() if k != key}, packet.numbers)
    for key in packet.numbers:
        yield Packet(packet.arrays, {k: v for k, v in packet.numbers.items() if k != key})


def test_a_device_that_lost_its_memory_says_so() -> None:
    scenario = make_scenario(make_config(SMALL))
    device = scenario.device(0)
    with pytest.raises(WireError, match="no candidates are in this device's memory"):
        device.handle("train", Packet({}, {"candidate": 0, "round": 1}), Packet({}))


def test_reports_are_plain_data() -> None:
    report = run()[1][-1]
    line = {key: value for key, value in vars(report).items() if key != "state"}
    assert json.loads(json.dumps(line)) == line
