"""One emitter per target; each sees the graph of `edge.ir` and nothing of its neighbours."""
