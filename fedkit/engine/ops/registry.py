"""All families of ops that a plan may hold, and how they are found.

A family is added as a file in this package with its row, `FAMILY`. It is found here. A file that is
named as its kind is imported when that kind is asked for, without the others: a small device holds
what it imports as long as it lives.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from importlib import import_module
from typing import Any

from fedkit.core.errors import EngineError
from fedkit.engine import ops
from fedkit.engine.integer.integer_op import IntegerFamily
from fedkit.engine.ops.family import Family
from fedkit.engine.plan.conv import shared_parameters
from fedkit.engine.plan.structure import Plan, PlanOp
from fedkit.engine.sparse.float_op import FloatOp


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(ops.__path__, f"{ops.__name__}."):
        if module.name != __name__:
            yield module.name


def _rows(names: Iterable[str]) -> Iterator[tuple[str, Family]]:
    for name in names:
        if (row := getattr(import_module(name), "FAMILY", None)) is not None:
            yield name, row


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


class Families(MutableMapping[str, Family]):
    """Kind of an op -> its family. Who goes through all of them imports all."""

    def __init__(self) -> None:
        self._known: dict[str, Family] = {}
        self._complete = False

    def _all(self) -> dict[str, Family]:
        if not self._complete:
            self._known = gather(_rows(_modules())) | self._known
            self._complete = True
        return self._known

    def __getitem__(self, kind: str) -> Family:
        """Return the family of a kind, from the module of that name if there is one."""
        if kind not in self._known:
            name = f"{ops.__name__}.{kind.replace('-', '_')}"
            self._known |= gather(_rows(each for each in _modules() if each == name))
        return self._known[kind] if kind in self._known else self._all()[kind]

    def __setitem__(self, kind: str, family: Family) -> None:
        self._known[kind] = family

    def __delitem__(self, kind: str) -> None:
        del self._known[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


FAMILIES = Families()
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
    _check(plan, "sparse", lambda family: family.sparse is None)


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
    _check(plan, "integer", lambda family: family.integer is None)
    for op in plan.ops:
        if problem := integer_family(op).refused(op, plan):
            raise _lacking(problem, "integer")


def _check(plan: Plan, engine: str, lacks: Callable[[Family], bool]) -> None:
    found = dict.fromkeys(op.kind for op in plan.ops if lacks(FAMILIES[op.kind]))
    if found:
        raise _lacking(", ".join(found), engine)


def _lacking(what: str, engine: str) -> EngineError:
    return EngineError(
        f"the model has {what}, which the {engine} engine does not compute; such models need "
        "--engine torch"
    )
