"""Data that goes away in the middle of a run: the file is named, and what was done is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fedkit.config import make_config
from fedkit.core.errors import DataError, TaskError
from fedkit.server.record import record
from fedkit.tasks import sources
from fedkit.tasks.task import Examples, Task
from sim.scenario import share_out
from tests.whole_runs import state

KEYS: dict[str, Any] = {
    **{"task": "own", "method": "dense", "devices": 2, "partition": "iid", "rounds": 4},
    **{"epochs": 1, "batch_size": 8, "measure_every": 1, "server_share": 0.0},
}
COUNT, SIDE = 60, 4
DRAWS = np.random.default_rng(0)
LEVELS = DRAWS.integers(0, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)


def of_rows(folder: Path) -> Callable[[], Examples]:
    scaled = LEVELS[:, None].astype(np.float32) / 255
    rows = ((levels, np.int64(number % 3)) for number, levels in enumerate(scaled))
    sources.store(folder / "rows", rows, COUNT)
    return lambda: sources.stored(folder / "rows")


def of_pictures(folder: Path) -> Callable[[], Examples]:
    for number, levels in enumerate(LEVELS):
        (folder / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(folder / str(number % 3) / f"{number:02d}.png")
    return lambda: sources.image_folder(folder, [0.5], [0.5])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def spoil(file: Path) -> None:
    """Make the last number of row 13 none, in place."""
    content = bytearray(file.read_bytes())
    end = len(content) - 4 * SIDE * SIDE * (COUNT - 14)
    content[end - 4 : end] = np.float32(np.nan).tobytes()
    file.write_bytes(content)


def enlarge(file: Path) -> None:
    Image.new("L", (SIDE + 1, SIDE)).save(file)


BREAKS: dict[str, tuple[Any, str, Callable[[Path], None], str]] = {
    "a file that is cut": (of_rows, "rows/inputs.npy", cut, r"rows/inputs\.npy ends before row"),
    "a row that is none": (of_rows, "rows/inputs.npy", spoil, r"inputs\.npy hold NaN .*example 13"),
    "a picture that is gone": (of_pictures, "1/13.png", Path.unlink, r"1/13\.png.*No such file"),
    "a picture that is none": (of_pictures, "1/13.png", cut, r"reading .*1/13\.png failed"),
    "a picture that grew": (of_pictures, "1/13.png", enlarge, r"1/13\.png is uint8 \(4, 5\)"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_run_whose_data_breaks_goes_on_when_it_is_mended(kind: str, tmp_path: Path) -> None:
    make, name, breaks, message = BREAKS[kind]
    data = make(tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()

    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 3))

    def test() -> Examples:
        return Examples(LEVELS[:, None].astype(np.float32) / 255, np.arange(COUNT) % 3)

    scenario = share_out(make_config(KEYS), Task("own", model, data, test))
    record(scenario, scenario.local_fleet(), tmp_path / "whole", lambda step: None)
    rounds = []

    def after(step: Any) -> None:
        rounds.append(step.round)
        if step.round == 2:
            breaks(file)

    with pytest.raises((DataError, TaskError), match=message):
        record(scenario, scenario.local_fleet(tmp_path / "cut"), tmp_path / "cut", after)
    assert rounds[-1] == 2
    file.write_bytes(whole)
    fleet = scenario.local_fleet(tmp_path / "cut")
    record(scenario, fleet, tmp_path / "cut", lambda step: None, resume=True)
    assert state(tmp_path / "cut") == state(tmp_path / "whole")
