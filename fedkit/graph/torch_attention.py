"""torch's attention layer as a model would spell it, with the examples in front all the time.

Its own forward pass puts tokens before examples, and examples and heads into one dimension; none of
that can be told from a model that mixes examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def by_heads(model: nn.Module) -> Iterator[None]:
    """Let attention layers compute the same by heads, while a model is traced.

    torch's own way around its layers in evaluation, which rounds otherwise, is closed meanwhile.
    """
    was_open = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, was_open)
        torch.backends.mha.set_fastpath_enabled(False)
        for module in model.modules():
            if type(module) is nn.MultiheadAttention and "forward" not in vars(module):
                stack.callback(vars(module).pop, "forward", None)
                module.forward = _ByHeads(module)  # type: ignore[method-assign]
        yield


class _ByHeads:
    """The forward pass of an attention layer, but for what it does not take."""

    def __init__(self, layer: nn.MultiheadAttention) -> None:
        self._layer = layer

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        layer = self._layer
        not_taken = key_padding_mask, layer.bias_k, layer.add_zero_attn or None
        if not layer.batch_first or query.dim() != 3 or any(each is not None for each in not_taken):
            call: Any = type(layer).forward
            result: tuple[Tensor, Tensor | None] = call(
                layer,
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
            return result
        given = _projected(layer, query, key, value)
        each, of_keys, of_values = (_heads(x, layer.num_heads) for x in given)
        dropout = layer.dropout if layer.training else 0.0
        mixed = F.scaled_dot_product_attention(
            each, of_keys, of_values, attn_mask, dropout_p=dropout
        )
        return layer.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _heads(x: Tensor, count: int) -> Tensor:
    """Return [n, heads, tokens, size] of [n, tokens, all sizes]."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def _projected(
    layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, ...]:
    if query is key is value and layer.in_proj_weight is not None:
        # One layer, as its weight is one parameter.
        return F.linear(query, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    weights: tuple[Tensor, ...]
    if layer.in_proj_weight is None:
        weights = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    else:
        weights = layer.in_proj_weight.chunk(3)
    biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    return tuple(F.linear(*each) for each in zip((query, key, value), weights, biases, strict=True))
