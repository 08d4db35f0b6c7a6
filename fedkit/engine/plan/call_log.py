"""What a forward pass calls with what depends on its inputs, to be compared with other passes.

A trace costs a hundred times what a pass costs. So a model is traced in one mode alone, and that it
calls the same in the other is seen from the two logs here.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from fedkit.nn.layers import STATISTICS

_OF_THE_MODE = frozenset({"training", "train", "momentum"})
"""Keywords by which norms and dropout are told of the mode; what they do in it is known."""

_SHARE = 4
"""Place of `dropout_p` among the arguments of torch's attention."""

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
"""What is the same where it is written the same."""


class CallLog(TorchFunctionMode):
    """A context in which one forward pass of a model is written down.

    Attributes:
        log: A line per call that takes what depends on the inputs and returns tensors: the
            function, and for each argument what it is or where it comes from.
        drops: Whether dropout was on, with some probability.
        drops_weights: The largest share of its weights that attention drops.
        frozen: Names of norms that were called with their running statistics.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.log: list[tuple[Any, ...]] = []
        self.drops, self.drops_weights = False, 0.0
        self.frozen: list[str] = []
        self._values = WeakTensorKeyDictionary()
        self._values[inputs] = 0
        self._held = WeakTensorKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._held[tensor] = name

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and write it down if it passes on what depends on inputs."""
        named = dict(kwargs or {})
        read = [self._told(value) for value in tree_leaves((args, _without_mode(named)))]
        passes_on = any(told[0] == "value" for told in read)
        result = func(*args, **named)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if passes_on and made:
            self._note_mode(func, args, named)
            self.log.append((resolve_name(func) or repr(func), *read))
            for number, value in enumerate(made):
                self._values[value] = (len(self.log), number)
        return result

    def _told(self, value: Any) -> tuple[str, Any]:
        """Return what stands for an argument in the log."""
        if not isinstance(value, Tensor):
            return "given", repr(value) if isinstance(value, _PLAIN) else type(value)
        if value in self._values:
            return "value", self._values[value]
        if value in self._held:
            return "held", self._held[value]
        return "constant", _digest(value)

    def _note_mode(
        self, func: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]
    ) -> None:
        """Note what dropout and norms, which take their mode as a keyword, do in this pass."""
        is_on = named.get("training")
        self.drops |= bool(is_on and named.get("p"))
        if func is F.scaled_dot_product_attention:  # which is told no mode
            share = named.get("dropout_p", args[_SHARE] if len(args) > _SHARE else 0.0)
            self.drops_weights = max(self.drops_weights, float(share))
        held = [self._held[v] for v in tree_leaves((args, dict(named))) if self._is_held(v)]
        means = [name.rpartition(".") for name in held]
        if is_on is False:
            self.frozen += [owner for owner, _, kind in means if kind == STATISTICS[0]]

    def _is_held(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._held


def _digest(constant: Tensor) -> str:
    content = io.BytesIO()
    torch.save(constant.detach().clone(), content)
    return hashlib.sha256(content.getvalue()).hexdigest()


def _without_mode(named: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in named.items() if key not in _OF_THE_MODE}
