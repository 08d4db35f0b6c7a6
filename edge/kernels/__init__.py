"""The C99 kernels that exported models call, and how their constants are packed."""
