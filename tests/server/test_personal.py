"""Tensors that stay on their device, and tensors that nobody trains, over whole runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load

from edge.graph_file import load_graph
from fedkit.cli.export import Form, export_run
from fedkit.config import RunConfig, make_config
from fedkit.core.errors import CheckpointError, ConfigError
from fedkit.device.round import Device
from fedkit.device.staying import own_tensors
from fedkit.methods.interface import LocalRound, Phase
from fedkit.methods.server_training import tune
from fedkit.methods.travel import Travel
from fedkit.server.checkpoint import RunFolder
from fedkit.server.personal import device_state
from fedkit.server.record import record
from fedkit.server.rounds import LocalFleet, Report, dense_start, run_rounds
from fedkit.server.scenario import Scenario
from fedkit.sparse.state import ModelState
from fedkit.wire.messages import PART, Packet
from sim.scenario import make_scenario
from tests import three_devices
from tests.flower.same_bits import assert_same_bits
from tests.server.recording import RecordingFleet
from tests.sets import slow_but

SMALL: dict[str, Any] = {
    **three_devices.SETTINGS,
    "selection": "none",
    "seed": 3,
}


class KilledError(Exception):
    """Stands for a server that was killed."""


def config_of(**changes: Any) -> RunConfig:
    return make_config({**SMALL, **changes})


@functools.cache
def run(**changes: Any) -> tuple[Scenario, list[Report], RecordingFleet]:
    scenario = make_scenario(config_of(**changes))
    scenario.check()
    fleet = RecordingFleet(scenario.local_fleet())
    return scenario, list(run_rounds(scenario.server(), fleet, scenario.server_data)), fleet


def parts_of(scenario: Scenario) -> Travel:
    return Travel.of(scenario.config, scenario.engine)


def own_of(scenario: Scenario, fleet: LocalFleet) -> list[ModelState]:
    local, devices = parts_of(scenario).local, range(len(scenario.devices))
    found = [own_tensors(local, fleet.memory(index)) for index in devices]
    return [each for each in found if each is not None]


KINDS = slow_but(
    [{"local": "norm"}, {"train": "norm+head", "uplink_bits": 3, "wire": "fp16"}],
    [
        {"local": "norm"},
        {"local": "head"},
        {"local": "norm+head", "uplink_bits": 4},
        {"local": "norm", "wire": "fp16", "devices_per_round": 2},
        {"train": "norm"},
        {"train": "norm+head", "uplink_bits": 3, "wire": "fp16"},
        {"train": "norm+head", "local": "head"},
        {"local": "head", "dp_clip": 1.0, "adjust_share": 0.0},
        {"train": "head", "precision": "int8"},
        {"local": "norm", "precision": "int8"},
        {"local": "norm", "engine": "torch", "method": "dense"},
    ],
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_local_never_leaves_a_device_and_what_is_frozen_is_sent_once(
    kind: dict[str, Any],
) -> None:
    scenario, reports, fleet = run(**kind)
    parts = parts_of(scenario)
    if not kind.get("dp_clip"):
        assert all(np.isfinite(report.loss or 0) for report in reports)
    trained = [(request, replies) for phase, request, replies in fleet.log if phase == "train"]
    met = 0
    for request, replies in trained:
        met += PART not in request.numbers
        shared = parts.shared.of(reports[-1].state)
        values = sum(
            int(shared.masks[n].sum()) if n in shared.masks else w.size
            for n, w in shared.weights.items()
        )
        stats = sum(value.size for value in shared.stats.values())
        for reply in replies:
            if not scenario.config.uplink_bits:
                assert len(reply.arrays["values"]) == values
                assert len(reply.arrays["stats"]) == stats
        if PART in request.numbers:
            assert (len(request.arrays["values"]), len(request.arrays["stats"])) == (values, stats)
    # With two devices of three in a round, a device that comes late gets the model whole once.
    assert met == (2 if kind.get("devices_per_round") else 1)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_server_keeps_what_does_not_travel_as_it_began(kind: dict[str, Any]) -> None:
    scenario, reports, fleet = run(**kind)
    parts, (first, last) = parts_of(scenario), (reports[1].state, reports[-1].state)
    narrow = (
        (lambda a: a.astype(np.float16).astype(np.float32))
        if kind.get("wire") == "fp16"
        else (lambda a: a)
    )
    for part in (parts.local, parts.frozen):
        for kept in ("weights", "stats"):
            if kept == "stats" and kind.get("dp_clip"):
                continue  # The server measures its own.
            for name, value in vars(part.of(last))[kept].items():
                np.testing.assert_array_equal(value, narrow(vars(first)[kept][name]), name)
    moved = parts.shared.of(last).weights
    assert any((moved[name] != first.weights[name]).any() for name in moved)
    owns = own_of(scenario, fleet) if parts.local else []
    if parts.local:
        assert len(owns) == len(scenario.devices)
    for one, other in pairwise(owns):
        names = [n for n in one.weights if parts.trained is None or n in parts.trained]
        assert all((one.weights[n] != other.weights[n]).any() for n in names)
    assert all(mask.all() for mask in parts.local.of(last).masks.values())


def fedbn(scenario: Scenario) -> list[ModelState]:
    """FedBN as its authors write it: every device's model, of which all but norms is averaged."""
    engine, config = scenario.engine, scenario.config
    norms = {name.removesuffix(".running_mean") for name in engine.layout.stats}
    start = dense_start(scenario.server(), scenario.server_data)
    models = [tune(config, engine, start, scenario.server_data)] * config.devices
    shares = np.array([len(device) for device in scenario.devices], np.float64)
    shares /= shares.sum()
    for number in range(1, config.rounds + 1):
        models = [
            LocalRound(config, engine, scenario.devices[k], k, number).train(models[k])[0]
            for k in range(config.devices)
        ]
        mean = {
            name: np.tensordot(shares, np.stack([m.weights[name] for m in models]), 1)
            for name in engine.layout.weights
            if name.rpartition(".")[0] not in norms
        }
        averaged = {name: value.astype(np.float32) for name, value in mean.items()}
        models = [replace(m, weights={**m.weights, **averaged}) for m in models]
    return models


