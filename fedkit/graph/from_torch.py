"""Turn a torch module into a float graph; no other file here sees torch.

`torch.export` gives the ATen graph of the model in evaluation, the same for an export and for
training. What an ATen op becomes, the rows of `fedkit.graph.ops` say; here is what becomes no op.
What is computed from constants alone (a mask times a weight, a weight norm) is evaluated here and
becomes a constant itself.
"""

from __future__ import annotations

import copy
import operator
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_leaves

from fedkit.core.errors import ExportError
from fedkit.graph import ir
from fedkit.graph.arrange import arrange, can_be
from fedkit.graph.elements import Moved, whole
from fedkit.graph.layouts import RANKS, SERIES, graph_shape, map_axis
from fedkit.graph.lowering import Lowering
from fedkit.graph.operands import (
    ConstantOperand,
    Unsupported,
    activation,
    constant,
    require,
    require_small,
)
from fedkit.graph.ops.norms import read_spelt
from fedkit.graph.ops.registry import ATEN, SPECS, VIEWS, spec_of
from fedkit.graph.ops.spread import spread
from fedkit.graph.places import EXAMPLES_MOVE, MANY_EXAMPLES, one_of, require_examples
from fedkit.graph.recurrent import layers, rows, weights_of
from fedkit.graph.spec import Aten, ModelReader
from fedkit.graph.spelt_norms import Said, SpeltNorm, spelt_norms
from fedkit.graph.tokens import LAST_TO_CHANNELS, turned
from fedkit.graph.torch_attention import by_heads

Arguments = Mapping[str, Any]
"""Argument name of the ATen schema -> value; tensors are `ir.Tensor` or constant `torch.Tensor`."""


@dataclass
class _Lowering(Lowering[fx.Node]):
    """What has been lowered so far.

    Attributes:
        drops: Whether dropout is on in training, which a plan cannot hold.
        examples: How many it was traced with.
    """

    drops: bool = False
    examples: int = 1
    values: dict[fx.Node, ir.Tensor | Moved | torch.Tensor] = field(default_factory=dict)
    unknown: set[fx.Node] = field(default_factory=set)
    """Of no shape that exists here, as what computes it was refused; nor is what follows."""
    firsts: set[fx.Node] = field(default_factory=set)
    """Nodes of several values, of which the first alone is known."""
    lists: set[fx.Node] = field(default_factory=set)
    """Nodes that give a list of parts of a value; they are known as that value."""
    learned: set[int] = field(default_factory=set)
    """Parameters, and what is computed from them, by their ids; `values` holds them."""
    shown: dict[int, torch.Tensor] = field(default_factory=dict)
    """Parameters that are shown in other shapes, by the ids of these; `values` holds them."""
    norms: Mapping[Any, SpeltNorm] = field(default_factory=dict)
    """Last node of each norm that is spelt out -> that norm."""
    slices: set[str] = field(default_factory=set)
    """What shows part of a value, and shares memory with it."""

    def name_of(self, node: fx.Node) -> str:
        return node.name

    def source_of(self, node: fx.Node) -> str:
        return _module_of(node)

    def shape_of(self, node: fx.Node) -> ir.Shape:
        first, *rest = node.meta["val"].shape or (0,)
        mixes = f"a value of shape {(first, *rest)} of {self.examples} examples, which mixes them"
        require(first == self.examples, mixes)
        return graph_shape((1, *rest))

    def ranks_of(self, node: fx.Node) -> set[int]:
        operands = (n for n in node.all_input_nodes if isinstance(self.values[n], ir.Tensor))
        return {len(getattr(operand.meta.get("val"), "shape", ())) for operand in operands}

    def places(self, node: fx.Node, dropped: int | None = None) -> Mapping[int, Sequence[int]]:
        """See `ModelReader.places`: the model's own operator says what it does to numbers."""
        mover, part = _mover(node), node.args[1] if node.target is operator.getitem else None
        assert isinstance(mover.args[0], fx.Node) and callable(mover.target)
        shape = (2, *mover.args[0].meta["val"].shape[1:])
        others = [_resolved(self, each) for each in mover.args[1:]]
        named = {name: _resolved(self, each) for name, each in mover.kwargs.items()}
        is_known = not any(map(_holds_activation, (*others, *named.values())))
        require(is_known, "indices that depend on the input; constants can be")
        given = _arguments(self, mover)
        is_over_examples = isinstance(dim := given.get("dim"), int) and dim % len(shape) == 0
        require(not is_over_examples or _is_whole(mover, given), EXAMPLES_MOVE)
        found = []
        for axis, size in enumerate(shape):
            numbers = torch.arange(float(size)).view(_along(axis, len(shape))).expand(shape)
            try:
                moved = mover.target(numbers, *others, **named)
            except (RuntimeError, IndexError) as error:
                raise Unsupported(f"it cannot be tried: {_first_line(error)}") from error
            moved = moved if part is None else moved[part]
            moved = moved if dropped is None else moved.unsqueeze(dropped % len(shape))
            found.append(_places(moved, axis, len(shape)))
        require_examples(found[0])
        return {map_axis(axis, len(shape)): found[axis] for axis in range(1, len(shape))}

    def learns(self, value: Any) -> bool:
        return id(value) in self.learned

    def shown_by(self, value: Any) -> Any:
        return self.shown.get(id(value), value)

    def arranged(self, node: fx.Node) -> Moved:
        """See `ModelReader.arranged`: the model's own operator moves numbers."""
        return _moved(self, node, _arguments(self, node))

    def is_last(self, node: fx.Node) -> bool:
        return all(
            user.op == "output"
            or (str(user.target) in (*VIEWS, *_IDENTITIES) and self.is_last(user))
            for user in node.users
        )


