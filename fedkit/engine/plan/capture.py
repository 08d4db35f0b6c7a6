"""Capture a torch model as a plan: read it, see that it is that in every pass, and plan it.

A trace shows one pass, in evaluation. What a model does in others, of either mode, is looked for
from outside: see `side_effects`, `call_log`, and the passes here that must all give the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedkit.core.errors import ExportError, PlanError
from fedkit.engine.plan.call_log import CallLog
from fedkit.engine.plan.conv import are_alike
from fedkit.engine.plan.from_graph import PlanMaker
from fedkit.engine.plan.plan import verify
from fedkit.engine.plan.side_effects import Watch, has_hooks
from fedkit.engine.plan.structure import Dims, Plan, PlanOp
from fedkit.graph import ir
from fedkit.graph.from_torch import WOULD_BE_RANDOM, read
from fedkit.graph.interpret import evaluate
from fedkit.graph.late_moves import move_late
from fedkit.graph.layouts import RANKS
from fedkit.graph.torch_attention import by_heads
from fedkit.nn.layers import STATISTICS, modes_restored, prunable_weights, tracking_norms
from fedkit.nn.norms.registry import rows_in
from fedkit.tasks.losses import PLAIN, Loss

_INSTEAD = (
    "replace them by Conv2d, Conv1d, Linear, ConvTranspose2d, ConvTranspose1d, BatchNorm, "
    "L1BatchNorm2d, GroupNorm, InstanceNorm, LayerNorm, L1LayerNorm, ReLU, ReLU6, sigmoid, SiLU, "
    "GELU and other functions of one value, attention, softmax, sums, products, concatenations of "
    "channels, max and average pooling, resizes and flatten, or use the torch engine"
)

_PASSES = 4
"""Passes in each mode: what draws from a generator that nobody can find differs between some."""

_TOLERANCE = 1e-4
"""What the graph may be off, of the largest output: it sums in another order."""

_FROZEN = "a batch norm that stays in evaluation mode when the model is trained"

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

_DIMS: dict[int, Dims] = {2: 1, 3: 2, 4: 3}
"""Dimensions of a batch of outputs -> of one example's."""

_NAMED = 4
"""Owners of equal diagnostics that are named."""


def capture(
    model: nn.Module, input_shape: tuple[int, ...], loss: Loss = PLAIN, tokens: bool = False
) -> Plan:
    """Capture a model; it is left as it was.

    Args:
        model: Takes float32 [n, *input_shape], returns features [n, f], series [n, c, length] or
            maps [n, c, h, w].
        input_shape: (channels, height, width), (channels, length) or (features,) of one example.
        loss: What training makes small.
        tokens: Whether the model takes int64, which embeddings look up.

    Raises:
        PlanError: The model cannot be traced, does not take such inputs, or has parts that a plan
            cannot express; all of them are listed. Or what it returns does not fit the loss.
    """
    if 1 + len(input_shape) not in RANKS or min(input_shape) < 1:
        raise PlanError(
            f"input_shape is {tuple(input_shape)}; it must be (channels, height, width), "
            "(channels, length) or (features,) of one example, without the batch"
        )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise PlanError(f"{name} is lazy; run the model on an example before it is captured")
    with modes_restored(model):
        return _Capture(model, tuple(input_shape), tokens).plan(loss)


