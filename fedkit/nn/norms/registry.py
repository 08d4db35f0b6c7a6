"""The norms, and how a fleet treats what each holds: a row per norm.

A fleet averages weights and nothing else. Every other value of a norm has a role that says what
becomes of it; a value whose role nobody declared is a constant of the model, which stays where it
is, and a model that changes one while it trains is refused (`TorchEngine.check_forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from fedkit.core.errors import ConfigError
from fedkit.nn.norm import L1BatchNorm2d, L1LayerNorm
from fedkit.nn.norms.evonorm import EvoNormB0, EvoNormS0
from fedkit.nn.norms.free import ScaledResidual, skip_init
from fedkit.nn.norms.frozen import FrozenLayerNorm
from fedkit.nn.norms.masked_norm import MaskedBatchNorm, unmasked
from fedkit.nn.norms.second_moment import PowerNorm, UnifiedNorm
from fedkit.nn.norms.slab import ProgressiveNorm, RepBatchNorm

Role = Literal["weight", "affine", "moment", "schedule", "local"]
"""What a parameter or buffer of a norm is to a fleet; see `MERGES`."""

MERGES: Mapping[Role, str] = {
    "weight": "mean over the devices that keep it, by examples",
    "affine": "mean over the devices, by examples; a device's own where norms stay",
    "moment": "moments of the devices' inputs pool, by examples",
    "schedule": "does not travel: follows the server's round",
    "local": "does not travel: a device starts anew in each round",
}
"""What a server does with values of each role."""

Spread = Literal["variance", "absolute", "second"]
"""What `running_var` holds: a variance around the mean; a squared mean absolute deviation, in its
units; or a second moment around 0."""

Samples = Callable[..., Tensor]
"""(norm, *what it is called with) -> of what its moments are: [samples, channels]."""


def of_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Return every value of each channel of [n, channels, ...]."""
    return x.transpose(0, 1).flatten(1).T


def _off_the_mean(norm: nn.Module, x: Tensor) -> Tensor:
    """Return what each value is off the mean of its last axis, [values, 1]."""
    return (x - x.mean(-1, keepdim=True)).reshape(-1, 1)


def _of_unmasked(norm: nn.Module, input: Tensor, mask: Tensor | None = None) -> Tensor:
    return of_channels(norm, input) if mask is None else unmasked(input, mask)


@dataclass(frozen=True)
class NormRow:
    """A norm, or a layer that takes the place of one.

    Attributes:
        name: What tables call it.
        kind: Its module; classes that derive from it have this row too, unless they have their own.
        make: Channels, or the width of the last axis -> the module.
        reads: The axis of which it has channels: 1, or the last.
        per_example: Whether it treats each example by itself in training, as batch norms do not.
        roles: Its parameters and buffers by name. What is not here is a constant.
        spread: Of its moments, if it has some.
        samples: Of what they are.
        restarts: Makes its moments the plain mean over the batches from here on.
        forgets: Clears what earlier steps left in it, but for its moments.
        follows: Sets its schedule to (share of the run that is over).
        folds: Whether it is one scale and shift per channel, or a linear layer, in an export.
        integers: How an export computes it: "folded", by a "kernel", a "table" of 256, or "no".
        not_planned: Why the C engines do not train it; "" where they do.
    """

    name: str
    kind: type[nn.Module]
    make: Callable[[int], nn.Module]
    reads: Literal["channels", "last axis"] = "channels"
    per_example: bool = True
    roles: Mapping[str, Role] = field(default_factory=dict)
    spread: Spread = "variance"
    samples: Samples = of_channels
    restarts: Callable[[Any], None] = lambda norm: None
    forgets: Callable[[Any], None] = lambda norm: None
    follows: Callable[[Any, float], None] = lambda norm, progress: None
    folds: bool = False
    integers: Literal["folded", "kernel", "table", "no"] = "kernel"
    not_planned: str = ""

    def named(self, role: Role) -> tuple[str, ...]:
        """Return what has a role."""
        return tuple(name for name, own in self.roles.items() if own == role)


_AFFINE: Mapping[str, Role] = {"weight": "affine", "bias": "affine"}
_MOMENTS: Mapping[str, Role] = {"running_mean": "moment", "running_var": "moment"}
_OF_BATCH: Mapping[str, Role] = {**_AFFINE, **_MOMENTS, "num_batches_tracked": "local"}
_STEPS = "it smooths over the steps of training, which a plan does not hold"

_TABLE: dict[type[nn.Module], NormRow] = {}


def add_norm(row: NormRow) -> None:
    """Add a norm of one's own; a module that is imported again gives its row again.

    Raises:
        ConfigError: Its module or name has a row, or its moments are not `running_mean` and
            `running_var`, as which they travel.
    """
    _forget_earlier(row)
    if row.kind in _TABLE or row.name in (other.name for other in norms()):
        raise ConfigError(f"norm {row.name!r} ({row.kind.__name__}) has a row already")
    if row.named("moment") not in ((), tuple(_MOMENTS)):
        raise ConfigError(
            f"norm {row.name!r} has moments {', '.join(row.named('moment'))}; moments travel as "
            f"{' and '.join(_MOMENTS)}, in that order: call them so"
        )
    _TABLE[row.kind] = row


