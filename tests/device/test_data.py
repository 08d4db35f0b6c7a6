"""A device's own data: what is read, and what is said when it cannot be trained on."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkit.core.errors import DataError
from fedkit.device.data import ARRAYS, check_trainable, load_examples
from fedkit.tasks.losses import PLAIN
from fedkit.tasks.task import Examples

INPUTS = np.arange(24, dtype=np.float32).reshape(6, 1, 2, 2)
TARGETS = np.arange(6, dtype=np.int64) % 3


def saved(folder: Path, **arrays: Any) -> str:
    path = folder / "mine.npz"
    np.savez(path, **{"inputs": INPUTS, "targets": TARGETS, **arrays})
    return str(path)


def data_in_a_module() -> Examples:
    return Examples(INPUTS, TARGETS)


def no_examples() -> str:
    return "nothing"


def test_a_file_holds_inputs_and_targets(tmp_path: Path) -> None:
    read = load_examples(saved(tmp_path, further=np.zeros(3)))
    assert np.array_equal(read.inputs, INPUTS)
    assert np.array_equal(read.targets, TARGETS)


def test_a_function_makes_examples() -> None:
    assert len(load_examples("tests.device.test_data:data_in_a_module")) == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": INPUTS.astype(np.float64)}, "inputs are float64, they must be float32"),
        ({"targets": TARGETS.astype(np.int32)}, "targets are int32, they must be int64 "),
        ({"inputs": INPUTS[:, 0, 0, 0]}, r"inputs have shape \(6,\) and targets \(6,\)"),
        ({"targets": TARGETS[:5]}, "6 inputs, 5 targets"),
        ({"inputs": INPUTS * np.float32("nan")}, "hold NaN or infinite inputs"),
        ({"inputs": np.array([{}] * 6)}, "without pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(saved(tmp_path, **arrays))


def write_nothing(path: Path) -> None:
    pass


def write_other_names(path: Path) -> None:
    np.savez(path, x=INPUTS, targets=TARGETS)


def write_text(path: Path) -> None:
    path.write_text("inputs and targets")


def write_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, INPUTS)


def write_half(path: Path) -> None:
    np.savez(path, inputs=INPUTS, targets=TARGETS)
    path.write_bytes(path.read_bytes()[:200])


def write_damaged(path: Path) -> None:
    np.savez(path, inputs=INPUTS, targets=TARGETS)
    content = bytearray(path.read_bytes())
    content[content.index(INPUTS.tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_nothing, "cannot be read .*No such file"),
        (write_other_names, r"lacks inputs; it holds \['targets', 'x'\]"),
        (write_text, "cannot be read"),
        (write_one_array, "cannot be read .*one array without a name"),
        (write_half, "cannot be read"),
        (write_damaged, "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "mine.npz"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        load_examples(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine", "neither a path to an .npz, nor a folder"),
        ("no_such_module:data", "the module cannot be imported"),
        ("tests.device.test_data:missing", "is a NoneType, no function"),
        ("tests.device.test_data:INPUTS", "is a ndarray, no function"),
        ("tests.device.test_data:no_examples", "returned a str"),
    ],
)
def test_functions_that_do_not_fit_are_named(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_examples(source)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)])
def test_features_may_come_with_or_without_a_plane(shape: tuple[int, ...]) -> None:
    check_trainable(Examples(INPUTS.reshape(6, *shape), TARGETS), (4, 1, 1), PLAIN, (3,), "error")


@pytest.mark.parametrize("targets", [TARGETS + 0.5, TARGETS[:, None]])
def test_targets_that_are_no_classes_need_a_run_without(targets: Any) -> None:
    examples = Examples(INPUTS, targets)
    check_trainable(examples, INPUTS.shape[1:], None, (3,), "error")
    with pytest.raises(DataError, match=r"takes class indices, int64 \[n\]"):
        check_trainable(examples, INPUTS.shape[1:], PLAIN, (3,), "error")


def test_a_device_with_one_class_can_be_allowed() -> None:
    check_trainable(Examples(INPUTS, np.ones_like(TARGETS)), (1, 2, 2), PLAIN, (3,), "allow")


@pytest.mark.parametrize(
    ("shape", "classes", "examples", "message"),
    [
        ((3, 2, 2), 3, Examples(INPUTS, TARGETS), r"shape \(1, 2, 2\), the plan.* \(3, 2, 2\)"),
        ((4, 1, 1), 3, Examples(INPUTS, TARGETS), r"shape \(1, 2, 2\), the plan.* \(4, 1, 1\)"),
        (
            (1, 2, 2),
            2,
            Examples(INPUTS, TARGETS),
            "targets are from 0 to 2; .* has 2 classes",
        ),
        ((1, 2, 2), 3, Examples(INPUTS, TARGETS - 1), "targets are from -1 to 1"),
        ((1, 2, 2), 3, Examples(INPUTS[:1], TARGETS[:1]), "holds 1 examples"),
        ((1, 2, 2), 3, Examples(INPUTS, np.ones_like(TARGETS)), "of class 1 only"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(
    shape: tuple[int, int, int], classes: int, examples: Examples, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_trainable(examples, shape, PLAIN, (classes,), "error")


# Files of others


def claiming(name: str, header: str, data: bytes = b"") -> bytes:
    """A .npz whose array claims what its header says."""
    whole = header.ljust(117).encode() + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(whole)) + whole + data
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{name}.npy", array)
        other = next(each for each in ARRAYS if each != name)
        with archive.open(f"{other}.npy", "w") as file:
            np.save(file, INPUTS if other == "inputs" else TARGETS)
    return out.getvalue()


LIES = [
    ("inputs", "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1, 8, 8)}"),
    ("targets", "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}"),
    ("inputs", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8)}"),
    ("inputs", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, " + "9" * 60 + ")}"),
    ("inputs", "{'descr': '|O', 'fortran_order': False, 'shape': ()}"),
    ("inputs", "{'descr': '<U99999', 'fortran_order': False, 'shape': (9999999,)}"),
    ("inputs", "{'descr': 3, 'fortran_order': False, 'shape': (1,)}"),
    ("inputs", "[" * 100),
    ("inputs", "\x00" * 100),
]


@pytest.mark.parametrize(("name", "header"), LIES, ids=lambda value: value[:60])
def test_an_array_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, name: str, header: str
) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(claiming(name, header))
    tracemalloc.start()
    with pytest.raises(DataError, match="cannot be read"):
        load_examples(str(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6


def test_a_bomb_of_zeros_and_a_forged_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, inputs=np.zeros((6, 1, 8, 8), np.float32), targets=TARGETS)
    load_examples(str(path))  # good compression does not make a bomb
    forged = path.read_bytes().replace(
        struct.pack("<I", 6 * 64 * 4 + 128), struct.pack("<I", 2**31)
    )
    assert forged != path.read_bytes()
    path.write_bytes(forged)
    with pytest.raises(DataError, match="cannot be read"):
        load_examples(str(path))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle ran')",)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, inputs=np.array([Trap()], object), targets=TARGETS)
    with pytest.raises(DataError, match="pickled objects"):
        load_examples(str(path))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="cannot be read"):
        load_examples(str(path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    inputs = INPUTS.copy()
    inputs.flat[-1] = value
    np.savez(tmp_path / "mine.npz", inputs=inputs, targets=TARGETS)
    with pytest.raises(DataError, match="NaN or infinite"):
        load_examples(str(tmp_path / "mine.npz"))


def failing() -> Examples:
    raise RuntimeError("the camera is off")


def test_a_function_that_fails_is_one_line() -> None:
    with pytest.raises(DataError, match="raised RuntimeError: the camera is off"):
        load_examples("tests.device.test_data:failing")
