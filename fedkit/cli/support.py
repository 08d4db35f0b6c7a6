"""What each part of the project takes: kinds of ops, models of the zoo, losses and metrics.

Nothing is listed here. A cell about ops comes from the rows of the registries, and what has to be
planned is planned; the models are tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text
from torch import nn

from edge import passes
from edge.export import float_graph
from edge.ops.registry import SPECS as INTEGERS
from edge.ops.registry import check_forms
from edge.quantize.to_int8 import quantize
from edge.targets.registry import NAMES
from fedkit.core.errors import FedkitError
from fedkit.engine.ops.registry import FAMILIES, check_integer, check_sparse
from fedkit.engine.plan.capture import capture
from fedkit.engine.plan.from_graph import RULES, PlanMaker
from fedkit.graph import ir
from fedkit.graph.ops.registry import SPECS, tokens_of
from fedkit.graph.spec import Spec
from fedkit.nn.zoo import MODELS, build_model, smallest_shape
from fedkit.tasks.losses import LOSSES
from fedkit.tasks.metrics import METRICS

Some = TypeVar("Some")

YES, NO, TRAINS = "yes", "no", "training only"

_TRIES = 8  # of a kind's random examples, of which some are what a plan cannot express
_CLASSES = 10
_EXAMPLES = 2


def support() -> dict[str, Any]:
    """Return what is supported.

    Returns:
        `rows`: per kind of op, which part takes it: "yes", "no" or a reason. `models`: per model
        of the zoo, whether it trains without torch, and to which targets it is exported. `losses`,
        which all engines have, and `metrics`: what each is called and what it is.
    """
    return {
        "rows": list(op_rows()),
        "models": list(map(model_row, MODELS)),
        "losses": list(task_rows(LOSSES, "losses")),
        "metrics": list(task_rows(METRICS, "metrics")),
    }


# Losses and metrics


def task_rows(table: Mapping[str, type], module: str) -> Iterator[dict[str, str]]:
    """Yield a row for each loss or metric of a registry.

    Args:
        table: Name -> class.
        module: Of `fedkit.tasks`, that offers the classes.
    """
    for name, row in table.items():
        about = (row.__doc__ or "").strip().splitlines()[0].removesuffix(".")
        yield {"name": name, "python": f"{module}.{row.__name__}", "about": about}


# Ops


def op_rows() -> Iterator[dict[str, str]]:
    """Yield a row for each kind of op."""
    for kind, spec in SPECS.items():
        plan = _planned(spec)
        yield {
            "op": kind,
            "torch_reader": YES if spec.aten else NO,
            "onnx_reader": _onnx_reader(spec),
            "torch_engine": YES,  # it runs any module of torch
            "sparse_engine": _engine(plan, "sparse"),
            "integer_engine": _engine(plan, "integer"),
            "interpreter": _exported(kind, lambda found: found in INTEGERS),
            **{target: _exported(kind, _has_form(target)) for target in NAMES},
        }


def _onnx_reader(spec: Spec) -> str:
    if spec.onnx and spec.only_trains:
        return "as in evaluation"
    return YES if spec.onnx else NO


def _planned(spec: Spec) -> set[str] | str:
    """Return the kinds of ops that a plan of an example has, or why there is none."""
    if spec.kind not in RULES:
        return NO
    reasons: list[str] = []
    for seed in range(_TRIES):
        maker = PlanMaker(_with_parameters(spec.example(np.random.default_rng(seed))))
        if not maker.reasons:
            return {op.kind for op in maker.ops}
        reasons += maker.reasons
    return reasons[0].rpartition(": ")[2]


def _with_parameters(graph: ir.Graph) -> ir.Graph:
    """Return a graph whose constants are parameters and statistics, as those of a model."""
    names = ("running_mean", "running_var", "weight", "bias")
    constants = [tensor for tensor in graph.tensors.values() if tensor.data is not None]
    named = {
        tensor.name: replace(tensor, parameter=f"layer.{name}")
        for name, tensor in zip(names[-len(constants) :], constants, strict=False)
    }
    return replace(graph, tensors={**graph.tensors, **named})


def _engine(plan: set[str] | str, engine: str) -> str:
    if isinstance(plan, str):
        return plan
    lacking = sorted(kind for kind in plan if getattr(FAMILIES[kind], engine) is None)
    return f"{', '.join(lacking)} not computed" if lacking else YES


def _has_form(target: str) -> Callable[[ir.Kind], bool]:
    return lambda kind: kind in INTEGERS and getattr(INTEGERS[kind], target) is not None


def _exported(kind: ir.Kind, takes: Callable[[ir.Kind], bool]) -> str:
    """Say whether an export takes a kind, or what that becomes before it is quantised."""
    if SPECS[kind].only_trains:
        return TRAINS
    if kind in INTEGERS:
        return YES if takes(kind) else NO
    kinds = dict.fromkeys(op.kind for op in passes.optimise(an_example(kind)).ops)
    fits = kind not in kinds and all(map(takes, kinds))
    return f"as {', '.join(kinds)}" if fits else NO


def an_example(kind: ir.Kind, seed: int = 0) -> ir.Graph:
    """Return a float graph whose last op is of a kind."""
    return SPECS[kind].example(np.random.default_rng(seed))


# Models


def model_row(name: str) -> dict[str, Any]:
    """Try a model of the zoo, on the smallest inputs that it takes."""
    shape = smallest_shape(name, channels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the trace, which nobody sees
        model = build_model(name, shape, _CLASSES)
        tokens = MODELS[name].takes == "tokens"
        plan = _tried(lambda: capture(model, shape, tokens=tokens))
        floats = _tried(lambda: _quantisable(model, shape, tokens))
    return {
        "name": name,
        "trains_sparse": plan is not None and _passes(check_sparse, plan),
        "trains_int8": plan is not None and _passes(check_integer, plan),
        "exports": [
            target
            for target in NAMES
            if floats is not None and _passes(check_forms, floats, target)
        ],
    }


def _quantisable(model: nn.Module, shape: tuple[int, ...], tokens: bool) -> ir.Graph:
    """Return the float graph of a model, of which integers have been made."""
    floats, random = float_graph(model, shape, tokens), np.random.default_rng(0)
    if tokens:
        inputs = random.integers(tokens_of(floats), size=(_EXAMPLES, *shape)).astype(np.float32)
    else:
        inputs = random.standard_normal((_EXAMPLES, *shape)).astype(np.float32)
    quantize(floats, ir.to_graph_layout(inputs))
    return floats


def _tried(make: Callable[[], Some]) -> Some | None:
    try:
        return make()
    except FedkitError:
        return None


def _passes(check: Callable[..., None], *arguments: object) -> bool:
    try:
        check(*arguments)
    except FedkitError:
        return False
    return True


# For people


_HEADS = {"interpreter": "inter-\npreter"}
"""Heads of columns that would be wider than what stands below them."""


def support_table(found: Mapping[str, Any]) -> Group:
    """Return tables of ops, with the reasons that it has numbers for, of models, and of losses."""
    reasons: dict[str, int] = {}
    heads = (_HEADS.get(key, key.replace("_", "\n", 1)) for key in found["rows"][0])
    columns = (Column(head, no_wrap=True) for head in heads)
    ops = Table(*columns, title="kinds of ops", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for row in found["rows"]:
        kind, *cells = row.values()
        ops.add_row(kind, *(_short(cell, reasons) for cell in cells))
    notes = Text("\n".join(f"  {number}  {reason}" for reason, number in reasons.items()))
    models = Table("model", "sparse engine", "integer engine", "exports", title="models of the zoo")
    for row in found["models"]:
        trains = (YES if row[key] else NO for key in ("trains_sparse", "trains_int8"))
        models.add_row(row["name"], *trains, ", ".join(row["exports"]) or NO)
    task = Table("name", "in Python", title="losses, of all engines, and metrics")
    for row in (*found["losses"], *found["metrics"]):
        task.add_row(row["name"], row["python"])
    return Group(ops, notes, Text(), models, task)


def _short(cell: str, reasons: dict[str, int]) -> str:
    """Return yes, no, or the number that a reason has among those met so far."""
    return cell if cell in (YES, NO) else str(reasons.setdefault(cell, len(reasons) + 1))