def test_local_norm_is_fedbn() -> None:
    scenario, reports, fleet = run(local="norm", engine="torch", method="dense")
    models = fedbn(scenario)
    for name in parts_of(scenario).shared.layout.weights:
        np.testing.assert_allclose(
            reports[-1].state.weights[name], models[0].weights[name], rtol=1e-4, atol=1e-5
        )
    for own, model in zip(own_of(scenario, fleet), models, strict=True):
        for name, value in {**own.weights, **own.stats}.items():
            expected = {**model.weights, **model.stats}[name]
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [{"local": "norm"}, {"train": "norm"}, {"local": "norm+head"}])
def test_bytes_fall(kind: dict[str, Any]) -> None:
    whole, less = run()[1], run(**kind)[1]
    for one, other in zip(whole[2:], less[2:], strict=True):
        assert other.bytes_up < one.bytes_up
    for one, other in zip(whole[3:], less[3:], strict=True):
        assert other.bytes_down < one.bytes_down


def test_a_run_that_goes_on_has_the_same_bits_on_every_device(tmp_path: Path) -> None:
    config = config_of(local="norm", devices_per_round=2, rounds=4)
    scenario = make_scenario(config)
    whole = scenario.local_fleet(tmp_path / "whole")
    record(scenario, whole, tmp_path / "whole", lambda step: None)
    steps = iter(range(4))

    def stop(step: Report) -> None:
        if next(steps, None) is None:
            raise KilledError

    with pytest.raises(KilledError):
        record(scenario, scenario.local_fleet(tmp_path / "two"), tmp_path / "two", stop)
    again = scenario.local_fleet(tmp_path / "two")
    record(scenario, again, tmp_path / "two", lambda step: None, resume=True)
    folders = [RunFolder.open(tmp_path / name) for name in ("whole", "two")]
    assert_same_bits(folders[0].load().state, folders[1].load().state)
    for index in range(config.devices):
        one, other = (
            {
                path.name: path.read_bytes()
                for path in (tmp_path / name / "devices" / str(index)).rglob("*.safetensors")
            }
            for name in ("whole", "two")
        )
        assert one.keys() == other.keys() and one
        assert own_bytes(one) == own_bytes(other)


def own_bytes(files: dict[str, bytes]) -> list[bytes]:
    last = load(files[max(files)])
    return [last[name].tobytes() for name in sorted(last) if name.startswith("memory.local.")]


class Forgetful(LocalFleet):
    """A fleet whose first device loses its memory in the second round."""

    def answers(self, phase: Phase, request: Packet, asked: Sequence[int]) -> list[Packet]:
        if request.numbers.get("round") == 2:
            self._memories.put(0, Packet({}))
        return super().answers(phase, request, asked)


def test_a_device_that_lost_its_memory_says_so() -> None:
    scenario = make_scenario(config_of(local="norm"))
    fleet = Forgetful([scenario.device(index) for index in range(3)])
    with pytest.raises(Exception, match="remembers nothing of the rest"):
        list(run_rounds(scenario.server(), fleet, scenario.server_data))


