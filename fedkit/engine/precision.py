"""In how many bits devices train, and the engine of a plan for each choice; no torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Union

from fedkit.engine.kernels.native import INSTALL
from fedkit.engine.plan.structure import Plan
from fedkit.engine.sparse.engine import SparseEngine
from fedkit.sparse.state import ModelState

if TYPE_CHECKING:  # a device that trains in float32 holds nothing of the integer engine
    from fedkit.engine.integer.engine import IntegerEngine

Precision = Literal["fp32", "int8", "int6", "int4"]
"""What training computes with: float32, or integers of so many bits."""

BITS: dict[Precision, int] = {"int8": 8, "int6": 6, "int4": 4}
"""Bits of weights, activations and gradients in integer training."""

PlanEngine = Union[SparseEngine, "IntegerEngine"]
"""An engine that runs a plan."""


def plan_engine(
    plan: Plan,
    precision: Precision,
    initial: ModelState | None = None,
    backend: str = "",
    stored_bits: int = 32,
    memory: int | None = None,
) -> PlanEngine:
    """Return the engine that runs a plan at a precision.

    Args:
        plan: The model.
        precision: Of training and of everything else the engine computes.
        initial: What its `initial_state` returns; None on a device.
        backend: Of the integer engine: "native", "numpy", or "" for the kernels where they are.
        stored_bits: Of float32 alone: of what the backward pass reads again.
        memory: Of float32 alone: most bytes of a step; None: what it needs.

    Raises:
        EngineError: The kernels are needed and missing, or the plan has an op that the engine
            lacks.
        PlanError: The plan is broken.
    """
    if precision == "fp32":
        return SparseEngine(plan, initial, stored_bits=stored_bits, memory=memory)
    from fedkit.engine.integer.engine import IntegerEngine

    return IntegerEngine(plan, initial, BITS[precision], backend=backend)


def describe(engine: PlanEngine) -> str:
    """Return a line that says what an engine computes with, and on what."""
    if isinstance(engine, SparseEngine):
        stored = "" if engine.stored_bits == 32 else f", stores {engine.stored_bits} bits"
        within = "" if engine.memory is None else f", within {engine.memory / 1e6:g} MB a step"
        return f"sparse ({engine.kernels.simd}{stored}{within})"
    if engine.kernels is not None:
        return f"integer, {engine.bits} bits ({engine.kernels.simd})"
    return (
        f"integer, {engine.bits} bits, on numpy and many times slower than the compiled kernels, "
        f"which are missing; {INSTALL}"
    )