def _mover(node: fx.Node) -> fx.Node:
    """Return the node that computes a value: of a part of a list, that which gives the list."""
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, fx.Node)
    return source


def _is_whole(node: fx.Node, a: Arguments) -> bool:
    """Whether an op over examples takes all of them, however many there are: `x[:]`."""
    ends = a.get("start") or 0, a.get("step") or 1
    is_open = a.get("end") is None or a["end"] >= MANY_EXAMPLES
    return str(node.target) == "aten.slice.Tensor" and ends == (0, 1) and is_open


def _along(axis: int, rank: int) -> list[int]:
    return [-1 if each == axis else 1 for each in range(rank)]


def _places(moved: torch.Tensor, axis: int, rank: int) -> list[int]:
    """Return which places of an axis are in a result; they must be the same in all its lines."""
    require(moved.numel() > 0, "it leaves nothing of a value")
    places = moved.movedim(axis, 0).flatten(1)[:, 0] if moved.dim() == rank else moved
    is_single = moved.dim() == rank and bool((moved == places.view(_along(axis, rank))).all())
    require(is_single, "it moves along several dimensions at once; each must be by itself")
    return [int(place) for place in places]


def lower(model: nn.Module, input_shape: Sequence[int], tokens: bool = False) -> ir.Graph:
    """Lower a torch module to a float graph.

    The model is neither changed nor moved; it is lowered as it behaves in evaluation mode.

    Args:
        model: Takes float32 [n, channels, height, width], [n, channels, length] or [n, features],
            or int64 [n, tokens] that embeddings look up; returns a tensor, or a tuple or list of
            them.
        input_shape: (channels, height, width), (channels, length), (features,) or (tokens,) of one
            example.
        tokens: Whether the model takes tokens.

    Returns:
        A graph in the layouts of `fedkit.graph.ir`, not yet optimised; it passes `verify`.

    Raises:
        ExportError: The model cannot be traced, or holds unsupported ops; all are listed.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if 1 + len(input_shape) not in RANKS:
        raise ExportError(
            f"input_shape is {tuple(input_shape)}; it must be (channels, height, width), "
            f"(channels, length) or (features,), without the batch dimension"
        )
    if tokens and len(input_shape) != 1:
        raise ExportError(f"input_shape is {tuple(input_shape)}; of tokens it is (how many,)")
    program = _export(model, tuple(input_shape), tokens)
    lowering = _Lowering()
    _lower_program(program, lowering)
    lowering.raise_diagnostics()
    graph = ir.needed(lowering.graph(_inputs(program), _outputs(program, lowering)))
    if not graph.ops:
        raise ExportError("the model computes nothing: its output is its input")
    return graph


@dataclass(frozen=True)
class ModelReading:
    """What a model is.

    Attributes:
        graph: With norms as they train and parameters by name; None if there are reasons.
        reasons: Why there is none, a line each.
    """

    graph: ir.Graph | None
    reasons: list[str]


def read(model: nn.Module, inputs: torch.Tensor, drops: bool) -> ModelReading:
    """Read a torch module as it is in evaluation, for a training plan.

    Args:
        model: Takes inputs, returns one tensor [n, outputs]; put into that mode, and traced as it
            is, so that what a forward pass changes is changed.
        inputs: float32 [n >= 2, ...], so that what mixes examples shows.
        drops: Whether its dropout is on in training, which is a reason then.

    Raises:
        ExportError: The model cannot be traced.
    """
    model.eval()
    program = _traced(model, model, inputs)
    lowering = _Lowering(trains=True, drops=drops, examples=len(inputs))
    _lower_program(program, lowering)
    reasons = lowering.reasons()
    if reasons:
        return ModelReading(None, reasons)
    try:
        return ModelReading(lowering.graph(_inputs(program), _outputs(program, lowering)), [])
    except ExportError as error:
        return ModelReading(None, [f"(model): {error}"])


def _export(model: nn.Module, input_shape: tuple[int, ...], tokens: bool) -> ExportedProgram:
    kind = torch.int64 if tokens else torch.float32
    copied, inputs = _inference_copy(model), torch.zeros(1, *input_shape, dtype=kind)
    before = _random_state()
    program = _traced(model, copied, inputs)
    if _random_state() != before and _draws(copied, inputs):
        raise ExportError(f"{type(model).__name__} {_RANDOM}")
    return program


def _draws(model: nn.Module, inputs: torch.Tensor) -> bool:
    """Tell a model that draws from another thread that does so now and then, as Flower's does."""
    return all(_draws_once(model, inputs) for _ in range(_LOOKS))


