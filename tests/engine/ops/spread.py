"""What values of all examples mean."""

from __future__ import annotations

import base64

import numpy as np
import torch
from torch import Tensor

from fedkit.engine.plan.spread import Spread
from tests.naive.plan import Pass


def meaning(here: Pass, number: int, op: Spread) -> Tensor:
    raw = here.raw[op.target]
    if op.kind == "learned":
        values = here.weights[op.values]
    else:
        values = torch.from_numpy(np.frombuffer(base64.b64decode(op.values), "<f4").copy())
    return values.reshape(raw.shape[1:]).to(raw.dtype).expand(raw.shape)


MEANING = {Spread: meaning}
