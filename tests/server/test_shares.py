"""A run keeps which examples each device holds, and draws them."""

from __future__ import annotations

import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedkit
from fedkit.config import make_config
from fedkit.core.errors import CheckpointError
from fedkit.report.partition_picture import picture, write_picture
from fedkit.server.checkpoint import SHARES, RunFolder
from fedkit.server.shares import Shares
from fedkit.tasks import digits
from fedkit.tasks.task import Examples
from sim.scenario import make_scenario

FEW: dict[str, Any] = {
    "devices": 4,
    "rounds": 1,
    "epochs": 1,
    "alpha": 2.0,
    "server_epochs": 0,
    "pool_size": 1,
}


def test_shares_are_indices_into_the_training_data() -> None:
    scenario, train = (
        make_scenario(make_config({**FEW, "examples_per_device": 50})),
        digits.train_data(),
    )
    shares = scenario.shares
    assert shares is not None and scenario.server_data is not None
    np.testing.assert_array_equal(train.take(shares.server).inputs, scenario.server_data.inputs)
    for held, device, counts in zip(shares.devices, scenario.devices, shares.counts, strict=True):
        np.testing.assert_array_equal(train.inputs[held], device.inputs)
        np.testing.assert_array_equal(np.bincount(device.targets, minlength=10), counts)
    everything = np.concatenate([shares.server, *shares.devices])
    assert len(np.unique(everything)) == len(everything)
    assert shares.sizes.tolist() == [50] * 4


def test_a_run_keeps_its_partition_and_refuses_to_go_on_with_another(tmp_path: Path) -> None:
    result = fedkit.run("digits", folder=tmp_path / "run", **FEW)
    folder = RunFolder(tmp_path / "run")
    shares = make_scenario(result.config).shares
    assert shares is not None and folder.shares().same(shares)
    folder.keep_shares(shares)  # as it goes on
    other = replace(shares, devices=(shares.devices[1], *shares.devices[1:]))
    with pytest.raises(CheckpointError, match="held other examples when it began"):
        folder.keep_shares(other)
    assert write_picture(folder) == tmp_path / "run" / "partition.svg"
    whole = (tmp_path / "run" / SHARES).read_bytes()
    for damaged in (b"", whole[:100], b"PK" + whole[10:], whole[:-1]):
        (tmp_path / "run" / SHARES).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            folder.keep_shares(shares)
        assert write_picture(folder) is None


@pytest.mark.parametrize(("devices", "classes"), [(1, 1), (4, 10), (300, 10), (5, 0)])
def test_pictures_hold_what_devices_hold(devices: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, 3000) if classes else rng.random(3000)
    data = Examples(np.zeros((3000, 1)), targets)  # type: ignore[arg-type]
    shares = Shares.of(data, np.empty(0, np.int64), np.array_split(np.arange(3000), devices))
    drawn = picture(shares, "iid")
    assert drawn == picture(shares, "iid")
    assert f"iid: {devices} devices with {min(shares.sizes)} to {max(shares.sizes)}" in drawn
    document = xml.dom.minidom.parseString(drawn)
    bubbles = [each for each in groups(document) if each.getAttribute("id") == "bubbles"]
    drawn_bubbles = len(bubbles[0].getElementsByTagName("path")) if bubbles else 0
    assert drawn_bubbles == {(1, 1): 1, (4, 10): 40}.get((devices, classes), 0)
    assert ("class" in [node.data.strip() for node in texts(document)]) == bool(classes)


def groups(document: xml.dom.minidom.Document) -> list[xml.dom.minidom.Element]:
    return list(document.getElementsByTagName("g"))


def texts(document: xml.dom.minidom.Document) -> list[xml.dom.minidom.Text]:
    return [node.firstChild for node in document.getElementsByTagName("text")]  # type: ignore[misc]