def _draws_once(model: nn.Module, inputs: torch.Tensor) -> bool:
    before = _random_state()
    with torch.no_grad():
        model(inputs)
    return _random_state() != before


def _traced(model: nn.Module, traced: nn.Module, inputs: torch.Tensor) -> ExportedProgram:
    """Trace a model, or a copy of it that messages do not speak of."""
    try:
        with warnings.catch_warnings(), by_heads(traced):
            warnings.simplefilter("ignore")  # about the copy, which nobody sees
            return torch.export.export(traced, (inputs,))
    except Exception as error:  # torch.export documents no narrower class
        raise ExportError(_untraceable(model, tuple(inputs.shape[1:]), error)) from error


_LOOKS = 3
"""Passes in each of which a model draws random numbers, if it does."""

_RANDOM = (
    "draws random numbers in evaluation, and an artifact gives the same output for the same input; "
    "draw them only `if self.training`"
)


def _inference_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode and float32."""
    # What hooks computed from parameters, as pruning does, is not a leaf, and cannot be copied.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(model, dict(computed))
    except Exception as error:  # a module may hold anything
        raise ExportError(
            f"{type(model).__name__} cannot be copied: {_first_line(error)}; build it anew and "
            f"load its state"
        ) from error
    return copied.to("cpu", torch.float32).eval()


def _random_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    own = np.asarray(keys).tobytes(), torch.get_rng_state().numpy().tobytes()
    return random.getstate(), kind, *own, *rest


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _untraceable(model: nn.Module, shape: tuple[int, ...], error: Exception) -> str:
    """Say why a model cannot be traced, by what people most often get wrong."""
    name, text = type(model).__name__, _first_line(error)
    embeddings = [
        (path, type(module).__name__)
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    if embeddings and ("indices" in text or "scalar type" in text):
        path, kind = embeddings[0]
        return (
            f"module {path or '(model)'!r} ({kind}) reads whole numbers, and these are none, or "
            f"none of its rows ({text}); give inputs or calibration examples of an integer type, "
            f"as int64 [n, tokens]"
        )
    if len(shape) == 3 and shape[2] <= _FEW_CHANNELS < shape[0] and "channels" in text:
        return (
            f"{name} does not take inputs of shape {shape}: they look like (height, width, "
            f"channels), and must be (channels, height, width); give np.moveaxis(inputs, -1, 1)"
        )
    first = next((each for each in model.modules() if isinstance(each, nn.Conv1d)), None)
    if first is not None and len(shape) == 2 and shape[1] == first.in_channels != shape[0]:
        return (
            f"{name} does not take inputs of shape {shape}: they look like (length, channels), and "
            f"must be (channels, length); give np.moveaxis(inputs, -1, 1)"
        )
    return (
        f"torch.export cannot trace {name} for inputs of shape {shape}: {text}; the forward pass "
        f"must be free of control flow that depends on data, and fit that shape"
    )


_FEW_CHANNELS = 4  # of images as they are stored


def outputs(
    model: nn.Module, inputs: NDArray[Any], nudged_by: np.random.Generator | None = None
) -> list[NDArray[np.float64]]:
    """Return the outputs that a torch model gives in evaluation mode, to compare its graph with.

    Args:
        model: As for `lower`; it is not changed.
        inputs: float32 [n, ...], or int64 of tokens, as torch takes them.
        nudged_by: Says by which rounding of float32 each parameter and statistic is off: none, or
            one up or down. That is what sums in another order amount to.
    """
    copied = _inference_copy(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the copy
        if nudged_by is not None:
            _nudge(copied, nudged_by)
        # One by one, as on a device.
        wide = inputs if inputs.dtype == np.float32 else inputs.astype(np.int64)
        each = [tree_leaves(copied(x[None])) for x in torch.from_numpy(wide)]
    return [
        np.concatenate([np.asarray(output.numpy(), np.float64) for output in outputs])
        for outputs in zip(*each, strict=True)
    ]


def _nudge(model: nn.Module, rng: np.random.Generator) -> None:
    for held in (*model.parameters(), *model.buffers()):
        if held.is_floating_point():
            steps = torch.from_numpy(rng.integers(-1, 2, held.shape))
            held.mul_(1 + steps * torch.finfo(torch.float32).eps)


def _lower_program(program: ExportedProgram, lowering: _Lowering) -> None:
    _bind_inputs(program, lowering)
    lowering.norms = _spelt_norms(program)
    inner = frozenset[Any]().union(*(norm.inner for norm in lowering.norms.values()))
    for node in program.graph.nodes:
        if node in inner:
            _let_pass(lowering, node)
        elif node in lowering.norms:
            _lower_norm(lowering, node)
        elif node.op == "call_function":
            _lower_node(lowering, node)


def _lower_norm(lowering: _Lowering, node: fx.Node) -> None:
    """Lower the last op of a norm that is spelt out, which stands for all of it."""
    norm = lowering.norms[node]
    assert isinstance(norm.x, fx.Node)
    _arrange_one(lowering, norm.x)
    try:
        lowering.values[node] = read_spelt(
            lowering, node, activation(lowering.values[norm.x]), norm
        )
    except Unsupported as error:
        _diagnose(lowering, node, str(error))


def _spelt_norms(program: ExportedProgram) -> Mapping[Any, SpeltNorm]:
    """Return the norms of activations that are spelt out."""
    depends: set[fx.Node] = set()
    inputs = _inputs(program)
    for node in program.graph.nodes:
        if node.name in inputs or not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    found = spelt_norms(program.graph.nodes, _said, lambda node: node.users)  # type: ignore[attr-defined]
    return {end: norm for end, norm in found.items() if norm.x in depends}


def _said(value: Any) -> Said | None:
    """Return what an op says, if a norm may be spelt with it."""
    said = _SAYS.get(str(getattr(value, "target", "")))
    if said is None:
        return None
    schema = value.target._schema
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in schema.arguments), value.args, strict=False))
    given |= value.kwargs
    divides_by_less = given.get("correction", 0) != 0 or given.get("unbiased", False)
    if given.get("alpha", 1) != 1 or not given.get("keepdim", True) or divides_by_less:
        return None
    rank = value.meta["val"].dim()
    dims = tuple(sorted(dim % rank for dim in given.get("dim") or ()))
    others = [given[name] for name in ("other", "exponent") if name in given]
    if said == "square":
        said, others = "power", [2.0]
    operands = [given["self"], *others]
    return Said(said, tuple(float(x) if isinstance(x, int) else x for x in operands), dims)


_SAYS = {
    **{f"aten.{kind}.Tensor": kind for kind in ("add", "sub", "mul", "div")},
    "aten.pow.Tensor_Scalar": "power",
    "aten.square.default": "square",
    "aten.sqrt.default": "root",
    "aten.rsqrt.default": "inverse root",
    "aten.reciprocal.default": "inverse",
    "aten.mean.dim": "mean",
    "aten.var.correction": "variance",
    "aten.var.dim": "variance",
}
"""Operators that may be part of a norm, and what `fedkit.graph.spelt_norms` calls them."""


def _bind_inputs(program: ExportedProgram, lowering: _Lowering) -> None:
    constants = {**program.state_dict, **program.constants}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            lowering.values[node] = lowering.activation(node.name, lowering.shape_of(node))
        else:
            value = constants[str(spec.target)].detach()
            # What counts batches does so on values of ours.
            lowering.values[node] = value.clone() if spec.kind is InputKind.BUFFER else value
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                lowering.parameters[id(lowering.values[node])] = str(spec.target)
            if spec.kind is InputKind.PARAMETER:
                lowering.learned.add(id(lowering.values[node]))


def _inputs(program: ExportedProgram) -> tuple[str, ...]:
    specs = program.graph_signature.input_specs
    return tuple(spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT)


def _outputs(program: ExportedProgram, lowering: _Lowering) -> list[tuple[Any, int]]:
    """Return what the model returns, in its order, and how many dimensions each has there."""
    specs = program.graph_signature.output_specs
    returned = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    for number, each in enumerate(returned):
        if not isinstance(each, TensorArgument):
            raise ExportError(
                f"output {number} of the model is {getattr(each, 'value', each)!r}, and an "
                "artifact returns tensors: leave it out of what the model returns"
            )
    if len(returned) > 1 and (kind := _kind_without_order(program)):
        raise ExportError(
            f"the model returns a {kind} of {len(returned)} tensors, and the outputs of an "
            "artifact have an order: return a tuple of those that it is to have"
        )
    by_name = {node.name: node for node in lowering.values}
    nodes = [by_name[each.name] for each in returned]
    for node in nodes:
        if isinstance(moved := lowering.values[node], Moved):
            _arrange(lowering, node, moved)
    lowering.raise_diagnostics()
    return [(lowering.values[node], node.meta["val"].dim()) for node in nodes]


def _kind_without_order(program: ExportedProgram) -> str:
    """Return the name of what holds a model's outputs, if that is neither a tuple nor a list."""
    specs = [program.call_spec.out_spec]
    while specs:
        spec = specs.pop()
        if spec is None or spec.is_leaf():
            continue
        if not issubclass(spec.type, tuple | list):
            return str(spec.type.__name__)
        specs += spec.children()
    return ""


