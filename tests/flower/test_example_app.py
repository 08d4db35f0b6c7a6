"""A Flower app changed to FedTiny in few lines, and what `flwr run` makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from docs.site.generate import fill
from fedkit.flower.local_superlink import SuperLink
from fedkit.flower.processes import toml_pairs
from tests.fleet.real import FEDKIT
from tests.imports import ROOT
from tests.processes import HANG

QUICKSTART = ROOT / "examples" / "quickstart"
PAGE = ROOT / "docs" / "how-to" / "take-fedtiny-into-your-flower-app.md"
MOST_CHANGED = 25


class RunLog(NamedTuple):
    code: int
    log: str
    folder: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunLog]:
    """What `flwr run` made of both apps, on one SuperLink."""
    folder, found = tmp_path_factory.mktemp("quickstart"), {}
    with SuperLink(folder / "log", "--simulation") as link:
        for name in ("fedavg", "fedtiny"):
            (folder / name).mkdir()
            nodes = "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2"
            ended = subprocess.run(
                [
                    *(FEDKIT, "flwr-run", str(QUICKSTART / name), "fedkit"),
                    *("--run-config", toml_pairs({"folder": str(folder / name)})),
                    *("--federation-config", nodes),
                ],
                env={**os.environ, "FLWR_HOME": link.home},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=HANG,
            )
            found[name] = RunLog(ended.returncode, ended.stdout, folder / name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fedtiny"])
def test_both_apps_learn(runs: dict[str, RunLog], name: str) -> None:
    code, log, folder = runs[name]
    assert code == 0, log
    accuracies = re.findall(r"round 3: accuracy (0\.\d+)", log)
    assert accuracies and float(accuracies[-1]) > 0.6, log
    assert (folder / "final.pt").is_file()


@pytest.mark.slow
def test_it_trains_sparse_and_leaves_an_artifact(
    runs: dict[str, RunLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    import edge
    from fedkit.tasks import digits

    folder = runs["fedtiny"].folder
    monkeypatch.syspath_prepend(str(QUICKSTART / "fedtiny"))
    monkeypatch.delitem(sys.modules, "task", raising=False)
    from task import Net  # type: ignore[import-not-found]

    net = Net()
    net.load_state_dict(torch.load(folder / "final.pt"))
    weights = [layer.weight for layer in (net.conv1, net.conv2, net.fc)]
    kept = sum(int(torch.count_nonzero(weight)) for weight in weights)
    assert kept / sum(weight.numel() for weight in weights) <= 0.2
    data = digits.test_data()
    runner = edge.open_artifact(folder / "final.tflite")
    classes = runner.predict(data.inputs).argmax(1)
    assert np.mean(classes == data.targets) > 0.6


def test_the_page_prints_what_changes_and_that_is_little() -> None:
    text = fill(PAGE.read_text(encoding="utf-8"))
    (summary,) = re.findall(r"2 files changed, (\d+) insertions\(\+\), (\d+) deletions\(-\)", text)
    assert 0 < sum(map(int, summary)) <= MOST_CHANGED
    changed = re.findall(r"^[+-](?![+-]{2} )", text, re.MULTILINE)
    assert len(changed) == sum(map(int, summary))
    assert "strategy = FedTiny(" in text and "-    strategy = FedAvg(" in text


@pytest.mark.parametrize("part", ["task.py", "pyproject.toml"])
def test_model_data_and_loop_stay(part: str) -> None:
    before, after = ((QUICKSTART / app / part).read_bytes() for app in ("fedavg", "fedtiny"))
    assert before.replace(b"quickstart/fedavg", b"") == after.replace(b"quickstart/fedavg", b"")
