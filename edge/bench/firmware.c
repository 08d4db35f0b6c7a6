/* What surrounds a model on a bare processor: memory for it, and one call. */
#include "model.h"

#define KEPT __attribute__((used, aligned(MODEL_ARENA_ALIGNMENT)))

KEPT int8_t bench_in[MODEL_INPUT_BYTES];
KEPT int8_t bench_out[MODEL_OUTPUT_BYTES];
KEPT uint8_t bench_arena[MODEL_ARENA_BYTES];

int bench_run(void) { return model_invoke((const void *)bench_in, bench_out, bench_arena); }