def _lower_node(lowering: _Lowering, node: fx.Node) -> None:
    """Lower one ATen op; if that fails, note why and go on as if it had worked."""
    is_unread = node.target is operator.getitem and not node.users
    if "_assert" in str(node.target) or is_unread:
        return
    if str(node.target) in _RECURRENT:
        _lower_recurrent(lowering, node)
        return
    arranges = str(node.target) in _ARRANGES
    if _lists_moved(lowering, node) or _is_of_constants(lowering, node):
        return
    if not arranges and node.target is not operator.getitem:
        _arrange_operands(lowering, node)
    arguments = _arguments(lowering, node)
    is_random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if is_random and not _is_off(lowering, arguments):
        _diagnose(lowering, node, _random_reason(lowering, arguments))
        return
    if _is_for_all_examples(lowering, node, arguments):
        lowering.values[node] = spread(
            lowering, node, arguments["self"], node.meta["val"].dim(), ""
        )
        return
    if _is_constant(arguments) and callable(node.target):
        kwargs = {key: arguments[key] for key in node.kwargs}
        positional = [value for key, value in arguments.items() if key not in kwargs]
        made = node.target(*positional[: len(node.args)], **kwargs)
        lowering.values[node] = made
        if any(lowering.learns(lowering.values[each]) for each in node.all_input_nodes):
            lowering.learned.update(map(id, tree_leaves(made)))
        _note_shown(lowering, node, arguments, made)
        return
    handler = _HANDLERS.get(str(node.target))
    try:
        if arranges:
            lowering.values[node] = _arranged(lowering, node, handler, arguments)
            return
        if node.target is operator.getitem and node.args[0] in lowering.firsts and not node.args[1]:
            lowering.values[node] = lowering.values[node.args[0]]  # type: ignore[index]
            return
        if node.target is operator.getitem and node.args[0] in lowering.lists:
            mover = _mover(node)
            handler, arguments = _HANDLERS[str(mover.target)], _arguments(lowering, mover)
        if handler is None:
            raise Unsupported(f"{node.target} is not supported")
        if _gives_list(node):
            lowering.values[node] = activation(arguments["self"])
            lowering.lists.add(node)
            return
        count = len(lowering.ops)
        made = handler(lowering, node, arguments)
        if _shows_part(_mover(node)):
            lowering.slices.update(op.output for op in lowering.ops[count:])
        if not isinstance(node.meta.get("val"), torch.Tensor):
            lowering.firsts.add(node)
        lowering.values[node] = _in_place(lowering, node, arguments, made)
    except Unsupported as error:
        is_consequence = arranges or handler is not None or "getitem" in str(node.target)
        if is_consequence and not lowering.unknown.isdisjoint(node.all_input_nodes):
            _let_pass(lowering, node)
        else:
            read = _parameters_read(lowering, node) if isinstance(error, ConstantOperand) else ""
            _diagnose(lowering, node, f"{error}{read}")


