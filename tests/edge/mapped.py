"""Models that return maps, series or what they were given, and what torch gives for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from edge.artifact import Artifact
from edge.export import save_graph
from edge.save import save
from fedkit.graph import ir
from fedkit.nn.layers import tracking_norms
from fedkit.nn.zoo import build_model
from tests.edge.models import DenseBlock, Images, Sums, pruned


class Segments(nn.Module):
    """Classes of each pixel, from a map and from one of half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, 2, 1)
        self.classes = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fine(x))
        y = F.interpolate(torch.relu(self.coarse(x)), scale_factor=2.0)
        logits: Tensor = self.classes(torch.cat([x, y], 1))
        return logits


class Columns(nn.Module):
    """A series that is made of a map: what each column holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, (8, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).squeeze(2)
        return y


class Softmax(nn.Module):
    """Probabilities of each pixel's classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(3 * self.conv(x), 1)


SHAPE = (3, 8, 10)
MAPPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "segments": (Segments, SHAPE),
    "a sum": (Sums, SHAPE),
    "what a concat joins": (DenseBlock, SHAPE),
    "a maximum": (lambda: nn.MaxPool2d(3, 2, 1), SHAPE),
    "probabilities": (Softmax, SHAPE),
    "one channel": (lambda: nn.Conv2d(3, 1, 3), SHAPE),
    "one row": (lambda: nn.Conv2d(3, 4, (8, 3)), SHAPE),
    "primes": (lambda: nn.Conv2d(5, 7, 3, 2, 1), (5, 13, 23)),
    "one pixel": (lambda: nn.Conv2d(3, 4, 3), (3, 3, 3)),
    "a mean": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)), SHAPE),
    "a series": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.ReLU()), (3, 11)),
    "a series of one": (lambda: nn.Conv1d(3, 5, 11), (3, 11)),
    "a series of columns": (Columns, SHAPE),
    "features as a series": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Unflatten(1, (8, 1))),
        (6,),
    ),
}


def of_zoo(name: str, shape: tuple[int, ...]) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    return lambda: randomised(build_model(name, shape, 5)), shape


def sparse(name: str) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    make, shape = MAPPED[name]
    return lambda: pruned(make(), 0.3), shape


def randomised(model: nn.Module) -> nn.Module:
    """Give norms scales, offsets and statistics of their own."""
    for norm in tracking_norms(model).values():
        for values, low, high in (
            *((norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5)),
            *((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.3, 1.0)),
        ):
            assert values is not None
            nn.init.uniform_(values, low, high)
    return model


MAPPED |= {
    "unet-w8": of_zoo("unet-w8", (1, 8, 8)),
    "unet-w8 of odd sizes": of_zoo("unet-w8", (3, 7, 13)),
    "ad-autoencoder": of_zoo("ad-autoencoder", (64,)),
}
MAPPED |= {f"sparse {name}": sparse(name) for name in ("segments", "unet-w8", "ad-autoencoder")}


def mapped(name: str) -> tuple[nn.Module, Images]:
    """Return a model and inputs for it."""
    make, shape = MAPPED[name]
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal((12, *shape)).astype(np.float32)
    return make().eval(), inputs


def of_torch(model: nn.Module, inputs: Images) -> Images:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(inputs)).numpy())


class Several(nn.Module):
    """Two convolutions, and what a function makes of them and of what it reads."""

    def __init__(self, then: Callable[..., Any], channels: int = 3) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.last, self.then = nn.Linear(channels, 4), then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, x)


def _parts_of_a_sum(net: Several, x: Tensor) -> Any:
    y, z = net.a(x), net.b(x)
    return y, z, torch.relu(y + z)


def _a_chain(net: Several, x: Tensor) -> Any:
    y = torch.sigmoid(net.a(x))
    z = torch.tanh(y)
    return z, torch.exp(z), y


def _joined(net: Several, x: Tensor) -> Any:
    y, z = net.a(x), torch.relu(net.b(x))
    both = torch.cat([y, z], 1)
    return y, both, torch.cat([both, y], 1), z


SEVERAL: dict[str, Callable[[], nn.Module]] = {
    "classes and a map": lambda: Several(
        lambda net, x: (net.last((y := torch.relu(net.a(x))).mean((2, 3))), net.b(y))
    ),
    "before and after": lambda: Several(lambda net, x: [y := net.a(x), torch.relu(y)]),
    "parts of a sum": lambda: Several(_parts_of_a_sum),
    "a chain": lambda: Several(_a_chain),
    "what is joined": lambda: Several(_joined),
    "a view": lambda: Several(lambda net, x: (y := net.a(x), y.flatten(1), y[:, :, ::2])),
    "one scale": lambda: Several(
        lambda net, x: (y := net.a(x), F.max_pool2d(y, 2), F.max_pool2d(y, 3, 2, 1))
    ),
    "an inner value": lambda: Several(
        lambda net, x: (y := F.relu6(net.a(x)), net.b(y) + x, net.last(y.mean((2, 3))), -y)
    ),
    "logits and probabilities": lambda: Several(
        lambda net, x: (y := net.last(net.a(x).mean((2, 3))), torch.softmax(y, 1))
    ),
    "nested": lambda: Several(lambda net, x: (net.a(x), [net.b(x), net.last(x.mean((2, 3)))])),
    "a series and a column": lambda: Several(
        lambda net, x: (net.a(x)[:, :, 3], net.b(x)[:, :, :, 2:3], net.a(x)[:, :, :1])
    ),
}


def several(name: str) -> tuple[nn.Module, Images]:
    """Return a model of several outputs and inputs for it."""
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).standard_normal((12, *SHAPE)).astype(np.float32)
    return SEVERAL[name]().eval(), inputs


def all_of_torch(model: nn.Module, inputs: Images) -> list[Images]:
    """Return all outputs, in their order."""
    with torch.no_grad():
        return [each.numpy() for each in tree_leaves(model(torch.from_numpy(inputs)))]


# Their artifacts


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "tflite": ("tflite", {}),
    "onnx-qdq": ("onnx", {}),
    "onnx-qoperator": ("onnx", {"form": "qoperator"}),
    "c99": ("c99", {}),
    "c99-size": ("c99", {"goal": "size"}),
}


def saved(graph: ir.Graph, inputs: Images, folder: Path, form: str) -> Artifact:
    whole = save_graph(graph, folder / "model.graph", {})
    about = {"graph": whole.path.name, "graph_sha256": whole.sha256}
    target, options = FORMS[form]
    return save(target, graph, inputs, folder / f"model-{form}", about, **options)
