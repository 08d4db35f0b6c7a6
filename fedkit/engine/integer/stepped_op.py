"""An op that the kernels run whole: they choose its constants too."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Sequence

from fedkit.engine.integer.native_backend import AnyOp, NativeOp
from fedkit.engine.integer.shared_units import SharedUnits
from fedkit.engine.kernels import int_native
from fedkit.engine.plan.execution import Contribution

Step = tuple[int_native.StepKind, ctypes.Structure]
"""An entry of a program's table: which step of int_steps.h, and its struct."""


class SteppedOp(NativeOp[AnyOp]):
    """A base of what an op's two passes are as steps; asked for once, with the memory there."""

    @abstractmethod
    def forward_step(self, shared: SharedUnits) -> Step:
        """Return the forward pass: what `IntegerOp.forward` chooses, and the kernel."""

    @abstractmethod
    def backward_steps(self, shared: SharedUnits, given: Sequence[Contribution]) -> Sequence[Step]:
        """Return the backward pass likewise, see `IntegerOp.backward`."""