def _lower_recurrent(lowering: _Lowering, node: fx.Node) -> None:
    """Lower a recurrent layer; what it gives is a list, of which `getitem` takes parts."""
    try:
        lowering.values[node] = _recurrent(lowering, node)  # type: ignore[assignment]
    except Unsupported as error:
        _diagnose(lowering, node, str(error))
        lowering.unknown.add(node)


def _recurrent(lowering: _Lowering, node: fx.Node) -> list[Moved]:
    """Return the steps, the last states and, of an LSTM, the last cells of a recurrent layer."""
    a, kind = _arguments(lowering, node), _RECURRENT[str(node.target)]
    require(not lowering.trains, f"a layer of {kind.upper()}; a plan has none")
    states = [np.asarray(constant(each, "first states")) for each in tree_leaves(a["hx"])]
    require(not any(each.any() for each in states), "first states that are not 0")
    weights = list(weights_of(a["params"], a["has_biases"]))
    read = {user.args[1] for user in node.users if user.users}
    x, directions = _steps_of(lowering, node, a), 1 + a["bidirectional"]
    made, tied = layers(lowering, node, kind, x, weights, directions, shows_steps=0 in read)
    lowering.tied += tied
    _, _, count, size = made.tokens.shape
    steps = Moved(made.tokens, np.arange(count * size).reshape(count, size), 1 - a["batch_first"])
    found = [steps]
    for last in zip(*made.last, strict=True):
        found.append(_last_states(lowering, node, last, len(found), len(found) in read))
    return found


