"""`fedkit bench onnxnodes`: the node tests of the onnx package, each read and run, or refused.

The package ships some 1,900 small models, one for each way to use an operator, with inputs and the
outputs that are right. Most list weights and settings as inputs, which files of models hold as
constants. So each case is read once for each of its inputs, with all others as initialisers, and
once with all inputs left open. A batch larger than 1 is left open, as the graph takes one example
at a time. Vectors and cubes, as which most functions of one value are tested, get a dimension of
size 1 at the end, where ONNX's reference gives the same numbers then. Maps that a model returns are
flattened.

A case is right if it was read in at least one way, and every way that was read gives the outputs
of the case; it is wrong if one of them does not, or ends in anything but a refusal.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from fedkit.bench import markdown
from fedkit.core.errors import FedkitError
from fedkit.graph import from_onnx, ir
from fedkit.graph.file_integers import Steps
from fedkit.graph.interpret import evaluate_all
from fedkit.graph.onnx_compare import as_read

_CASES = "onnx.backend.test.case.node"
_QUICK = ("relu", "conv", "gemm", "maxpool", "clip", "concat", "quantizelinear", "reshape")
_RELATIVE = 1e-3  # as the package's own runner has it
_ABSOLUTE = 1e-5

Arrays = Sequence[ir.Array]
Verdict = Literal["right", "refused", "wrong"]


@dataclass(frozen=True)
class Case:
    """A node test.

    Attributes:
        inputs: Of the model, in its order; as `outputs`.
    """

    name: str
    model: onnx.ModelProto
    inputs: Arrays
    outputs: Arrays

    @property
    def operators(self) -> set[str]:
        """What the model has, of what can be read."""
        return {node.op_type for node in self.model.graph.node if not node.domain} & {
            *from_onnx.OPERATORS
        }


@dataclass
class Outcome:
    """What became of a case."""

    verdict: Verdict = "refused"
    ways: int = 0
    """That were read."""

    reason: str = ""


def bench_onnxnodes(quick: bool) -> dict[str, Any]:
    """Return a row per operator that can be read, and the counts of all cases that hold one."""
    outcomes = {case.name: (case, judge(case)) for case in cases(_QUICK if quick else ())}
    rows = [_row(operator, outcomes) for operator in sorted(from_onnx.OPERATORS)]
    verdicts = [outcome.verdict for case, outcome in outcomes.values() if case.operators]
    return {
        "benchmark": "onnxnodes",
        "seeds": ["of the package"],
        "onnx": onnx.__version__,
        "shipped": len(outcomes),
        "cases": len(verdicts),
        **{each: verdicts.count(each) for each in ("right", "refused", "wrong")},
        "wrong_cases": sorted(n for n, (_, found) in outcomes.items() if found.verdict == "wrong"),
        "rows": [row for row in rows if row["cases"]],
    }


def table(result: Mapping[str, Any]) -> list[str]:
    """Return the table for people."""
    keys = ("cases", "right", "refused", "wrong")
    lines = [
        f"| {row['op']} | {' | '.join(str(row[key]) for key in keys)} | {row['refusals']} |"
        for row in (*result["rows"], {**result, "op": "all, each once", "refusals": ""})
    ]
    head = "| operator | cases | right | refused | wrong | most frequent refusals |"
    return [
        f"Of the {result['shipped']:,} node tests of onnx {result['onnx']}, "
        f"{result['cases']:,} hold an operator that can be read.",
        "",
        *markdown.table(head, (line.replace("\n", " ") for line in lines)),
    ]


def _row(operator: str, outcomes: Mapping[str, tuple[Case, Outcome]]) -> dict[str, Any]:
    found = [outcome for case, outcome in outcomes.values() if operator in case.operators]
    verdicts = [outcome.verdict for outcome in found]
    reasons: dict[str, int] = {}
    for outcome in found:
        if outcome.verdict == "refused":
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    most = sorted(reasons, key=lambda reason: -reasons[reason])[:2]
    return {
        "op": operator,
        "cases": len(found),
        **{each: verdicts.count(each) for each in ("right", "refused", "wrong")},
        "refusals": "; ".join(f"{reason} ({reasons[reason]})" for reason in most),
    }


# Cases


def cases(modules: Sequence[str] = ()) -> Iterator[Case]:
    """Yield the package's node tests, or those of some of its modules; it takes half a minute."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        node = import_module(_CASES)
        if modules:
            for module in modules:
                import_module(f"{_CASES}.{module}")
            found = list(node._NodeTestCases)
        else:
            found = node.collect_testcases(None)
    for case in found:
        for inputs, outputs in case.data_sets or ():
            yield Case(case.name, case.model, _arrays(inputs), _arrays(outputs))


def _arrays(values: Sequence[Any]) -> list[Any]:
    """Return tensors and numbers as arrays; sequences and what is left out as they are."""
    known = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]
    return [np.asarray(v) if isinstance(v, np.generic) else v for v in known]


def judge(case: Case) -> Outcome:
    """Read a case in every way, and compare."""
    outcome = Outcome()
    for model, given in _ways(case):
        try:
            fits = _is_right(model, given, case.outputs)
        except FedkitError as error:
            outcome.reason = outcome.reason or _short(str(error))
            continue
        except Exception as error:  # what must not be is counted, not hidden
            return Outcome("wrong", outcome.ways, f"{type(error).__name__}: {error}")
        if not fits:
            return Outcome("wrong", outcome.ways, f"with {list(given)} open")
        outcome.ways, outcome.verdict = outcome.ways + 1, "right"
    return outcome


