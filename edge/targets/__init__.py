"""What an int8 graph becomes: one package per target, with its emitter, runner and kernels."""