def _steps_of(lowering: _Lowering, node: fx.Node, a: Arguments) -> ir.Tensor:
    """Return the input of a recurrent layer, as tokens [1, 1, steps, channels]."""
    source, x = node.args[0], a["input"]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    require(len(shape) == SERIES, "a recurrent layer of one example without the batch")
    moved = x if isinstance(x, Moved) else whole(activation(x), shape[1:])
    require(
        moved.examples == 1 - a["batch_first"],
        "a recurrent layer whose steps are the examples; give batch_first=True, or transpose",
    )
    laid = arrange(lowering, node, replace(moved, examples=0), ".input")
    return turned(lowering, node, laid, LAST_TO_CHANNELS[SERIES], ".input_tokens")


def _last_states(
    lowering: _Lowering, node: fx.Node, states: Sequence[ir.Tensor], number: int, is_read: bool
) -> Moved:
    """Return states [layers and directions, n, channels] as torch has them."""
    x = rows(lowering, node, states, f".last{number}") if is_read else states[-1]
    size = x.shape[3]
    return Moved(x, np.arange(len(states) * size).reshape(len(states), size), examples=1)


def _is_for_all_examples(lowering: _Lowering, node: fx.Node, a: Arguments) -> bool:
    """Whether a node repeats a parameter for each example, as models do a token of the class."""
    value, made = a.get("self"), node.meta.get("val")
    if not lowering.trains or str(node.target) not in _REPEATS or not lowering.learns(value):
        return False
    assert isinstance(value, torch.Tensor) and isinstance(made, torch.Tensor)
    one = (1,) * (made.dim() - value.dim()) + tuple(value.shape)
    fits = made.dim() in RANKS and one[0] == 1 and tuple(made.shape[1:]) == one[1:]
    return fits and len(made) == lowering.examples


def _note_shown(lowering: _Lowering, node: fx.Node, a: Arguments, made: Any) -> None:
    """Note that a constant shows a parameter in another shape, if it does."""
    value = a.get("self")
    if _is_whole_table(node, a):
        value = a["weight"]
    elif str(node.target) not in _SHOWS:
        return
    if not lowering.learns(value):
        return
    assert isinstance(value, torch.Tensor)
    if isinstance(made, torch.Tensor) and made.numel() == value.numel():
        lowering.shown[id(made)] = lowering.shown.get(id(value), value)


def _is_whole_table(node: fx.Node, a: Arguments) -> bool:
    """Whether an embedding looks up all rows in order, as one does that tells places apart."""
    if str(node.target) != "aten.embedding.default":
        return False
    rows = torch.arange(len(a["weight"]))
    return torch.equal(a["indices"].flatten(), rows) and a["padding_idx"] < 0


def _is_of_constants(lowering: _Lowering, node: fx.Node) -> bool:
    """Note one of a list of constants, if a node is that."""
    if node.target is not operator.getitem:
        return False
    source, part = node.args
    listed: Any = lowering.values.get(source) if isinstance(source, fx.Node) else None
    is_list = isinstance(listed, list | tuple)
    if is_list:
        lowering.values[node] = listed[part]
    return is_list


def _lists_moved(lowering: _Lowering, node: fx.Node) -> bool:
    """Note parts of what no ops arrange as it is, if a node gives some, or is one of them."""
    source = node.args[0] if node.args else None
    moved = lowering.values.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(moved, Moved) or _can_arrange(moved):
        return False
    if node.target is operator.getitem and source in lowering.lists:
        part = node.args[1]
        assert isinstance(source, fx.Node) and isinstance(part, int)
        try:
            lowering.values[node] = _tried(lowering, source, moved, part)
        except Unsupported as error:
            _diagnose(lowering, node, str(error))
        return True
    is_list = _gives_list(node)
    if is_list:
        lowering.values[node] = moved
        lowering.lists.add(node)
    return is_list


def _arranged(
    lowering: _Lowering, node: fx.Node, handler: Aten | None, a: Arguments
) -> ir.Tensor | Moved:
    """Return what an op arranges anew: by an op of its own, or else as part of what follows."""
    x = a["self"]
    if isinstance(x, Moved) and str(node.target) in _IDENTITIES:
        return x
    refused = Unsupported(f"{node.target} is not supported")
    if isinstance(x, ir.Tensor) and handler is not None:
        ops, tensors = len(lowering.ops), len(lowering.tensors)
        try:
            made = handler(lowering, node, a)
            if _shows_part(node):
                lowering.slices.update(op.output for op in lowering.ops[ops:])
            return made
        except Unsupported as error:
            lowering.undo(ops, tensors)
            refused = error
    try:
        return _moved(lowering, node, a)
    except Unsupported:
        raise refused from None


