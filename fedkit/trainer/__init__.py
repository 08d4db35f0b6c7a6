"""Training without Python: a plan under masks as C99 for a microcontroller, and the way to it."""
