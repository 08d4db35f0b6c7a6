"""An op in numpy among compiled ones: what a family computes that has no kernel yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedkit.engine.integer.native_backend import NativeBackend
from fedkit.engine.integer.numpy_backend import NumpyBackend
from fedkit.engine.plan.structure import PlanOp


class NumpyOnNative:
    """Has the methods of a `NumpyOp`; each call copies its tensors from the arena and back.

    Args:
        make: The `NumpyOp`.
        op: The op.
        number: Its number in the plan.
        backend: Holds the tensors.
    """

    def __init__(
        self, make: Callable[..., Any], op: PlanOp, number: int, backend: NativeBackend
    ) -> None:
        self._op, self._backend = op, backend
        self._rows = NumpyBackend(backend.network)
        self._inner = make(op, number, self._rows)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of the op, with copies around it."""
        if name.startswith("_"):
            raise AttributeError(name)
        method: Callable[..., Any] = getattr(self._inner, name)

        def call(*arguments: Any, **given: Any) -> Any:
            self._load(forward=name == "forward")
            result = method(*arguments, **given)
            self._store(forward=name == "forward")
            self._rows.begin(0)
            return result

        return call

    def _load(self, forward: bool) -> None:
        op, backend, rows = self._op, self._backend, self._rows
        rows.begin(backend.examples)
        for tensor in {*op.sources, op.target}:
            struct = backend.tensors[tensor]
            if struct.x:
                rows.x[tensor] = backend.codes(tensor).astype(np.int64)
            if struct.gradient and not forward:
                rows.g[tensor] = backend.gradient_rows(tensor).astype(np.int64)
        if forward:
            rows.raw[op.target] = backend.raw_rows(op.target).astype(np.int64)
        self._before = dict(rows.g)

    def _store(self, forward: bool) -> None:
        op, backend, rows = self._op, self._backend, self._rows
        if forward:
            backend.set_raw(op.target, rows.raw[op.target].astype(np.int16))
        for tensor, gradient in rows.g.items():
            if gradient is not self._before.get(tensor):
                backend.set_gradient(tensor, gradient.astype(np.int16))
        self._before = {}