def _forget_earlier(row: NormRow) -> None:
    """Remove the row of the same class as it was before its module was imported again."""
    for kind, other in list(_TABLE.items()):
        is_same = other.name == row.name and kind.__qualname__ == row.kind.__qualname__
        if is_same and kind is not row.kind and kind.__module__ == row.kind.__module__:
            del _TABLE[kind]


def norms() -> tuple[NormRow, ...]:
    """Return all rows, in the order in which they were added."""
    return tuple(_TABLE.values())


def row_of(module: nn.Module) -> NormRow | None:
    """Return the row of a module's class, or of the nearest class that it derives from."""
    return next((_TABLE[kind] for kind in type(module).__mro__ if kind in _TABLE), None)


def rows_in(model: nn.Module) -> Iterator[tuple[str, nn.Module, NormRow]]:
    """Yield the name, module and row of all norms of a model, in its order."""
    for name, module in model.named_modules():
        if (row := row_of(module)) is not None:
            yield name, module, row


def _batch_norm(
    name: str,
    kind: type[nn.Module],
    make: Callable[[int], nn.Module],
    more: Mapping[str, Role] | None = None,
    **settings: Any,
) -> NormRow:
    roles = {**_OF_BATCH, **(more or {})}
    how = {"per_example": False, "folds": True, "integers": "folded", **settings}
    return NormRow(name, kind, make, roles=roles, restarts=_plain_mean, **how)


def _plain_mean(norm: Any) -> None:
    """Start a norm's moments anew.

    torch's moving average would carry a tenth of them from each batch, so that with few local steps
    most of a device's would be those of earlier rounds' weights.
    """
    norm.reset_running_stats()
    norm.momentum = None


def _of_last(name: str, kind: type[nn.Module], make: Callable[[int], nn.Module], **how: Any) -> Any:
    return NormRow(name, kind, make, "last axis", **{"roles": _AFFINE, **how})


for _row in (
    _batch_norm("BatchNorm", nn.modules.batchnorm._BatchNorm, nn.BatchNorm2d),
    _batch_norm("L1-BatchNorm", L1BatchNorm2d, L1BatchNorm2d, spread="absolute"),
    _of_last("LayerNorm", nn.LayerNorm, nn.LayerNorm),
    _of_last("RMSNorm", nn.RMSNorm, nn.RMSNorm, roles={"weight": "affine"}),
    _of_last("L1-LayerNorm", L1LayerNorm, L1LayerNorm, integers="no"),
    NormRow("GroupNorm", nn.GroupNorm, partial(nn.GroupNorm, 2), roles=_AFFINE),
    NormRow(
        "InstanceNorm",
        nn.modules.instancenorm._InstanceNorm,
        partial(nn.InstanceNorm2d, affine=True),
        roles=_AFFINE,
    ),
    _batch_norm("RepBN", RepBatchNorm, RepBatchNorm, {"eta": "affine"}),
    _of_last(
        "PRepBN",
        ProgressiveNorm,
        ProgressiveNorm,
        per_example=False,
        roles={"gamma": "schedule"},
        follows=lambda norm, progress: norm.follow(progress),
        folds=True,
        integers="folded",
        not_planned="its share of a layer norm follows the round, which a plan does not hold",
    ),
    _batch_norm(
        "UnifiedNorm",
        UnifiedNorm,
        UnifiedNorm,
        dict.fromkeys(("squares", "products", "step"), "local"),
        spread="second",
        forgets=lambda norm: norm.forget(),
        not_planned=_STEPS,
    ),
    _batch_norm(
        "PowerNorm",
        PowerNorm,
        PowerNorm,
        dict.fromkeys(("psi", "nu", "step"), "local"),
        spread="second",
        forgets=lambda norm: norm.forget(),
        not_planned=_STEPS,
    ),
    _of_last(
        "frozen LayerNorm",
        FrozenLayerNorm,
        FrozenLayerNorm,
        roles={**_AFFINE, **_MOMENTS},
        spread="second",
        samples=_off_the_mean,
        folds=True,
        integers="folded",
        not_planned="its deviation is a constant of a fleet, which a plan does not hold",
    ),
    _batch_norm(
        "masked BatchNorm",
        MaskedBatchNorm,
        MaskedBatchNorm,
        samples=_of_unmasked,
        not_planned="its moments depend on a mask",
    ),
    NormRow(
        "EvoNorm-S0",
        EvoNormS0,
        partial(EvoNormS0, groups=2),
        roles={**_AFFINE, "v": "weight"},
        integers="no",
        not_planned="it divides by a root, of which a plan has no op",
    ),
    _batch_norm(
        "EvoNorm-B0",
        EvoNormB0,
        EvoNormB0,
        {"v": "weight"},
        folds=False,
        integers="no",
        not_planned="it divides by a root, of which a plan has no op",
    ),
    NormRow("SELU", nn.SELU, lambda channels: nn.SELU(), integers="table"),
    NormRow(
        "SkipInit",
        ScaledResidual,
        lambda channels: skip_init(nn.Conv2d(channels, channels, 1)),
        roles={"alpha": "weight"},
        folds=True,
        integers="folded",
    ),
):
    add_norm(_row)
