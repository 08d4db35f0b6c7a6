"""Capture a torch model as a plan: trace it once, then lower node by node."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from fedkit.core.errors import PlanError
from fedkit.engine.plan.node_rules import PlanLowering, UnsupportedNode, lower_node, planned
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.side_effects import Watch, has_hooks
from fedkit.engine.plan.structure import Plan
from fedkit.nn.layers import STATISTICS, modes_restored, prunable_weights, tracking_norms
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm

_INSTEAD = (
    "replace them by Conv2d, Linear, BatchNorm, L1BatchNorm2d, LayerNorm, L1LayerNorm, ReLU, "
    "ReLU6, sums, concatenations of channels, max and average pooling and flatten, or use the "
    "torch engine"
)


_TRACES = 4
"""Traces in each mode: what draws from a generator that nobody can find differs between some."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def capture(model: nn.Module, input_shape: tuple[int, ...]) -> Plan:
    """Capture a model; it is left as it was.

    Args:
        model: Takes float32 [n, *input_shape], returns logits [n, classes].
        input_shape: (channels, height, width) or (features,) of one example.

    Raises:
        PlanError: The model cannot be traced, does not take such inputs, or has parts that a plan
            cannot express; all of them are listed.
    """
    if planned(input_shape) is None or min(input_shape) < 1:
        raise PlanError(
            f"input_shape is {tuple(input_shape)}; it must be (channels, height, width) or "
            "(features,) of one example, without the batch"
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise PlanError(f"{name} is lazy; run the model on an example before it is captured")
    with modes_restored(model):
        return _Capture(model, tuple(input_shape)).plan()


class _Tracer(fx.Tracer):
    """Keeps the layers of torch and our own whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """See `fx.Tracer.is_leaf_module`."""
        own = isinstance(m, L1BatchNorm2d | L1LayerNorm)
        return own or super().is_leaf_module(m, module_qualified_name)


class _Run(fx.Interpreter):
    """Notes what each node gives: shapes of one example, () where it holds none, and constants."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.constants: dict[fx.Node, object] = {}
        self._count = 0

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter.run_node`."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self._count = self._count or len(value)
            is_batch = value.dim() > 0 and len(value) == self._count
            self.shapes[n] = tuple(value.shape[1:]) if is_batch else ()
        elif n.op != "output" and not _holds_tensor(value):
            self.constants[n] = value
        return value


def _holds_tensor(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else ()
    return isinstance(value, Tensor) or any(_holds_tensor(part) for part in parts)


def _trace(model: nn.Module, root: nn.Module) -> fx.Graph:
    watch = Watch(model)
    try:
        in_training, in_evaluation = (
            [_trace_once(model, root, training) for _ in range(_TRACES)]
            for training in (True, False)
        )
        effects = watch.effects()
    finally:
        watch.undo()
    if effects:
        raise _untraceable(model, f"{'; '.join(effects)}; a plan computes the same in every pass")
    for graphs in (in_training, in_evaluation):
        if any(_text(graph) != _text(graphs[0]) for graph in graphs):
            raise _untraceable(
                model, "it calls other layers in one pass than in the next; a plan cannot choose"
            )
    if _text(in_training[0]) != _text(in_evaluation[0]):
        raise _untraceable(
            model,
            "it calls other layers in training than in evaluation; let its forward not depend on "
            "self.training",
        )
    return in_evaluation[0]


def _trace_once(model: nn.Module, root: nn.Module, training: bool) -> fx.Graph:
    model.train(training)
    try:
        return _Tracer().trace(root)
    except Exception as error:  # whatever the model's own code raises
        raise _untraceable(
            model,
            f"{_first_line(error)}; its forward must do the same whatever the numbers in its "
            "input are",
        ) from error


def _untraceable(model: nn.Module, reason: str) -> PlanError:
    return PlanError(f"{type(model).__name__} cannot be traced: {reason}")


def _text(graph: fx.Graph) -> list[str]:
    """Write a graph down without the flag that only says in which mode it was traced."""
    return [
        f"{n.op} {n.target} {n.args} {[item for item in n.kwargs.items() if item[0] != 'training']}"
        for n in graph.nodes
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _grouped(diagnostics: Sequence[str]) -> Iterator[str]:
    """Yield a line per kind of diagnostic: a deep model repeats the same one in each of its blocks.

    Args:
        diagnostics: Texts like "owner: part (reason)".
    """
    owners: dict[str, list[str]] = {}
    for diagnostic in diagnostics:
        owner, _, part = diagnostic.partition(": ")
        owners.setdefault(part, []).append(owner)
    for part, names in owners.items():
        distinct = list(dict.fromkeys(names))
        rest = f" and {len(distinct) - _NAMED} more" if len(distinct) > _NAMED else ""
        times = f", {len(names)} times" if len(names) > len(distinct) else ""
        yield f"{', '.join(distinct[:_NAMED])}{rest}: {part}{times}"


_NAMED = 4
"""Owners of equal diagnostics that are named."""


def _attribute(root: nn.Module, node: fx.Node) -> object:
    return operator.attrgetter(str(node.target))(root)


def _examples(weights: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    like = next(iter(weights.values()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(like)


class _Capture:
    """One capture. The root is a wrapper, so that a model that is one layer is traced as such."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._model, self._root = model, nn.Sequential(model)
        self._input_shape = input_shape
        self._weights = dict(model.named_parameters())
        self._graph = _trace(model, self._root)
        self._called = {
            node: self._root.get_submodule(str(node.target))
            for node in self._graph.nodes
            if node.op == "call_module"
        }
        self._names = {id(module): name for name, module in model.named_modules()}
        self._diagnostics = [*self._parameter_diagnostics(), *self._module_diagnostics()]
        self._lowering = self._lower()

    def plan(self) -> Plan:
        """Put the plan together, or refuse with everything that cannot be in it."""
        output = self._output()
        self._raise_diagnostics()
        self._raise_if_the_trace_differs()
        plan = Plan(
            {name: tuple(weight.shape) for name, weight in self._weights.items()},
            {
                f"{name}.{kind}": tuple(getattr(norm, kind).shape)
                for name, norm in tracking_norms(self._model).items()
                for kind in STATISTICS
            },
            prunable_weights(self._model),
            tuple(self._lowering.tensors),
            tuple(self._lowering.ops),
            output,
        )
        verify(plan)
        return plan

    # What cannot be captured

    def _parameter_diagnostics(self) -> Iterator[str]:
        used = {id(p) for module in self._called.values() for p in module.parameters()}
        reads = self._graph.find_nodes(op="get_attr")
        used |= {id(_attribute(self._root, node)) for node in reads}
        owners = Counter(id(p) for m in self._model.modules() for p in m._parameters.values())
        for name, weight in self._weights.items():
            for is_wrong, reason in (
                (weight.dtype != torch.float32, f"it is {weight.dtype}, not torch.float32"),
                (not weight.requires_grad, "requires_grad is False"),
                (owners[id(weight)] > 1, f"shared by {owners[id(weight)]} modules"),
                (id(weight) not in used, "no op uses it"),
                (has_hooks(weight), "it has hooks"),
            ):
                if is_wrong:
                    yield f"{name}: Parameter ({reason})"

    def _module_diagnostics(self) -> Iterator[str]:
        norms = tracking_norms(self._model)
        calls = Counter(id(module) for module in self._called.values())
        stateful = {id(m) for m in self._model.modules() if list(m.parameters())}
        stateful |= {id(norm) for norm in norms.values()}
        for module in self._model.modules():
            label = f"{self._names[id(module)] or '(model)'}: {type(module).__name__}"
            if any(getattr(module, hooks) for hooks in _HOOKS):
                kinds = (
                    "forward" if module._forward_hooks or module._forward_pre_hooks else "backward"
                )
                yield f"{label} (it has {kinds} hooks)"
            if "forward" in vars(module):
                yield f"{label} (its forward was replaced)"
            if calls[id(module)] > 1 and id(module) in stateful:
                yield f"{label} (called {calls[id(module)]} times, so its parameters are shared)"
        self._model.train()
        if not prunable_weights(self._model):
            yield "(model): no Conv2d or Linear, so there is nothing to prune"
        for name, norm in norms.items():
            label = f"{name}: {type(norm).__name__}"
            if not calls[id(norm)]:
                yield f"{label} (it is never called)"
            if not norm.training:
                yield f"{label} (stays in evaluation mode when the model is trained)"

    def _raise_diagnostics(self) -> None:
        if self._diagnostics:
            lines = list(_grouped(self._diagnostics))
            listed = "\n  ".join(lines)
            raise PlanError(
                f"{len(lines)} part(s) of {type(self._model).__name__} cannot be captured:\n"
                f"  {listed}\n{_INSTEAD}"
            )

    def _diagnose(self, node: fx.Node, reason: str) -> None:
        self._diagnostics.append(f"{self._label(node)} ({reason})")

    def _label(self, node: fx.Node) -> str:
        if node in self._called:
            module = self._called[node]
            return f"{self._names[id(module)] or '(model)'}: {type(module).__name__}"
        if node.op == "get_attr":
            kind = type(_attribute(self._root, node)).__name__
            return f"{str(node.target).partition('.')[2]}: {kind}"
        stack = list(node.meta.get("nn_module_stack") or {"0": None})
        owner = stack[-1].partition(".")[2] or "(model)"
        return f"{owner}: {getattr(node.target, '__name__', node.target)}"

    # Lowering

    def _lower(self) -> PlanLowering:
        run = self._propagate()
        ids = {id(weight): name for name, weight in self._weights.items()}
        lowering = PlanLowering(ids, self._names, run.shapes, run.constants)
        for node in self._graph.nodes:
            if node.op == "placeholder":
                shape = planned(self._input_shape)
                assert shape is not None
                lowering.values[node] = lowering.new(shape)
            elif node.op != "output" and node not in run.constants:
                self._lower_node(lowering, node)
        return lowering

    def _propagate(self) -> _Run:
        """Run the traced graph on two and on three examples, in evaluation mode.

        What does not have as many first elements as there are examples gets the shape ().
        """
        self._model.eval()
        first, second = (
            self._run(_examples(self._weights, (count, *self._input_shape))) for count in (2, 3)
        )
        first.shapes = {
            node: shape if second.shapes[node] == shape else ()
            for node, shape in first.shapes.items()
        }
        return first

    def _run(self, inputs: Tensor) -> _Run:
        run = _Run(self._root, self._graph)
        try:
            with torch.no_grad():
                run.run(inputs)
        except Exception as error:  # whatever the model's own code raises
            self._raise_diagnostics()
            raise PlanError(
                f"{type(self._model).__name__} cannot be run on {len(inputs)} examples of shape "
                f"{tuple(inputs.shape[1:])}: {_first_line(error)}; give the shape it is built for"
            ) from error
        return run

    def _raise_if_the_trace_differs(self) -> None:
        """Compare the traced graph with the model itself; both must give the same numbers."""
        shape = self._input_shape
        with torch.no_grad():
            traced = _Run(self._root, self._graph).run(_examples(self._weights, (2, *shape)))
            itself = self._model(_examples(self._weights, (2, *shape)))
        if not torch.allclose(traced, itself, equal_nan=True):
            raise PlanError(
                f"{type(self._model).__name__} does not compute what its trace does, as when a "
                "value is changed in place that is read elsewhere too; write x = x + y for x += y"
            )

    def _lower_node(self, lowering: PlanLowering, node: fx.Node) -> None:
        if node.op == "get_attr":
            return self._diagnose(node, "read outside of a layer")
        if not lowering.readers(node):
            self._diagnose(node, "its result is not used")
        try:
            lower_node(lowering, node, self._called.get(node))
        except UnsupportedNode as error:
            self._diagnose(node, str(error))

    def _output(self) -> int:
        (node,) = self._graph.find_nodes(op="output")
        result = node.args[0]
        values, shapes = self._lowering.values, self._lowering.shapes
        if isinstance(result, fx.Node) and result in values and len(shapes[result]) == 1:
            tensor = values[result]
            has_norm = self._lowering.tensors[tensor].norm is not None
            return self._lowering.copied(tensor) if has_norm else tensor
        if self._diagnostics and result not in values:
            return 0  # it was refused itself
        if isinstance(result, fx.Node) and result in shapes:
            found = f"of shape (n, {', '.join(map(str, shapes[result]))})"
        else:
            found = "that is not a single tensor"
        self._diagnostics.append(f"(model): output ({found}; it must be (n, classes))")
        return 0
