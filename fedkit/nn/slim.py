"""Take channels that masks emptied out of a torch model, through residuals and concats.

The package torch-pruning says which channels of which layers stand and fall together. Such a set is
removed where that changes nothing: where nobody has a kept weight on it, or where what is read is 0
whatever the input is, because no layer that makes it has a kept weight. All others stay, and so
does what a grouped convolution, a LayerNorm or the like reads or makes: it has ties between
channels that such sets do not show. So the smaller model computes the same sums, less terms that
are 0: its outputs are the same but for the order in which floats are summed, which is tried once
before it is given.

Exported models are slimmed once more, as integers (`edge.passes.slim`), where more is seen:
constants join biases, and weights that became the integer 0 count as pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkit.core.errors import ConfigError
from fedkit.nn.layers import prunable_weights
from fedkit.sparse.state import Masks

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Slimmed:
    """A model without the channels that changed nothing.

    Attributes:
        model: In evaluation mode, in the dtype that it had.
        parameters: How many it has.
        parameters_before: How many the given model has.
        macs: Multiplications of one example, zeros included.
        macs_before: Those of the given model.
    """

    model: nn.Module
    parameters: int
    parameters_before: int
    macs: int
    macs_before: int


def slim(model: nn.Module, masks: Masks, input_shape: Sequence[int]) -> Slimmed:
    """Remove the channels that change nothing.

    Args:
        model: Left as it is.
        masks: Per prunable weight, where it is kept.
        input_shape: (channels, height, width) or (features,) of one example.

    Raises:
        ConfigError: torch-pruning is missing or cannot follow the model, or what it leaves
            computes something else; or the masks are not those of the model.
    """
    pruning = _torch_pruning()
    dtype = next(model.parameters()).dtype
    whole = copy.deepcopy(model).cpu().double().eval()
    _apply(whole, masks)
    smaller = copy.deepcopy(whole)
    example = torch.zeros(1, *input_shape, dtype=torch.float64)
    try:
        macs_before, parameters_before = pruning.utils.count_ops_and_params(smaller, example)
        while _remove_once(pruning, smaller, example):
            pass
        macs, parameters = pruning.utils.count_ops_and_params(smaller, example)
    except Exception as error:  # it raises whatever its tracing runs into
        raise ConfigError(
            f"torch-pruning cannot follow {type(model).__name__} for inputs of shape "
            f"{tuple(input_shape)}: {str(error).strip() or type(error).__name__}; leave it as it "
            "is: every export slims its graph"
        ) from error
    _check_same(whole, smaller, example)
    counts = (int(each) for each in (parameters, parameters_before, macs, macs_before))
    return Slimmed(smaller.to(dtype), *counts)


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; run `pip install 'fedkit[slim]'`"
        ) from error
    return torch_pruning


def _check_same(whole: nn.Module, smaller: nn.Module, example: Tensor) -> None:
    x = torch.randn(example.shape, generator=_generator(), dtype=example.dtype)
    with torch.no_grad():
        expected, found = whole(x), smaller(x)
    if not torch.allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ConfigError(
            f"{type(whole).__name__} computes something else without the channels that masks "
            "emptied, as it mixes channels where torch-pruning does not see it; leave it as it is: "
            "every export slims its graph"
        )


def _apply(model: nn.Module, masks: Masks) -> None:
    """Set pruned weights to zero."""
    weights = {name: model.get_parameter(name) for name in prunable_weights(model)}
    wrong = set(masks) ^ set(weights)
    wrong |= {n for n in set(masks) & set(weights) if masks[n].shape != tuple(weights[n].shape)}
    if wrong:
        raise ConfigError(
            f"masks are not those of the model: {sorted(wrong)[0]!r} is missing, too much or of "
            "another shape; give one for each prunable weight, of its shape"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(torch.from_numpy(np.asarray(masks[name])))


def _remove_once(pruning: Any, model: nn.Module, example: Tensor) -> bool:
    """Remove from each set of channels what can go; return whether anything could."""
    zero = _zero_inputs(model, example)
    graph = pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    removed = False
    for group in graph.get_all_groups():
        gone = _removable(pruning, group, zero)
        if gone.any():
            group.prune(idxs=np.flatnonzero(gone).tolist())
            removed = True
            # What zero says of the layers behind is of the model as it was.
            zero = _zero_inputs(model, example)
    return removed


def _zero_inputs(model: nn.Module, example: Tensor) -> dict[nn.Module, Flags]:
    """Return per layer which of its input channels are 0 everywhere for a random input."""
    found: dict[nn.Module, Flags] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Of a linear layer features are last, whatever lies between them and the examples.
        axis = -1 if isinstance(layer, nn.Linear) else 1
        zero = (inputs[0].movedim(axis, 0).flatten(1) == 0).all(1).numpy()
        found[layer] = zero & found.get(layer, True)

    layers = [m for m in model.modules() if isinstance(m, _MIXING)]
    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    with torch.no_grad():
        model(torch.randn(example.shape, generator=_generator(), dtype=example.dtype))
    for handle in handles:
        handle.remove()
    return found


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _removable(pruning: Any, group: Any, zero: dict[nn.Module, Flags]) -> Flags:
    """Return which channels of the layer that a group starts from can go, with all of their set."""
    is_input = (pruning.prune_conv_in_channels, pruning.prune_linear_in_channels)
    is_output = (pruning.prune_conv_out_channels, pruning.prune_linear_out_channels)
    count = 1 + max(max(item.root_idxs) for item in group)
    stays, reads, made = (np.zeros(count, np.bool_) for _ in range(3))
    layers = []
    for dep, channels, roots in _items(group):
        layer = dep.target.module
        if _ties(layer) or (dep.handler not in is_input and not dep.target.outputs):
            stays[roots] = True  # others would have to go with it; or the caller reads it
        elif dep.handler in is_input:
            read = np.asarray(_kept(layer).transpose(0, 1).flatten(1).any(1))[channels]
            stays[roots[read & ~zero[layer][channels]]] = True
            reads[roots[read]] = True
        elif dep.handler in is_output:
            made[roots[np.asarray(_kept(layer).flatten(1).any(1))[channels]]] = True
            layers.append(roots)
    gone = np.asarray(~stays & ~(reads & made))
    for roots in layers:
        if gone[roots].all():
            gone[roots[0]] = False  # a layer needs a channel
    return gone


def _items(group: Any) -> Iterator[tuple[Any, NDArray[np.intp], NDArray[np.intp]]]:
    for item in group:
        yield item.dep, np.asarray(item.idxs, np.intp), np.asarray(item.root_idxs, np.intp)


def _kept(layer: Any) -> Tensor:
    """Return bool [out, in, ...]: where a layer has a weight that is not 0."""
    kept: Tensor = layer.weight != 0
    return kept.transpose(0, 1) if getattr(layer, "transposed", False) else kept


def _ties(layer: Any) -> bool:
    """Return whether a layer ties channels together that are not in one set.

    A grouped convolution of several channels a group does, a group norm, and whatever has
    parameters and is neither known to mix channels by its weights alone nor to keep to each
    channel.
    """
    if isinstance(layer, nn.GroupNorm):  # has none without a scale and an offset
        return True
    if isinstance(layer, _CONVOLUTIONS):
        return layer.groups > 1 and not layer.in_channels == layer.out_channels == layer.groups
    if not isinstance(layer, nn.Module) or isinstance(layer, (*_MIXING, *_PER_CHANNEL)):
        return False
    return next(layer.parameters(), None) is not None


_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_MIXING = (*_CONVOLUTIONS, nn.Linear)
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)
