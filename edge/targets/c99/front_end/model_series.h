/* From lines of numbers, as a sensor gives them, to the windows that the model takes.
 *
 *     model_series_start(&series);
 *     for each line, float [MODEL_SERIES_COLUMNS]:
 *         if (model_series_add(&series, line)) {
 *             model_invoke(series.input, out, arena);
 *             say(model_class_names[model_class(out)]);
 *         }
 *
 * Its integers are those of fedkit, unless a compiler may change floats (-ffast-math). */
#ifndef MODEL_SERIES_H
#define MODEL_SERIES_H

#include <stdint.h>

#include "model_classes.h"
#include "model_series_sizes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    int8_t input[MODEL_SERIES_STEPS * MODEL_SERIES_COLUMNS]; /* the window, oldest line first */
    int32_t held; /* its lines that are there; below 0: so many come before it */
} model_series;

void model_series_start(model_series *series);

/* Takes a line; returns 1 if `input` is a whole window now, until the next line comes, else 0. */
int32_t model_series_add(model_series *series, const float *line);

#ifdef __cplusplus
}
#endif
#endif
