"""From a model to a plan: what the compiled engines compute, in order and in memory."""
