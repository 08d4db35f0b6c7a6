"""What a norm over the channels of each place means."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fedkit.engine.plan.channel_norm import ChannelNorm
from tests.naive.plan import Pass


def meaning(here: Pass, number: int, op: ChannelNorm) -> Tensor:
    """Return it by torch's own norms, over the last axis."""
    weight, bias = (None if name is None else here.weights[name] for name in (op.weight, op.bias))
    x = here.read(op.source).movedim(1, -1)
    size = (x.shape[-1],)
    if op.centred:
        return F.layer_norm(x, size, weight, bias, op.eps).movedim(-1, 1)
    scaled = F.rms_norm(x, size, weight, op.eps)
    return (scaled if bias is None else scaled + bias).movedim(-1, 1)


MEANING = {ChannelNorm: meaning}
