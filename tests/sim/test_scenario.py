from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from fedkit.config import RunConfig, make_config
from fedkit.core.errors import ConfigError, DataError, TaskError
from fedkit.server.scenario import Scenario, server_scenario
from fedkit.tasks.task import Examples, Task
from sim import scenario
from sim.scenario import make_scenario


def examples(count: int) -> Examples:
    rng = np.random.default_rng(count)
    return Examples(rng.standard_normal((count, 6)).astype(np.float32), np.arange(count) % 3)


def scenario_of(
    monkeypatch: pytest.MonkeyPatch, outputs: int = 3, train: int = 200, inputs: int = 6
) -> Scenario:
    task = Task(
        "small", lambda: nn.Linear(inputs, outputs), lambda: examples(train), lambda: examples(30)
    )
    monkeypatch.setattr(scenario, "load_task", lambda path: task)
    make_scenario.cache_clear()
    return make_scenario(make_config({"task": f"small{outputs}{train}{inputs}", "devices": 2}))


def rows(part: Examples) -> set[bytes]:
    return {row.tobytes() for row in part.inputs}


def test_server_and_devices_share_no_example_and_miss_none() -> None:
    config = make_config({"devices": 4, "server_share": 0.1})
    made = make_scenario(config)
    assert made.server_data is not None
    parts = [made.server_data, *made.devices]
    assert sum(map(len, parts)) == len(made.task.train_data())
    assert len(made.server_data) == round(0.1 * len(made.task.train_data()))
    held = [rows(part) for part in parts]
    assert sum(map(len, held)) == len(set.union(*held)) == len(rows(made.task.train_data()))


def test_a_server_without_a_share_has_no_data() -> None:
    made = make_scenario(make_config({"devices": 4, "server_share": 0}))
    assert made.server_data is None


def test_a_server_share_of_one_example_goes_to_the_devices() -> None:
    made = make_scenario(make_config({"devices": 4, "server_share": 0.0008}))
    assert made.server_data is None
    assert sum(map(len, made.devices)) == len(made.task.train_data())


def test_limits_cut_devices_and_test_data() -> None:
    config = RunConfig(devices=3, examples_per_device=20, test_examples=50)
    made = make_scenario(config)
    assert [len(part) for part in made.devices] == [20, 20, 20]
    assert len(made.test) == 50


def test_a_sound_task_passes_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scenario_of(monkeypatch)
    made.check()
    assert len(made.devices) == 2


def test_too_few_outputs_and_wrong_inputs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="has 2 outputs, but there are targets up to 2"):
        scenario_of(monkeypatch, outputs=2).check()
    with pytest.raises(TaskError, match=r"does not take its inputs of shape \(6,\)"):
        scenario_of(monkeypatch, inputs=5).check()


def test_a_task_without_training_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has 0 training and 30 test examples"):
        scenario_of(monkeypatch, train=0)


def test_an_unreachable_density_is_refused_before_the_run() -> None:
    made = make_scenario(make_config({"devices": 2, "density": 0.0001}))
    with pytest.raises(ConfigError, match="raise density"):
        made.check()


def test_the_server_of_real_devices_has_what_a_simulations_server_has() -> None:
    config = make_config({"devices": 4, "test_examples": 50})
    simulated, real = make_scenario(config), server_scenario(config)
    real.check()
    assert real.devices == []
    assert real.server_data is not None and simulated.server_data is not None
    assert real.server_data.inputs.tobytes() == simulated.server_data.inputs.tobytes()
    assert real.test.inputs.tobytes() == simulated.test.inputs.tobytes()


def no_data() -> Examples:
    raise AssertionError("training data was asked for")


def test_a_server_without_a_share_needs_no_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("small", lambda: nn.Linear(6, 3), no_data, lambda: examples(30))
    monkeypatch.setattr("fedkit.server.scenario.load_task", lambda path: task)
    made = server_scenario(make_config({"server_share": 0}))
    made.check()
    assert made.server_data is None


def test_a_server_without_test_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("small", lambda: nn.Linear(6, 3), no_data, lambda: examples(0))
    monkeypatch.setattr("fedkit.server.scenario.load_task", lambda path: task)
    with pytest.raises(DataError, match="no test examples"):
        server_scenario(make_config({}))
