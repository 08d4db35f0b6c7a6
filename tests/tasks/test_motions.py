"""Series of a smart watch: the form of its files, windows, and where they are looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkit.core.errors import DataError
from fedkit.tasks import motions
from tests.tasks.recordings import HEAD, written


def test_windows_are_cut_in_their_order() -> None:
    series = np.arange(2 * 3 * 10, dtype=np.float32).reshape(2, 3, 10)
    found = motions.windows(series, 4, 3)
    wanted = [series[n, :, start : start + 4] for n in range(2) for start in (0, 3, 6)]
    np.testing.assert_array_equal(found, wanted)
    for steps, hop in ((0, 1), (11, 1), (4, 0)):
        with pytest.raises(DataError, match="windows of series of 10 steps"):
            motions.windows(series, steps, hop)


def test_a_file_of_series_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    path.write_text(f"{HEAD}1,2.5:3,4:yes\n-1,0:1e1,7:no\n")
    series, names = motions.read_ts(path)
    assert series.tolist() == [[[1, 2.5], [3, 4]], [[-1, 0], [10, 7]]] and names == ["yes", "no"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no series"),
        ("1,2:3,4:a\n1,2:a\n", r"line 6 has signals of \(1, 2\), the first line of \(2, 2\)"),
        ("1,2:3:a\n", "line 5: .*all of one length"),
        ("1,x:3,4:a\n", "line 5: .*must be numbers"),
        ("1,nan:3,4:a\n", "line 5 has .*finite"),
        ("yes\n", "line 5 has"),
    ],
)
def test_a_file_of_something_else_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ts"
    path.write_text(HEAD + text)
    with pytest.raises(DataError, match=message) as told:
        motions.read_ts(path)
    assert str(path) in str(told.value)
    with pytest.raises(DataError, match=r"nowhere\.ts cannot be read"):
        motions.read_ts(tmp_path / "nowhere.ts")


def test_the_data_set_is_windows_of_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "BasicMotions")
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    motions._load.cache_clear()
    train = motions.train_data()
    assert train.inputs.shape == (24, 6, 50)
    assert train.targets.tolist() == np.repeat([0, 1, 2, 3] * 2, 3).tolist()
    assert train.columns["recording"].tolist() == np.repeat(np.arange(8), 3).tolist()
    for task in (motions.TASK, motions.GRU):
        assert task.build_model(seed=1)(_tensor(train.inputs)).shape == (24, 4)
    motions._load.cache_clear()


def _tensor(inputs: np.ndarray) -> object:  # type: ignore[type-arg]
    import torch

    return torch.from_numpy(inputs)


def test_data_of_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path / "aeon" / "datasets" / "data" / "BasicMotions")
    (tmp_path / "aeon" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path / "nothing"))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert motions._folder() == tmp_path / "aeon" / "datasets" / "data" / "BasicMotions"


def test_without_data_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDKIT_DATA", str(tmp_path))
    monkeypatch.setattr(motions, "_PACKAGES", ("no_such_package",))
    with pytest.raises(DataError, match="pip install --no-deps aeon"):
        motions._folder()
    written(tmp_path / "BasicMotions")
    for file in (tmp_path / "BasicMotions").iterdir():
        file.write_text(HEAD + "1,2:3,4:Swimming\n")
    motions._load.cache_clear()
    with pytest.raises(DataError, match="2 signals and 2 steps of Swimming"):
        motions.train_data()
