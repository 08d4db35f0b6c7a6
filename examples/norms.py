"""One network and one small Transformer with several norms, on digits; each is a task.

Grids of them are sim/scenarios/digits-norms.toml, digits-slab.toml and padded-slab.toml: devices
that hold few classes each, and some whose images are each of one height and padded to the same.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor, nn

from fedkit import Task
from fedkit.nn.blocks import head
from fedkit.nn.norms.evonorm import EvoNormS0
from fedkit.nn.norms.free import lecun_normal_
from fedkit.nn.norms.second_moment import PowerNorm, UnifiedNorm
from fedkit.nn.norms.slab import ProgressiveNorm
from fedkit.nn.transformers import PooledTokens, Sizes, TransformerBlock, slab_vit_tiny
from fedkit.tasks import digits
from fedkit.tasks.task import Examples

Layer = Callable[[int], nn.Module]


class OverLast(nn.Module):
    """A layer over the last axis for what has channels first, or the other way round."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.movedim(1, -1)).movedim(-1, 1)
        return out


def network(norm: Layer | None, activation: Layer) -> nn.Module:
    layers: list[nn.Module] = []
    for cin, cout, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers.append(nn.Conv2d(cin, cout, 3, stride, 1, bias=norm is None))
        layers += [norm(cout)] if norm else []
        layers.append(activation(cout))
    return nn.Sequential(*layers, *head(64, 10))


def transformer(norm: Layer) -> nn.Module:
    """`vit-tiny` of 16 patches, as the mean of its tokens."""
    sizes = Sizes(48, 4, 96, 4, norm_first=True, biases=True)
    blocks = nn.Sequential(*(TransformerBlock(sizes, norm) for _ in range(sizes.blocks)))
    return PooledTokens(nn.Conv2d(1, 48, 2, 2), 16, blocks, norm(48), nn.Linear(48, 10))


def relu(channels: int) -> nn.Module:
    return nn.ReLU()


def task(name: str, model: Callable[[], nn.Module]) -> Task:
    return Task(f"digits-{name}", model, digits.train_data, digits.test_data)


BATCH = task("batch-norm", partial(network, nn.BatchNorm2d, relu))
GROUP = task("group-norm", partial(network, partial(nn.GroupNorm, 4), relu))
RMS = task("rms-norm", partial(network, lambda width: OverLast(nn.RMSNorm(width)), relu))
EVONORM = task("evonorm-s0", partial(network, EvoNormS0, lambda width: nn.Identity()))
SELU = task("selu", lambda: lecun_normal_(network(None, lambda width: nn.SELU())))
NONE = task("no-norm", partial(network, None, relu))


def padded(examples: Examples, seed: int) -> Examples:
    """Cut each image to 2, 4, 6 or all 8 rows, which own it, and fill it up with zeros."""
    rows = 2 * np.random.default_rng(seed).integers(1, 5, len(examples))
    there = np.arange(8) < rows[:, None]
    inputs = examples.inputs * there[:, None, :, None].astype(np.float32)
    return Examples(inputs, examples.targets, owners=rows)


def padded_task(name: str, model: Callable[[], nn.Module]) -> Task:
    train, test = digits.train_data, digits.test_data
    return Task(f"padded-{name}", model, lambda: padded(train(), 0), lambda: padded(test(), 1))


VIT_NORMS: dict[str, Layer] = {
    "layer-norm": nn.LayerNorm,
    "batch-norm": lambda width: OverLast(nn.BatchNorm1d(width)),
    "prepbn": ProgressiveNorm,
    "unified-norm": lambda width: OverLast(UnifiedNorm(width, filters=False)),
    "power-norm": lambda width: OverLast(PowerNorm(width)),
}
VITS: dict[str, Callable[[], nn.Module]] = {
    "slab": partial(slab_vit_tiny, (1, 8, 8), 10),
    **{name: partial(transformer, norm) for name, norm in VIT_NORMS.items()},
}
VIT_SLAB, VIT_LAYER, VIT_BATCH, VIT_PROGRESSIVE, VIT_UNIFIED, VIT_POWER = (
    task(f"vit-{name}", model) for name, model in VITS.items()
)
PADDED_LAYER, PADDED_BATCH, PADDED_PROGRESSIVE, PADDED_SLAB = (
    padded_task(name, VITS[name]) for name in ("layer-norm", "batch-norm", "prepbn", "slab")
)