def _moved(lowering: _Lowering, node: fx.Node, a: Arguments) -> Moved:
    """Return which elements an op gives, by trying it on their numbers."""
    (source, *_), x = node.all_input_nodes, a["self"]
    require(source not in lowering.unknown, "it follows what is refused")
    for made in tree_leaves(node.meta["val"]):
        require_small(tuple(made.shape[1:]))
    shape = source.meta["val"].shape
    moved = x if isinstance(x, Moved) else whole(activation(x), shape[1:])
    cuts = str(node.target) in _CUTS and a["dim"] % len(shape) == moved.examples
    require(not cuts or _is_whole(node, a), EXAMPLES_MOVE)
    found = _tried(lowering, node, moved)
    if not _can_arrange(found) and _can_arrange(moved):  # so that each part of a chain is
        _arrange(lowering, source, moved)
        laid = whole(activation(lowering.values[source]), shape[1:])
        return _tried(lowering, node, laid)
    return found


def _can_arrange(moved: Moved) -> bool:
    """Whether a value has dimensions of the graph, and ops arrange it."""
    is_in_front = moved.examples == 0
    return is_in_front and 1 + moved.numbers.ndim in RANKS and can_be(moved)


def _tried(lowering: _Lowering, node: fx.Node, moved: Moved, part: int | None = None) -> Moved:
    """Return what an op makes of several examples, which it must leave apart.

    An op that says how many there are is tried with as many; where it is one, it must be in front.

    Args:
        lowering: So far.
        node: Of the op.
        moved: What it moves.
        part: Of the list that it gives.
    """
    assert callable(node.target)
    count = lowering.examples if str(node.target) in _OF_SIZES else 2
    require(count > 1 or moved.examples == 0, EXAMPLES_MOVE)
    others = [_resolved(lowering, each) for each in node.args[1:]]
    named = {name: _resolved(lowering, each) for name, each in node.kwargs.items()}
    try:
        found = node.target(torch.from_numpy(moved.of_several(count)), *others, **named)
    except (RuntimeError, IndexError) as error:
        raise Unsupported(f"it cannot be tried: {_first_line(error)}") from error
    numbers = (found if part is None else found[part]).numpy().copy()
    require(numbers.size > 0, "it leaves nothing of a value")
    return one_of(moved, numbers, count)


def _arrange_operands(lowering: _Lowering, node: fx.Node) -> None:
    """Let the ops of a graph arrange what a node reads, if nothing has yet."""
    for source in node.all_input_nodes:
        _arrange_one(lowering, source)


def _arrange_one(lowering: _Lowering, source: fx.Node) -> None:
    moved = lowering.values.get(source)
    if isinstance(moved, Moved):
        _arrange(lowering, source, moved)


def _arrange(lowering: _Lowering, node: fx.Node, moved: Moved) -> None:
    count = len(lowering.ops)
    try:
        require(moved.examples == 0, EXAMPLES_MOVE)
        lowering.shape_of(node)
        lowering.values[node] = arrange(lowering, node, moved)
        lowering.slices.update(op.output for op in lowering.ops[count:])
    except Unsupported as error:
        _diagnose(lowering, node, str(error))


def _gives_list(node: fx.Node) -> bool:
    """Whether an op gives one list of tensors, whatever their number."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    return len(returns) == 1 and isinstance(node.meta.get("val"), list | tuple)


def _shows_part(node: fx.Node) -> bool:
    """Whether what an op gives shares memory with what it reads, unless it writes there."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", ())
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _parameters_read(lowering: _Lowering, node: fx.Node) -> str:
    """Name the parameters among what a refused op reads."""
    values = [lowering.values.get(each) for each in node.all_input_nodes]
    names = [lowering.parameters[id(value)] for value in values if id(value) in lowering.parameters]
    return f" ({', '.join(names)})" if names else ""


def _diagnose(lowering: _Lowering, node: fx.Node, reason: str) -> None:
    lowering.diagnostics.append((f"module {_module_of(node)!r}", reason))
    _let_pass(lowering, node)


def _let_pass(lowering: _Lowering, node: fx.Node) -> None:
    """Go on with a value of the node's shape, if there is one that could have been lowered."""
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    is_known = len(shape) in RANKS
    if not is_known:
        lowering.unknown.add(node)
    shape = graph_shape((1, *shape[1:])) if is_known else shape
    lowering.values[node] = ir.Tensor(node.name, shape)


WOULD_BE_RANDOM = "training would be random"
"""Told of dropout."""


