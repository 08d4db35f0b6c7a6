"""The engines refuse arrays that do not come through `Examples`, which converts.

They hand pointers to compiled code: another dtype or layout would be read as other numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedkit.core.errors import EngineError
from fedkit.engine.integer.engine import IntegerEngine
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples
from tests.engine.sparse.cases import engines, examples, pruned, zoo

SHAPE = (1, 8, 8)
KINDS = ("sparse", "integer numpy", "integer native")


@pytest.fixture(scope="module")
def sparse() -> tuple[SparseEngine, ModelState]:
    reference, engine = engines(zoo("resnet8", SHAPE), SHAPE)
    return engine, pruned(reference.initial_state(), 0.3)


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, sparse: tuple[SparseEngine, ModelState]
) -> tuple[SparseEngine | IntegerEngine, ModelState]:
    engine, state = sparse
    if request.param == "sparse":
        return engine, state
    return IntegerEngine(engine.plan, state, backend=request.param.split()[1]), state


def images(count: int = 8) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    return rng.standard_normal((count, *SHAPE)).astype(np.float32)


DTYPES = ("float64", "float16", "uint8", "int8", "int32", "int64", "bool", "complex64", ">f4")

LAYOUTS: dict[str, Callable[[], NDArray[np.float32]]] = {
    "every second": lambda: images(16)[::2],
    "reversed": lambda: images()[::-1],
    "transposed": lambda: images().transpose(0, 1, 3, 2),
    "Fortran order": lambda: np.asfortranarray(images()),
    "broadcast": lambda: np.broadcast_to(images(1), (8, *SHAPE)),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_dtype_is_refused(
    dtype: str, made: tuple[SparseEngine | IntegerEngine, ModelState]
) -> None:
    engine, state = made
    with np.errstate(invalid="ignore"):
        bad: Any = images().astype(dtype)
    with pytest.raises(EngineError, match=rf"inputs are {np.dtype(dtype)} \(8, 1, 8, 8\); .*float"):
        engine.outputs(state, bad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_is_refused(
    layout: str, made: tuple[SparseEngine | IntegerEngine, ModelState]
) -> None:
    engine, state = made
    bad = LAYOUTS[layout]()
    with pytest.raises(EngineError, match=r"the plan takes contiguous float32 \[n, 1, 8, 8\]"):
        engine.outputs(state, bad)
    good = engine.outputs(state, np.ascontiguousarray(bad))
    assert np.isfinite(good).all() and len(good) == 8


@pytest.mark.parametrize("dtype", ["float64", "uint8", "int64"])
@pytest.mark.parametrize("mode", ["train", "statistics", "evaluate"])
def test_a_sparse_program_checks_each_batch(
    mode: Any, dtype: str, sparse: tuple[SparseEngine, ModelState]
) -> None:
    engine, state = sparse
    program, order = engine.program(state, mode, 4), np.arange(4)
    for bad in (images().astype(dtype), images(16)[::2]):
        with pytest.raises(EngineError, match="the plan takes contiguous float32"):
            program.forward(bad, order)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int16"])
@pytest.mark.parametrize("mode", ["train", "statistics", "evaluate"])
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_an_integer_program_checks_each_batch(
    backend: str, mode: Any, dtype: str, sparse: tuple[SparseEngine, ModelState]
) -> None:
    engine, state = sparse
    program = IntegerEngine(engine.plan, state, backend=backend).program(state, mode, 4)
    codes = np.arange(16 * 64).reshape(16, *SHAPE) % 128
    for bad in (codes[:8].astype(dtype), codes.astype(np.int8)[::2]):
        with pytest.raises(EngineError, match=r"the plan takes contiguous int8 \[n, 1, 8, 8\]"):
            program.forward(bad, 0.5, np.arange(4))


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_examples_bring_what_the_engines_take(
    dtype: str, made: tuple[SparseEngine | IntegerEngine, ModelState]
) -> None:
    """Layout and width are no matter; whole numbers stay such, and are refused by name."""
    engine, state = made
    targets = examples(8, SHAPE).targets
    pixels = (images(16) * 50).astype(dtype)[::2]
    plain = Examples(np.ascontiguousarray(pixels.astype(np.float32)), targets)
    if dtype == "uint8":
        with pytest.raises(EngineError, match="inputs are int64"):
            engine.loss(state, Examples(pixels, targets))
    else:
        assert engine.loss(state, Examples(pixels, targets)) == engine.loss(state, plain)
