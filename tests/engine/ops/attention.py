"""What attention and its parts mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkit.engine.plan.attention import AttentionOp
from fedkit.engine.plan.product import Product
from fedkit.engine.plan.softmax import SoftmaxOp
from tests.naive.plan import Pass


def attention(here: Pass, number: int, op: AttentionOp) -> Tensor:
    """Return it by torch's own, over [n, heads, places, size]."""
    query, key, value = (
        here.read(each).flatten(2).unflatten(1, (op.heads, -1)).transpose(2, 3)
        for each in op.sources
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=op.causal, scale=op.scale)
    return mixed.transpose(2, 3).flatten(1, 2).reshape(here.raw[op.target].shape)


def product(here: Pass, number: int, op: Product) -> Tensor:
    return torch.einsum("zkrm,znrk->znrm", here.read(op.left), here.read(op.right))


MEANING = {
    AttentionOp: attention,
    Product: product,
    SoftmaxOp: lambda here, number, op: here.read(op.source).softmax(1),
}
