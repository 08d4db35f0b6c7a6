#include "model_series.h"

#include "model_series_tables.h"

#define MODEL_AGAIN (MODEL_SERIES_STEPS - MODEL_SERIES_HOP) /* lines of the next window too */

void model_series_start(model_series *series) { series->held = 0; }

/* The nearest integer, halves to even. */
static int8_t model_code(float value, float mean, float deviation) {
    const float steps = (value - mean) / deviation / MODEL_SERIES_SCALE;
    if (!(steps > -512.0f)) return -128;
    if (steps > 512.0f) return 127;
    int32_t code = (int32_t)steps;
    const float rest = steps - (float)code;
    if (rest > 0.5f || (rest == 0.5f && (code & 1))) code++;
    if (rest < -0.5f || (rest == -0.5f && (code & 1))) code--;
    code += MODEL_SERIES_ZERO_POINT;
    return (int8_t)(code < -128 ? -128 : code > 127 ? 127 : code);
}

int32_t model_series_add(model_series *series, const float *line) {
    if (series->held == MODEL_SERIES_STEPS) {
        for (int32_t i = 0; i < MODEL_AGAIN * MODEL_SERIES_COLUMNS; i++)
            series->input[i] = series->input[i + MODEL_SERIES_HOP * MODEL_SERIES_COLUMNS];
        series->held = MODEL_AGAIN;
    }
    if (series->held >= 0) {
        int8_t *codes = series->input + series->held * MODEL_SERIES_COLUMNS;
        for (int32_t c = 0; c < MODEL_SERIES_COLUMNS; c++)
            codes[c] = model_code(line[c], model_means[c], model_deviations[c]);
    }
    return ++series->held == MODEL_SERIES_STEPS;
}