def test_part_of_a_memory_is_no_memory() -> None:
    scenario, _, fleet = run(local="norm", engine="torch", method="dense")
    device: Device = scenario.device(0)
    request = next(r for phase, r, _ in fleet.log if PART in r.numbers and phase == "train")
    memory = fleet.memory(0)
    less = {name: array for name, array in memory.arrays.items() if name != "local.stats"}
    with pytest.raises(Exception, match="does not remember tensors of its own"):
        device.handle("train", request, Packet(less))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"local": "norm", "selection": "adaptive"}, "set selection to none"),
        ({"local": "norm", "bn_merge": "exact-last"}, "set bn_merge to pooled"),
        ({"local": "head", "bn_merge": "exact"}, "set bn_merge to pooled"),
        ({"local": "head", "method": "feddst"}, "set adjust_share to 0"),
        ({"train": "norm", "method": "prunefl"}, "set adjust_share to 0"),
        ({"train": "norm", "local": "norm"}, "leave no trained tensor"),
        ({"train": ".*running_mean"}, "statistics alone"),
        ({"train": "nothing"}, "no such tensor"),
        ({"local": "["}, "not a regular expression"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    changes: dict[str, Any], said: str
) -> None:
    scenario = make_scenario(config_of(**changes))
    with pytest.raises(ConfigError, match=said):
        scenario.check()
    with pytest.raises(ConfigError, match=said):
        next(iter(run_rounds(scenario.server(), scenario.local_fleet(), scenario.server_data)))


def test_a_backbone_is_the_dense_start(tmp_path: Path) -> None:
    first = make_scenario(config_of())
    record(first, first.local_fleet(), tmp_path / "first", lambda step: None)
    tuned = config_of(
        backbone=str(tmp_path / "first"), train="norm", method="dense", sparse_epochs=0
    )
    scenario = make_scenario(tuned)
    assert scenario.backbone is not None
    reports = list(
        run_rounds(
            scenario.server(), scenario.local_fleet(), scenario.server_data, scenario.backbone
        )
    )
    frozen = parts_of(scenario).frozen.layout.weights
    before = run_rounds(first.server(), first.local_fleet(), first.server_data)
    last = [*before][-1].state
    for name in frozen:
        np.testing.assert_array_equal(reports[-1].state.weights[name], last.weights[name])
    other = make_scenario(config_of(backbone=str(tmp_path / "first"), model="resnet8"))
    if other.engine.layout != first.engine.layout:
        with pytest.raises(ConfigError, match="other tensors"):
            other.check()


def test_all_is_what_a_run_was_before() -> None:
    assert_same_bits(run()[1][-1].state, run(train=".*")[1][-1].state)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scenario, RunFolder, LocalFleet]:
    path = tmp_path_factory.mktemp("runs") / "own"
    scenario = make_scenario(config_of(local="norm", rounds=1, devices_per_round=2))
    fleet = scenario.local_fleet(path)
    return scenario, record(scenario, fleet, path, lambda step: None), fleet


def test_a_devices_model_is_the_servers_with_its_own_tensors(
    stored: tuple[Scenario, RunFolder, LocalFleet],
) -> None:
    scenario, folder, fleet = stored
    parts, last = parts_of(scenario), folder.load()
    trained = [index for index in range(3) if fleet.memory(index).arrays]
    assert len(trained) == 2
    for index in trained:
        found = device_state(folder, last, scenario.engine, index)
        own = own_tensors(parts.local, fleet.memory(index))
        assert own is not None
        assert_same_bits(parts.local.of(found), replace(own, masks={}))
        assert_same_bits(parts.shared.of(found), parts.shared.of(last.state))


def test_a_model_that_the_folder_does_not_know_is_refused(
    stored: tuple[Scenario, RunFolder, LocalFleet], tmp_path: Path
) -> None:
    scenario, folder, fleet = stored
    (absent,) = [index for index in range(3) if not fleet.memory(index).arrays]
    last = folder.load()
    with pytest.raises(CheckpointError, match=f"not hold what device {absent} keeps"):
        device_state(folder, last, scenario.engine, absent)
    for index in (-1, 3):
        with pytest.raises(ConfigError, match=f"device is {index}; the run has devices 0 to 2"):
            device_state(folder, last, scenario.engine, index)
    common = replace(last, config=last.config.changed(local=""))
    with pytest.raises(ConfigError, match="keep no tensors of their own"):
        device_state(folder, common, scenario.engine, 0)


@pytest.mark.slow
def test_a_devices_model_is_exported_under_a_name_of_its_own(
    stored: tuple[Scenario, RunFolder, LocalFleet],
) -> None:
    _, folder, fleet = stored
    index = next(index for index in range(3) if fleet.memory(index).arrays)
    log = Console(quiet=True)
    (made,) = export_run(folder.path, Form(("c99",), device=index), log)["artifacts"]
    (servers,) = export_run(folder.path, Form(("c99",)), log)["artifacts"]
    assert made["artifact"].endswith(f"model-device{index}-int8-c99")
    assert servers["artifact"] != made["artifact"]
    one, other = (
        load_graph(folder.path / f"{stem}.graph").tensors
        for stem in (f"model-device{index}-int8", "model-int8")
    )
    data = [name for name, tensor in one.items() if tensor.data is not None]
    assert any((one[name].data != other[name].data).any() for name in data)  # type: ignore[union-attr]
