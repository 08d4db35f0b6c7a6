"""What devices measure on data they hold out: figures, bytes, and that training does not notice."""

from __future__ import annotations

import copy
import functools
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkit.cli.summary import figures
from fedkit.config import make_config
from fedkit.core.errors import ConfigError, DataError, TaskError, WireError
from fedkit.device.held_out import device_of
from fedkit.device.staying import with_own
from fedkit.methods.travel import Travel
from fedkit.server.device_metric import DeviceMetric, device_measure
from fedkit.server.record import record
from fedkit.server.rounds import Report, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.tasks import metrics
from fedkit.tasks.metrics.as_text import metric_of, metric_text
from fedkit.tasks.task import Metric
from fedkit.wire import messages
from fedkit.wire.messages import Packet
from fedkit.wire.validation import admit_value
from sim.scenario import make_scenario
from tests import three_devices
from tests.flower.same_bits import assert_same_bits
from tests.server.recording import RecordingFleet
from tests.sets import slow_but

SMALL: dict[str, Any] = {
    **three_devices.SETTINGS,
    "validation_share": 0.25,
    "device_eval": 1,
}


@functools.cache
def run(**changes: Any) -> tuple[Scenario, list[Report], RecordingFleet]:
    scenario = make_scenario(make_config({**SMALL, **changes}))
    scenario.check()
    fleet = RecordingFleet(scenario.local_fleet())
    return scenario, list(run_rounds(scenario.server(), fleet, scenario.server_data)), fleet


