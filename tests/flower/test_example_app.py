"""Flower's quickstart, changed to FedTiny, through a real `flwr run`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkit.flower.processes import tail, toml_pairs
from sim.simulation import FlowerSimulation
from tests.imports import ROOT
from tests.processes import HANG

APP = ROOT / "examples" / "flower_app"


@pytest.mark.slow
def test_the_quickstart_trains_sparse_and_leaves_a_model_to_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import edge
    from fedkit.tasks import digits

    log, model = tmp_path / "log", tmp_path / "final.pt"
    simulation = {"num-supernodes": 4, "client-resources-num-cpus": 1, "init-args-num-cpus": 2}
    with FlowerSimulation(log) as link:
        values: dict[str, str | int] = {"model": str(model), "num-server-rounds": 3}
        link.run_app(APP, values, "--federation-config", toml_pairs(simulation)).wait(HANG)
    assert model.is_file(), tail(log, 60)
    found = re.findall(r"round 3: accuracy (0\.\d+)", log.read_text(errors="replace"))
    assert found and float(found[-1]) > 0.6, tail(log, 60)

    monkeypatch.syspath_prepend(str(APP))
    monkeypatch.delitem(sys.modules, "task", raising=False)
    from task import Net  # type: ignore[import-not-found]

    net = Net()
    net.load_state_dict(torch.load(model))
    weights = [layer.weight for layer in (net.conv1, net.conv2, net.fc)]
    kept = sum(int(torch.count_nonzero(weight)) for weight in weights)
    assert kept / sum(weight.numel() for weight in weights) <= 0.2
    data = digits.test_data()
    edge.export_model(net.eval(), data.inputs[:64], tmp_path / "final.tflite")
    runner = edge.open_artifact(tmp_path / "final.tflite")
    classes = runner.predict(data.inputs).argmax(1)
    assert np.mean(classes == data.targets) > 0.6