class _Capture:
    """One capture."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], tokens: bool) -> None:
        self._model, self._name = model, type(model).__name__
        self._weights = dict(model.named_parameters())
        self._inputs = (
            _tokens(model, (3, *input_shape))
            if tokens
            else _examples(self._weights, (3, *input_shape))
        )
        self._diagnostics = [*self._weight_diagnostics(), *self._module_diagnostics()]

    def plan(self, loss: Loss) -> Plan:
        """Put the plan together, or refuse with everything that cannot be in it."""
        self._refuse_norms()
        graph = self._graph()
        maker = PlanMaker(graph)
        self._diagnostics += [*maker.reasons, *self._use_diagnostics(graph, maker.ops)]
        self._raise_diagnostics()
        output = maker.output()
        plan = Plan(
            {name: tuple(weight.shape) for name, weight in self._weights.items()},
            {
                f"{name}.{kind}": tuple(getattr(norm, kind).shape)
                for name, norm in tracking_norms(self._model).items()
                for kind in STATISTICS
            },
            prunable_weights(self._model),
            tuple(maker.tensors),
            tuple(maker.ops),
            output,
            loss=loss,
            output_dims=self._output_dims,
        )
        verify(plan)
        return plan

    # Reading

    def _graph(self) -> ir.Graph:
        """Return the graph that the model is, in training as in evaluation."""
        watch, changes = Watch(self._model), list[str]()
        try:
            outputs, changes = self._passes(watch)
            watch.undo()
            graph = move_late(self._read(changes))
        except ExportError as error:
            self._raise_diagnostics()
            raise self._untraceable("; ".join(changes) or str(error)) from error
        finally:
            watch.undo()
        if changes:
            self._raise_diagnostics()
            raise self._untraceable("; ".join(changes))
        self._compare(graph, outputs)
        return ir.until(graph, graph.outputs[0])  # without what nothing reads

    def _passes(self, watch: Watch) -> tuple[Tensor, list[str]]:
        """Run the model several times in each mode.

        Returns:
            Its outputs in evaluation, and what the passes changed, or gave otherwise in one of
            them.
        """
        outputs, in_evaluation, is_steady = self._mode_passes(watch, False)
        _, in_training, is_steady_too = self._mode_passes(watch, True)
        self._drops = in_training.drops
        self._diagnostics += [f"module {name!r}: {_FROZEN}" for name in in_training.frozen]
        changes = watch.effects(_PASSES, _tracked(self._model))
        if changes:
            changes.append("a plan computes the same in each pass")
        elif not (is_steady and is_steady_too):
            changes = [
                "it computes something else in one pass than in the next; a plan cannot choose"
            ]
        if share := in_training.drops_weights:
            changes.append(
                f"its attention drops weights, p = {share}, {WOULD_BE_RANDOM}; only p = 0 can be "
                "captured"
            )
        elif in_training.log != in_evaluation.log:
            changes.append(
                "it calls other layers in training than in evaluation; let its forward not depend "
                "on self.training"
            )
        return outputs, changes

    def _mode_passes(self, watch: Watch, training: bool) -> tuple[Tensor, CallLog, bool]:
        """Return outputs in one mode, what the first pass calls, and whether all are the same."""
        self._model.train(training)
        inputs = self._inputs.clone()
        with watch.one_pass(), CallLog(self._model, inputs) as calls:
            first = self._run(inputs)
        again = [self._run_again(watch) for _ in range(_PASSES - 1)]
        return first, calls, all(_equal(run, first) for run in again)

    def _run_again(self, watch: Watch) -> Tensor:
        with watch.one_pass():
            return self._run(self._inputs.clone())

    def _read(self, changes: list[str]) -> ir.Graph:
        """Return what the model is in evaluation, or refuse it.

        Args:
            changes: What else is wrong with it, as far as no layer is named for it.
        """
        reading = read(self._model, self._inputs[:2], self._drops)
        self._diagnostics += reading.reasons
        if reading.graph is None:
            if not any(WOULD_BE_RANDOM in line for line in self._diagnostics):
                self._diagnostics += [f"(model): {change}" for change in changes]
            self._raise_diagnostics()
        assert reading.graph is not None
        return reading.graph

    def _run(self, inputs: Tensor) -> Tensor:
        try:
            with torch.no_grad(), by_heads(self._model):
                found = self._model(inputs)
        except Exception as error:  # whatever the model's own code raises
            self._raise_diagnostics()
            raise PlanError(
                f"{self._name} cannot be run on {len(inputs)} examples of shape "
                f"{tuple(inputs.shape[1:])}: {_first_line(error)}; give the shape it is built for"
            ) from error
        if isinstance(found, Tensor) and found.dim() in RANKS:
            self._output_dims: Dims = _DIMS[found.dim()]
            return found
        what = "that is not a single tensor"
        if isinstance(found, Tensor):
            what = f"of shape (n, {', '.join(map(str, found.shape[1:]))})"
        must = (
            "a plan returns (n, features), (n, channels, length) or (n, channels, height, width); "
            "what returns others or tuples trains on torch"
        )
        self._diagnostics.append(f"(model): output ({what}; {must})")
        self._raise_diagnostics()
        raise AssertionError

    def _compare(self, graph: ir.Graph, outputs: Tensor) -> None:
        """Compare the graph with the model itself; both must give the same numbers."""
        inputs = self._inputs.numpy().astype(np.float32)
        found = ir.from_graph_layout(evaluate(graph, ir.to_graph_layout(inputs)))
        wanted = ir.as_maps(outputs.numpy())
        fits = found.shape == wanted.shape
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(found - wanted).max() if fits else np.inf
        if not gap <= _TOLERANCE * np.abs(wanted).max() and np.isfinite(wanted).all():
            raise PlanError(
                f"{self._name} does not compute what its trace does: its outputs depend on Python "
                "code, hooks, or on which other examples are in the batch; a plan computes each "
                "example by itself, with layers alone"
            )

    def _untraceable(self, reason: str) -> PlanError:
        return PlanError(f"{self._name} cannot be traced: {reason}")

    # What cannot be captured

    def _weight_diagnostics(self) -> Iterator[str]:
        owners = Counter(id(p) for m in self._model.modules() for p in m._parameters.values())
        for name, weight in self._weights.items():
            for is_wrong, reason in (
                (weight.dtype != torch.float32, f"it is {weight.dtype}, not torch.float32"),
                (not weight.requires_grad, "requires_grad is False"),
                (owners[id(weight)] > 1, f"shared by {owners[id(weight)]} modules"),
                (has_hooks(weight), "it has hooks"),
            ):
                if is_wrong:
                    yield f"{name}: Parameter ({reason})"

    def _module_diagnostics(self) -> Iterator[str]:
        for name, module in self._model.named_modules():
            label = f"{name or '(model)'}: {type(module).__name__}"
            if any(getattr(module, hooks) for hooks in _HOOKS):
                ahead = module._forward_hooks or module._forward_pre_hooks
                yield f"{label} (it has {'forward' if ahead else 'backward'} hooks)"
            if "forward" in vars(module):
                yield f"{label} (its forward was replaced)"
        self._model.train()
        if not prunable_weights(self._model):
            yield "(model): no Conv2d, Conv1d or Linear, so there is nothing to prune"

    def _refuse_norms(self) -> None:
        """Refuse norms that are in no plan, before their parts are named one by one."""
        refused = [
            f"{name or '(model)'}: {type(norm).__name__} ({row.not_planned})"
            for name, norm, row in rows_in(self._model)
            if row.not_planned
        ]
        if refused:
            self._diagnostics += refused
            self._raise_diagnostics()

    def _use_diagnostics(self, graph: ir.Graph, ops: Sequence[PlanOp]) -> Iterator[str]:
        """Yield the parameters that no op uses, or several that are not alike, and statistics."""
        first = {id(weight): name for name, weight in self._weights.items()}
        every = self._model.named_parameters(remove_duplicate=False)
        own = {name: first[id(weight)] for name, weight in every}
        read = [graph.tensors[name].parameter for op in graph.ops for name in op.inputs]
        used = Counter(own.get(name, name) for name in read)
        shared = {name for name, count in Counter(own.values()).items() if count > 1}
        for name in self._weights:
            again = [op for op in ops if name in op.parameters]
            if used[name] != 1 and name not in shared and not are_alike(again):
                times = f"{used[name]} ops use it" if used[name] else "no op uses it"
                yield f"{name}: Parameter ({times})"
        for name, norm in tracking_norms(self._model).items():
            if not used[f"{name}.{STATISTICS[0]}"]:
                yield f"{name}: {type(norm).__name__} (it is never called)"

    def _raise_diagnostics(self) -> None:
        if self._diagnostics:
            lines = list(_grouped(list(dict.fromkeys(self._diagnostics))))
            listed = "\n  ".join(lines)
            raise PlanError(
                f"{len(lines)} part(s) of {self._name} cannot be captured:\n  {listed}\n{_INSTEAD}"
            )


def _tracked(model: nn.Module) -> set[str]:
    """Return the names of what norms count and average in each training pass."""
    return {
        f"{name}.{buffer}"
        for name, norm in tracking_norms(model).items()
        for buffer, _ in norm.named_buffers()
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


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
        yield f"{', '.join(distinct[:_NAMED])}{rest}: {part}"


def _examples(weights: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    like = next(iter(weights.values()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(like).detach()


def _tokens(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return whole numbers that each table of the model has."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    rows = min((table.num_embeddings for table in tables), default=1)
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(0))
