"""All families of ops that a plan may hold, and how they are found.

A family is added as a file in this package with its row, `FAMILY`. It is found here.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from fedkit.core.errors import EngineError
from fedkit.engine import ops
from fedkit.engine.integer.integer_op import IntegerFamily
from fedkit.engine.ops.family import Family
from fedkit.engine.plan.conv import shared_parameters
from fedkit.engine.plan.structure import Plan, PlanOp
from fedkit.engine.sparse.float_op import FloatOp


def _found() -> Iterator[tuple[str, Family]]:
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        own = module.name == __name__
        if not own and (row := getattr(import_module(module.name), "FAMILY", None)) is not None:
            yield module.name, row


def gather(found: Iterable[tuple[str, Family]]) -> dict[str, Family]:
    """Return kind -> family.

    Args:
        found: Families with the names of their modules.

    Raises:
        EngineError: Two modules give one kind, a row is not a `Family`, or it has no kind, or no
            example of one.
    """
    table: dict[str, Family] = {}
    owner: dict[str, str] = {}
    for module, family in found:
        if not isinstance(family, Family):
            raise EngineError(
                f"{module} has FAMILY, and that is a {type(family).__name__}; make it a "
                "fedkit.engine.ops.family.Family"
            )
        if not family.kinds:
            raise EngineError(
                f"the field kind of {family.op.__name__} in {module} has no names; give it a type "
                'like Literal["add"]'
            )
        for kind in family.kinds:
            if kind in owner:
                raise EngineError(
                    f"{owner[kind]} and {module} both have an op {kind!r}; rename one"
                )
            if not any(example.op.kind == kind for example in family.examples):
                raise EngineError(
                    f"{module} has no example of its op {kind!r}, so nothing would test it; add "
                    "one to its FAMILY"
                )
            table[kind], owner[kind] = family, module
    return table


FAMILIES: Mapping[str, Family] = gather(_found())
"""Kind of an op -> its family."""


def float_op(op: PlanOp) -> type[FloatOp[Any]]:
    """Return how the sparse engine runs an op of a plan that passed `check_sparse`."""
    found = FAMILIES[op.kind].sparse
    assert found is not None
    return found


def integer_family(op: PlanOp) -> IntegerFamily:
    """Return how the integer engine runs an op of a plan that passed `check_integer`."""
    found = FAMILIES[op.kind].integer
    assert found is not None
    return found


def check_sparse(plan: Plan) -> None:
    """Raise an `EngineError` that names the ops of a plan which the sparse engine lacks."""
    _check(plan, "sparse", [k for k, family in FAMILIES.items() if family.sparse is None])


def check_integer(plan: Plan) -> None:
    """Raise an `EngineError` that names the ops of a plan which the integer engine lacks.

    Nor has it layers that are called several times: the codes of their weights would follow several
    gradients, each of a scale of its own.
    """
    if shared := shared_parameters(plan):
        named = ", ".join(f"{name} ({count} times)" for name, count in shared.items())
        raise EngineError(
            f"the model uses {named}, and the integer engine trains what is used once; such "
            "models need --engine sparse or torch"
        )
    _check(plan, "integer", [k for k, family in FAMILIES.items() if family.integer is None])
    for op in plan.ops:
        if problem := integer_family(op).refused(op, plan):
            raise _lacking(problem, "integer")


def _check(plan: Plan, engine: str, lacking: Sequence[str]) -> None:
    found = dict.fromkeys(op.kind for op in plan.ops if op.kind in lacking)
    if found:
        raise _lacking(", ".join(found), engine)


def _lacking(what: str, engine: str) -> EngineError:
    return EngineError(
        f"the model has {what}, which the {engine} engine does not compute; such models need "
        "--engine torch"
    )
