"""Models, random masks and data that the tests of the sparse engine share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkit.engine.sparse.engine import SparseEngine
from fedkit.engine.torch import TorchEngine
from fedkit.nn.norm import L1BatchNorm2d
from fedkit.nn.zoo import build_model, seeded
from fedkit.sparse.state import ModelState
from fedkit.tasks.task import Examples, cross_entropy
from tests.captured import captured

Shape = tuple[int, int, int]
CLASSES = 5

_BatchNorm = nn.modules.batchnorm._BatchNorm


def zoo(name: str, shape: Shape, classes: int = CLASSES) -> Callable[[], nn.Module]:
    """Return a factory of a zoo model whose norms have scales and offsets of their own."""

    def build() -> nn.Module:
        model = build_model(name, shape, classes)
        for norm in model.modules():
            if isinstance(norm, (_BatchNorm, nn.GroupNorm)):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
        return model

    return build


def l1(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Replace the norms of a model by L1 norms with the same parameters."""

    def build() -> nn.Module:
        model = factory()
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    norm = L1BatchNorm2d(child.num_features)
                    norm.load_state_dict(child.state_dict())
                    setattr(module, name, norm)
        return model

    return build


def layered(
    norm: type[nn.LayerNorm], shape: Shape, classes: int = CLASSES
) -> Callable[[], nn.Module]:
    """Return a factory of a small model with layer norms over images and over features."""

    def build() -> nn.Module:
        channels, *plane = shape
        half = [-(-size // 2) for size in plane]
        norms = [norm([6, *plane]), norm([8, *half]), norm(12, bias=False)]
        for name, parameter in nn.ModuleList(norms).named_parameters():
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
        first, second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1, bias=False)
        body = [first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU6(), nn.Flatten()]
        features = nn.Linear(8 * math.prod(half), 12)
        return nn.Sequential(*body, features, norms[2], nn.ReLU(), nn.Linear(12, classes))

    return build


class _Gated(nn.Module):
    """A block of MobileNetV3: widen, filter, gate, narrow, add."""

    def __init__(self, channels: int, between: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(channels, between, 1), nn.BatchNorm2d(between))
        depthwise = nn.Conv2d(between, between, 3, padding=1, groups=between, bias=False)
        self.filter = nn.Sequential(nn.Hardswish(), depthwise, nn.BatchNorm2d(between))
        squeeze, excite = nn.Conv2d(between, 8, 1), nn.Conv2d(8, between, 1)
        self.gate = nn.Sequential(squeeze, nn.ReLU(), excite, nn.Hardsigmoid())
        self.narrow = nn.Sequential(nn.Conv2d(between, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = F.hardswish(self.filter(self.widen(x)))
        gated = wide * self.gate(wide.mean((2, 3), keepdim=True))
        return x + cast(Tensor, self.narrow(gated))


def mobile(shape: Shape, classes: int = CLASSES) -> Callable[[], nn.Module]:
    """Return a factory of a small model like MobileNetV3."""

    def build() -> nn.Module:
        stem = nn.Conv2d(shape[0], 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.SiLU()
        return nn.Sequential(*stem, _Gated(16, 32), _Gated(16, 24), *head, nn.Linear(12, classes))

    return build


def engines(
    factory: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0, threads: int = 1
) -> tuple[TorchEngine, SparseEngine]:
    """Return both engines of one model."""
    reference = TorchEngine(seeded(factory, seed), cross_entropy)
    initial = reference.initial_state()
    plan = captured(reference.module(initial), shape)
    return reference, SparseEngine(plan, initial, threads=threads)


def pruned(state: ModelState, density: float, seed: int = 0) -> ModelState:
    """Return a state under masks drawn weight by weight; 1 keeps all, 0 none."""
    rng = np.random.default_rng([seed, 1])
    return state.with_masks({n: rng.random(m.shape) < density for n, m in state.masks.items()})


def examples(count: int, shape: tuple[int, ...], classes: int = CLASSES, seed: int = 0) -> Examples:
    """Return random examples."""
    rng = np.random.default_rng([seed, 2])
    inputs = rng.standard_normal((count, *shape)).astype(np.float32)
    return Examples(inputs, rng.integers(0, classes, count))


def tensors(data: Examples, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets for torch."""
    return torch.from_numpy(data.inputs).to(dtype), torch.from_numpy(data.targets)