def _short(reason: str) -> str:
    """Return the rule of a refusal, without names, sizes and remedies."""
    line = reason.splitlines()[1].strip() if "\n" in reason else reason
    _, _, rule = line.partition(": ")
    rule = rule if line.startswith("node") else line
    return rule.split(";")[0][:100]


def _ways(case: Case) -> Iterator[tuple[onnx.ModelProto, dict[str, ir.Array]]]:
    """Yield a case's model with some of its inputs left open, and the values of those."""
    ports = [port.name for port in case.model.graph.input]
    given = dict(zip(ports, case.inputs, strict=False))
    if len(given) != len(ports) or not all(isinstance(v, np.ndarray) for v in given.values()):
        yield case.model, {}  # sequences, and what is left out
        return
    yield from _opened(case.model, given)
    if any(v.ndim in _LIFTED for v in given.values()) and (lifted := _lift(case, given)):
        yield from _opened(*lifted)


def _opened(
    model: onnx.ModelProto, given: Mapping[str, ir.Array]
) -> Iterator[tuple[onnx.ModelProto, dict[str, ir.Array]]]:
    numbers = [name for name, value in given.items() if value.dtype in _OPEN and value.ndim > 1]
    ways = [{name} for name in numbers]
    if len(given) > 1 and len(numbers) == len(given):
        ways.append(set(numbers))
    for names in ways or [set(given)]:
        yield _with_open(model, given, names), {n: given[n] for n in given if n in names}


_OPEN = (np.float32, np.uint8, np.int8)
_LIFTED = (1, 3)
"""Dimensions of values that models here do not have."""


def _lift(
    case: Case, given: Mapping[str, ir.Array]
) -> tuple[onnx.ModelProto, dict[str, ir.Array]] | None:
    """Return a case whose vectors and cubes have one more dimension, of size 1, at the end.

    It is one only where that changes nothing but shapes, as ONNX's reference says.
    """
    lifted = {n: v[..., None] if v.ndim in _LIFTED else v for n, v in given.items()}
    made = onnx.ModelProto.FromString(case.model.SerializeToString())
    for port in made.graph.input:
        shape = port.type.tensor_type.shape
        if len(shape.dim) in _LIFTED:
            shape.dim.add().dim_value = 1
    for port in made.graph.output:
        if len(port.type.tensor_type.shape.dim) in _LIFTED:
            port.type.tensor_type.shape.dim.add().dim_value = 1
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(made).run(None, lifted)
            same = all(map(_is_lifted, found, case.outputs))
    except Exception:  # of any class
        return None
    return (made, lifted) if same else None


def _is_lifted(found: ir.Array, wanted: ir.Array) -> bool:
    is_right = found.shape[: wanted.ndim] == wanted.shape and found.size == wanted.size
    return is_right and _is_close(np.asarray(found, np.float32), wanted.astype(np.float32), None)


def _with_open(
    model: onnx.ModelProto, given: Mapping[str, ir.Array], names: set[str]
) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for port in made.graph.input:
        if port.name not in names:
            made.graph.initializer.append(numpy_helper.from_array(given[port.name], port.name))
        elif (dims := port.type.tensor_type.shape.dim) and dims[0].dim_value != 1:
            dims[0].dim_param = "batch"
    _flatten(made.graph)
    return made


def _flatten(graph: onnx.GraphProto) -> None:
    """Put a Flatten behind outputs of more than two dimensions, and leave all sizes open."""
    for number, port in enumerate(graph.output):
        found, name = port.type.tensor_type, f"flat {number}"
        if len(found.shape.dim) > _ROWS and found.elem_type == onnx.TensorProto.FLOAT:
            graph.node.append(onnx.helper.make_node("Flatten", [port.name], [name], name=name))
            graph.output[number].name = name
            del found.shape.dim[_ROWS:]
        for dim in found.shape.dim:
            dim.ClearField("value")


_ROWS = 2  # dimensions of what an artifact returns


def _is_right(model: onnx.ModelProto, given: Mapping[str, ir.Array], outputs: Arrays) -> bool:
    read = from_onnx.read(from_onnx.opened(model.SerializeToString()))
    examples = {name: value.astype(np.float32) for name, value in given.items()}
    with np.errstate(all="ignore"):
        found = evaluate_all(read.graph, as_read(read.graph, examples, read.ports))
    names = [port.name for port in model.graph.output]
    return len(found) == len(outputs) and all(
        _is_close(ir.from_graph_layout(one), wanted, read.ports.get(name))
        for one, wanted, name in zip(found, outputs, names, strict=True)
    )


def _is_close(found: ir.FloatArray, wanted: ir.Array, steps: Steps | None) -> bool:
    laid = np.asarray(found)
    if laid.size != wanted.size:
        return False
    laid = laid.reshape(wanted.shape)
    if steps is None:
        return bool(np.allclose(laid, wanted, _RELATIVE, _ABSOLUTE, equal_nan=True))
    codes = np.rint(laid / np.float32(steps.scale)) + steps.zero
    cut = np.clip(codes, steps.least, steps.least + 255)
    return bool(np.abs(cut - wanted.astype(np.float64)).max(initial=0) <= 1)


if __name__ == "__main__":  # which cases are wrong, to mend the reader by
    for each in cases(sys.argv[1:]):
        if (result := judge(each)).verdict == "wrong":
            print(each.name, result.reason)