def _random_reason(lowering: _Lowering, arguments: Arguments) -> str:
    if lowering.trains and "p" in arguments:
        return f"p = {arguments['p']}, {WOULD_BE_RANDOM}; only p = 0 can be captured"
    return f"it {_RANDOM}"


def _is_off(lowering: _Lowering, arguments: Arguments) -> bool:
    """Whether an op that could draw random numbers does not: dropout in evaluation, or of none."""
    is_none = 0 in (arguments.get("p"), arguments.get("dropout_p"))
    return is_none or (arguments.get("train") is False and not lowering.drops)


def _arguments(lowering: _Lowering, node: fx.Node) -> dict[str, Any]:
    """Name the arguments of an op and fill in the defaults of its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    named |= node.kwargs
    order = [a.name for a in schema.arguments if a.name in named]
    return {name: _resolved(lowering, named[name]) for name in order}


def _resolved(lowering: _Lowering, value: Any) -> Any:
    """Put values in the places of nodes, in lists too."""
    if isinstance(value, list | tuple):
        return [_resolved(lowering, one) for one in value]
    return lowering.values[value] if isinstance(value, fx.Node) else value


def _is_constant(arguments: Arguments) -> bool:
    return bool(arguments) and not any(_holds_activation(v) for v in arguments.values())


def _holds_activation(value: Any) -> bool:
    in_list = isinstance(value, list) and any(map(_holds_activation, value))
    return in_list or isinstance(value, ir.Tensor | Moved)


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0]) or "(model)"


def _in_place(
    lowering: _Lowering, node: fx.Node, a: Arguments, new: ir.Tensor | Moved
) -> ir.Tensor | Moved:
    """Return `new`; if the op writes it over its input, every name of that means it from here."""
    if str(node.target).partition(".")[2].split(".")[0].endswith("_"):
        old = a.get("self", a.get("input"))
        if isinstance(old, ir.Tensor) and isinstance(new, ir.Tensor) and old is not new:
            _rebind(lowering, old, new)
    return new


def _rebind(lowering: _Lowering, old: ir.Tensor, new: ir.Tensor) -> None:
    """Let every name of a tensor that was changed in place mean its new value."""
    for op in lowering.ops:
        is_view = spec_of(op).is_view or op.output in lowering.slices
        require(
            not (is_view and old.name in (*op.inputs, *op.outputs)),
            "an in-place op on a tensor that shares memory with its flattened form, or with a part "
            "of it; set inplace=False",
        )
    for node, value in lowering.values.items():
        is_read = any(user not in lowering.values for user in node.users)
        shows = isinstance(value, Moved) and value.base is old
        require(
            not (shows and is_read),
            "an in-place op on a tensor of which a view is read later; set inplace=False",
        )
        if value is old:
            lowering.values[node] = new


def _identity(reader: ModelReader, node: fx.Node, a: Arguments) -> ir.Tensor:
    require(not a.get("train", False) or a.get("p") == 0, "dropout that is on in evaluation")
    x = activation(a.get("self", a.get("input")))
    return replace(x) if "clone" in str(node.target) else x  # which shares no memory


_IDENTITIES = (
    "aten.dropout.default",
    "aten.dropout_.default",
    "aten.feature_dropout.default",
    "aten.feature_dropout_.default",
    "aten.alpha_dropout.default",
    "aten.alpha_dropout_.default",
    "aten.feature_alpha_dropout.default",
    "aten.feature_alpha_dropout_.default",
    "aten.alias.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.detach.default",
)
_OF_SIZES = (
    *("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default"),
    *("aten.unflatten.int", "aten.expand.default"),
)
"""Operators that say how many examples there are."""

_RECURRENT = {"aten.lstm.input": "lstm", "aten.gru.input": "gru"}
_REPEATS = ("aten.expand.default", "aten.repeat.default", "aten.tile.default")
_CUTS = ("aten.select.int", "aten.slice.Tensor", "aten.narrow.default")
_SHOWS = (
    *_OF_SIZES,
    *("aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims"),
    *("aten.flatten.using_ints", "aten.slice.Tensor", "aten.alias.default"),
)
"""Operators that leave the order of values as it is, where none is left out."""


_ARRANGES = frozenset(
    (
        *_OF_SIZES,
        *SPECS["transpose"].aten,
        *("aten.flatten.using_ints", "aten.unsqueeze.default", "aten.squeeze.default"),
        *_CUTS,
        *("aten.squeeze.dim", "aten.squeeze.dims", "aten.flip.default"),
        *("aten.alias.default", "aten.clone.default", "aten.contiguous.default"),
        "aten.detach.default",
    )
)
"""Operators that compute nothing; a chain of them is tried as a whole where one is no op."""

_HANDLERS: Mapping[str, Aten] = {**ATEN, **dict.fromkeys(_IDENTITIES, _identity)}
