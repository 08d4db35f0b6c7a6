"""How families of ops are found, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from fedkit.core.errors import EngineError
from fedkit.engine.ops.registry import FAMILIES, gather
from fedkit.engine.plan.structure import Plan, PlanOp

POOL, LAYER = FAMILIES["pool"], FAMILIES["layer"]


def test_every_kind_of_a_family_is_found() -> None:
    assert LAYER.kinds == ("layer", "l1-layer")
    assert gather([("a", LAYER), ("b", POOL)]) == {"layer": LAYER, "l1-layer": LAYER, "pool": POOL}


def test_an_op_without_an_example_is_refused() -> None:
    with pytest.raises(EngineError, match=r"^a has no example of its op 'pool', .*; add one"):
        gather([("a", replace(POOL, examples=()))])


def test_each_kind_needs_an_example() -> None:
    only = tuple(example for example in LAYER.examples if example.op.kind == "layer")
    with pytest.raises(EngineError, match="no example of its op 'l1-layer'"):
        gather([("a", replace(LAYER, examples=only))])


def test_two_ops_of_one_name_are_refused() -> None:
    with pytest.raises(EngineError, match=r"^a and b both have an op 'pool'; rename one"):
        gather([("a", POOL), ("b", POOL)])


class Nameless(PlanOp):
    kind: str

    @property
    def sources(self) -> tuple[int, ...]:
        return ()

    def problems(self, plan: Plan) -> Iterator[str]:
        yield from ()


def test_an_op_whose_kind_has_no_name_is_refused() -> None:
    with pytest.raises(EngineError, match=r'^the field kind of Nameless in a .* Literal\["add"\]'):
        gather([("a", replace(POOL, op=Nameless))])


def test_what_is_not_a_family_is_refused() -> None:
    with pytest.raises(EngineError, match=r"^a has FAMILY, and that is a tuple; make it a"):
        gather([("a", ())])  # type: ignore[list-item]
