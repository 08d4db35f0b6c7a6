"""What an embedding means."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fedkit.engine.plan.embedding import Embedding
from tests.naive.plan import Pass


def meaning(here: Pass, number: int, op: Embedding) -> Tensor:
    padding = None if op.padding < 0 else op.padding
    rows = F.embedding(here.raw[0].flatten(1).long(), here.weights[op.table], padding)
    return rows.transpose(1, 2).unsqueeze(2)


MEANING = {Embedding: meaning}