KINDS = slow_but(
    [{"local": "norm", "selection": "none", "uplink_bits": 4}],
    [
        {},
        {"local": "norm", "selection": "none", "uplink_bits": 4},
        {"train": "norm+head", "wire": "fp16"},
        {"devices_per_round": 2, "local": "head"},
        {"method": "feddst", "uplink_bits": 4},
        {"bn_merge": "exact-last"},
        {"precision": "int8"},
    ],
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_devices_measure_the_model_with_their_own_tensors(kind: dict[str, Any]) -> None:
    """By torch, outside of any device: each on what it holds out."""
    scenario, reports, fleet = run(**kind)
    last, parts = reports[-1], Travel.of(scenario.config, scenario.engine)
    assert last.devices is not None
    values = []
    for index in range(len(scenario.devices)):
        memory = fleet.memory(index)
        held = scenario.device(index).validation
        assert held is not None and len(held) == 10
        if index not in fleet._chosen:
            continue
        state = with_own(parts, messages.as_received(last.state, scenario.config.wire), memory)
        outputs = scenario.engine.outputs(state, held.inputs)
        values.append(float((outputs.argmax(1) == held.targets).mean()))
    assert last.devices.devices == len(values)
    assert last.devices.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert last.devices.worst == min(values)
    assert last.devices.spread == pytest.approx(np.std(values), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_training_does_not_notice_that_devices_measure(kind: dict[str, Any]) -> None:
    """The bits are those of a run whose devices never held the rest."""
    scenario, reports, fleet = run(**kind)
    config = copy.copy(scenario.config)
    object.__setattr__(
        config, "device_eval", 0
    )  # a config alone would refuse to hold out for nothing
    silent = replace(scenario, config=config)
    alone = list(run_rounds(silent.server(), silent.local_fleet(), silent.server_data))
    for one, other in zip(reports, alone, strict=True):
        assert_same_bits(one.state, other.state)
        assert one.accuracy == other.accuracy
        assert one.bytes_up >= other.bytes_up
    asked = [(request, replies) for phase, request, replies in fleet.log if phase == "evaluate"]
    assert {reply.nbytes for _, replies in asked for reply in replies} == {16}
    up = sum(reply.nbytes for _, replies in asked for reply in replies)
    assert sum(r.bytes_up for r in reports) == sum(r.bytes_up for r in alone) + up


def test_devices_measure_as_often_as_asked_and_at_the_end() -> None:
    _, reports, _ = run(device_eval=2)
    due = [report.round in (2, 3) and report.phase == "round" for report in reports]
    assert [report.devices is not None for report in reports] == due


class KilledError(Exception):
    """Stands for a server that was killed."""


def test_a_run_that_goes_on_tells_the_same_figures(tmp_path: Path) -> None:
    how = {"local": "head", "selection": "none", "uplink_bits": 4}
    scenario = make_scenario(make_config({**SMALL, **how}))
    one, two = tmp_path / "whole", tmp_path / "two"
    whole = record(scenario, scenario.local_fleet(one), one, lambda step: None)

    def stop(step: Report) -> None:
        if step.round == 2:
            raise KilledError

    with pytest.raises(KilledError):
        record(scenario, scenario.local_fleet(two), two, stop)
    again = record(scenario, scenario.local_fleet(two), two, lambda step: None, resume=True)
    keys = ("phase", "round", "devices_mean", "devices_spread", "devices_worst", "devices_median")
    lines = [[line.get(key) for key in keys] for line in whole.metrics()]
    assert [line[2] is not None for line in lines] == [False, False, True, True, True]
    assert lines == [[line.get(key) for key in keys] for line in again.metrics()]
    assert_same_bits(again.load().state, whole.load().state)
    told = figures(whole)
    assert [told[key] for key in keys[2:]] == lines[-1][2:]
    assert told["devices_measured"] == 3


def test_what_is_held_out_is_drawn_once_and_trains_nothing() -> None:
    scenario = run()[0]
    for index, examples in enumerate(scenario.devices):
        one, other = scenario.device(index), scenario.device(index)
        assert one.validation is not None and other.validation is not None
        assert len(one.examples) + len(one.validation) == len(examples)
        assert one.validation.inputs[:].tobytes() == other.validation.inputs[:].tobytes()
        rows = [*one.examples.inputs[:], *one.validation.inputs[:]]
        assert sorted(row.tobytes() for row in rows) == sorted(
            row.tobytes() for row in examples.inputs[:]
        )


@pytest.mark.parametrize(("count", "share", "held"), [(3, 0.2, 1), (10, 0.25, 2), (4, 0.5, 2)])
def test_at_least_one_is_held_out_and_two_are_trained_on(
    count: int, share: float, held: int
) -> None:
    scenario = run()[0]
    config = make_config({"validation_share": share, "device_eval": 1})
    few = scenario.devices[0].take(np.arange(count))
    device = device_of(0, few, scenario.engine, config)
    assert device.validation is not None
    assert (len(device.examples), len(device.validation)) == (count - held, held)


@pytest.mark.parametrize(("count", "share"), [(1, 0.1), (2, 0.1), (3, 0.5), (10, 0.99)])
def test_a_device_with_too_few_examples_is_refused(count: int, share: float) -> None:
    scenario = run()[0]
    config = make_config({"validation_share": share, "device_eval": 1})
    with pytest.raises(DataError, match=f"device 7 has {count} example"):
        device_of(7, scenario.devices[0].take(np.arange(count)), scenario.engine, config)


@pytest.mark.parametrize("changes", [{"device_eval": 1}, {"validation_share": 0.2}])
def test_one_without_the_other_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give both"):
        make_config(changes)


def test_a_private_run_measures_on_no_device() -> None:
    private = {"dp_clip": 1.0, "selection": "none", "adjust_share": 0.0}
    with pytest.raises(ConfigError, match="set device_eval"):
        make_scenario(make_config({**SMALL, **private})).check()


def test_a_metric_of_ones_own_is_refused_before_any_work() -> None:
    scenario = run()[0]
    own = Metric(lambda outputs, targets: 0.0, "mine")
    with pytest.raises(ConfigError, match=r"'mine'.*which devices do not have"):
        device_measure(scenario.config, replace(scenario.task, metric=own))


def test_a_device_without_a_value_does_not_count() -> None:
    """AUROC of a device whose held-out examples are of one class."""
    scenario, reports, _ = run()
    device = scenario.device(0)
    assert device.validation is not None
    same = device.validation.take(
        np.flatnonzero(device.validation.targets == device.validation.targets[0])
    )
    about: dict[str, int | str] = {"round": 3, "metric": metric_text(metrics.RocAuc())}
    request = messages.pack_state(reports[-1].state, None)
    asked = Packet(request.arrays, {**request.numbers, **about})
    reply, _ = replace(device, validation=same).handle("evaluate", asked, Packet({}))
    assert admit_value(reply, 3) is None
    with pytest.raises(WireError, match="holds no examples out"):
        replace(device, validation=None).handle("evaluate", asked, Packet({}))
    for text in ("[]", '["nothing", {}]', '["accuracy", {"what": 1}]', '["F1", 3]', "x"):
        wrong = Packet(asked.arrays, {**asked.numbers, "metric": text})
        with pytest.raises(WireError, match="metric is"):
            device.handle("evaluate", wrong, Packet({}))


@pytest.mark.parametrize(
    "number", [{"round": 2}, {"value": 1}, {"value": math.nan}, {"value": math.inf}, {"value": "1"}]
)
def test_a_value_that_does_not_fit_is_refused(number: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        admit_value(Packet({}, {"round": 1, "value": 0.5, **number}), 1)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -1e300])
def test_what_is_no_number_is_told_as_none(value: float | None) -> None:
    assert admit_value(messages.pack_value(value, 4), 4) is None


@pytest.mark.parametrize("measure", [row() for row in metrics.METRICS.values()], ids=repr)
def test_a_metric_is_a_text_and_back(measure: metrics.Measure) -> None:
    assert metric_of(metric_text(measure)) == measure


def test_settings_of_a_metric_travel() -> None:
    for measure in (metrics.Accuracy(ignore_index=3), metrics.F1(average="micro")):
        assert metric_of(metric_text(measure)) == measure
    with pytest.raises(TaskError):
        metric_of('["f1", {"average": "nothing"}]')


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.booleans())
def test_figures_are_as_defined(values: list[float], higher: bool) -> None:
    found = DeviceMetric.of(values, higher)
    ordered = sorted(values, reverse=not higher)
    tenth = [ordered[n] for n in range(len(values)) if n < len(values) / 10]
    assert found.devices == len(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert found.worst == pytest.approx(sum(tenth) / len(tenth), abs=1e-6)
    spread = math.sqrt(sum((v - found.mean) ** 2 for v in values) / len(values))
    assert found.spread == pytest.approx(spread, abs=1e-6)
    parts = [found.least, found.lower, found.median, found.upper, found.most]
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
        assert parts == pytest.approx([min(values), *quartiles, max(values)], abs=1e-6)
    else:
        assert parts == values * 5
