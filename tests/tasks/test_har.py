"""Folders in the format of UCI-HAR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkit.core.errors import DataError
from fedkit.tasks import har


def folder(where: Path) -> Path:
    signals = where / "train" / har.SIGNALS
    signals.mkdir(parents=True)
    for number, name in enumerate(("b_y", "a_x")):
        rows = np.arange(12).reshape(3, 4) + 100.0 * number
        np.savetxt(signals / f"{name}_train.txt", rows)
    np.savetxt(where / "train" / "y_train.txt", [1, 6, 2], fmt="%d")
    np.savetxt(where / "train" / "subject_train.txt", [7, 7, 9], fmt="%d")
    return where


def test_signals_are_channels_in_order_of_their_names(tmp_path: Path) -> None:
    found = har.task(folder(tmp_path)).examples("train")
    assert found.inputs[1].tolist() == [[104, 105, 106, 107], [4, 5, 6, 7]]
    assert found.targets.tolist() == [0, 5, 1]
    assert found.owners is not None and found.owners.tolist() == [7, 7, 9]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("y_train.txt", "1\n2\n", "one whole number for each of 3 windows"),
        ("y_train.txt", "0\n1\n2\n", "classes count from 1"),
        ("subject_train.txt", "x\ny\nz\n", "cannot be read"),
        (f"{har.SIGNALS}/b_y_train.txt", "1 2\n", "every signal must have as many"),
        (f"{har.SIGNALS}/a_x_train.txt", "", "is empty"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, file: str, content: str, reason: str) -> None:
    (folder(tmp_path) / "train" / file).write_text(content)
    with pytest.raises(DataError, match=reason):
        har.load(tmp_path, "train")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file \*_test.txt; give a folder like"):
        har.load(tmp_path, "test")
