"""Sparsity: where (mask), how much (distribution), when (schedule), which (topk), on the wire."""
