"""What a forward pass must not do if a trace of it is to stand for all of them.

A trace shows one pass. A model that draws random numbers, counts its calls or writes to its buffers
does something else in the next one, so these are looked for from outside: in the generators there
are, in what modules hold, and by tracing more than once.

Global generators belong to all threads. Flower's heartbeat draws from Python's every 20 s, say, so
one pass in which a generator moved proves nothing.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_GLOBAL = {
    "torch's generator": torch.default_generator,
    "numpy's generator": np.random.mtrand._rand,
    "Python's generator": random._inst,
}
_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Watch:
    """Knows what a model and the generators in its reach hold; tells and undoes what changed."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._generators = dict(_generators(model))
        self._before = self._states()
        self._draws = Counter[str]()
        self._tensors = {
            name: tensor.detach().clone()
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        self._attributes = {module: _attributes(module) for module in model.modules()}
        self._plain = {module: _plain(module) for module in model.modules()}

    def _states(self) -> dict[str, Any]:
        return {name: _state_of(one) for name, one in self._generators.items()}

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """See which generators move during a forward pass, which is the block."""
        before = self._states()
        yield
        now = self._states()
        self._draws.update(name for name in now if not _same(before[name], now[name]))

    def effects(self, draws: int, tracked: Container[str] = ()) -> list[str]:
        """Return a sentence for each thing that is no longer what it was.

        Args:
            draws: In how many passes a global generator must have moved to be drawn from.
            tracked: Names of buffers that may change: the statistics of norms.
        """
        found = [
            f"its forward draws random numbers from {name}"
            for name in self._generators
            if self._draws[name] >= (draws if name in _GLOBAL else 1)
        ]
        found += [
            f"its forward changes {name}"
            for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers())
            if name not in tracked
            and (name not in self._tensors or not _same(self._tensors[name], tensor.detach()))
        ]
        for name, module in self._model.named_modules():
            before, now = self._plain[module], _plain(module)
            found += [
                f"its forward changes {name}.{key}".replace(" .", " ")
                for key, value in now.items()
                if key not in before or not _same(before[key], value)
            ]
        return found

    def undo(self) -> None:
        """Give generators, tensors and plain attributes back what they held."""
        for name, one in self._generators.items():
            _restore(one, self._before[name])
        tensors = dict((*self._model.named_parameters(), *self._model.named_buffers()))
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                if name in tensors and not _same(tensor, tensors[name].detach()):
                    tensors[name].copy_(tensor)
        for module, attributes in self._attributes.items():
            for key in _attributes(module).keys() - attributes.keys():
                delattr(module, key)
            vars(module).update(attributes)
            now = _plain(module)
            for key, value in self._plain[module].items():
                if key not in now or not _same(value, now[key]):
                    vars(module)[key] = copy.deepcopy(value)


def has_hooks(weight: Tensor) -> bool:
    """Return whether somebody wants to see or change a parameter's gradient."""
    after = getattr(weight, "_post_accumulate_grad_hooks", None)
    return bool(weight._backward_hooks or after)


def _generators(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the global generators, those that modules hold and those that their forward names."""
    yield from _GLOBAL.items()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, _GENERATORS):
                yield f"{name}.{key}" if name else key, value
        forward: Callable[..., Any] = type(module).forward
        code, scope = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
        for key in code.co_names if code else ():
            if isinstance(scope.get(key), _GENERATORS):
                yield f"the global {key}", scope[key]


def _state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return (
        generator.get_state()
        if isinstance(generator, np.random.RandomState)
        else generator.getstate()
    )


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module was given as attributes, but for what every module has."""
    return {key: value for key, value in vars(module).items() if key not in _EVERY_MODULE}


def _plain(module: nn.Module) -> dict[str, Any]:
    """Return copies of those attributes that are plain data, or collections of it."""
    held = _attributes(module)
    return {key: copy.deepcopy(value) for key, value in held.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.is_floating_point():
            one, other = one.nan_to_num(0.5), other.nan_to_num(0.5)
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)
