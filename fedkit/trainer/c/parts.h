/* What a trainer does beside calling kernels: parts of a convolution, and values in few bits.
 *
 * There is one tile, so there is one part of the batch. */
#ifndef TRAINER_PARTS_H
#define TRAINER_PARTS_H

/* -- convolutions ----------------------------------------------------------------------------- */

static struct part whole_batch(const struct conv *conv, float *in, float *out) {
    struct part p;
    memset(&p, 0, sizeof p);
    p.tiles = 1;
    p.lines = conv->lines;
    p.examples = conv->source->examples;
    p.x = conv->source->x;
    p.in = conv->direct ? conv->source->x : in;
    p.out = out;
    return p;
}

static inline void conv_take(const struct conv *conv, float *out) {
    const struct part p = whole_batch(conv, NULL, out);
    pack_outputs(conv, &p);
}

/* Of a dense layer: what is added to the gradients of its weights, then that of its source. */
static inline void conv_add(const struct conv *conv, float *in, float *out, float *gradient,
                            float *bias_gradient) {
    const struct part p = whole_batch(conv, in, out);
    if (bias_gradient) bias_gradients(conv, p.out, p.lines, bias_gradient);
    add_dense(conv, &p, gradient);
}

static inline void conv_give(const struct conv *conv, float *out, void *sums) {
    struct part p = whole_batch(conv, NULL, out);
    p.sums = (struct sums *)sums;
    const struct sink sink = sink_back(conv, &p);
    give_dense(conv, &p, &sink);
    store_part(conv, &sink, 0);
}

/* Of a layer of kept weights: both at once. */
static inline void conv_return(const struct conv *conv, float *out, void *sums, float *gradient,
                               float *bias_gradient) {
    struct part p = whole_batch(conv, NULL, out);
    p.sums = (struct sums *)sums;
    if (bias_gradient) bias_gradients(conv, p.out, p.lines, bias_gradient);
    const struct sink sink = sink_back(conv, &p);
    return_gradients(conv, &p, &sink, gradient);
    store_part(conv, &sink, 0);
}

/* -- values in few bits ----------------------------------------------------------------------- */

#if TRAINER_STORED_BITS < 32

/* One step of SplitMix64: fedkit.core.numerics.derive_key. */
static uint64_t with_word(uint64_t key, uint64_t word) {
    uint64_t x = key + word + UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* Element k of a plane that begins at pixel `at` draws as it does in a tile of 8 lanes, whose runs
 * of 16 vectors draw together; those behind the last whole run do so one by one. */
static float drawn(uint64_t key, ptrdiff_t at, int k, int plane) {
    const int place = k / LANES * 8 + k % LANES, runs = plane / 16 * 128;
    const int count = place < runs ? 128 : 8, within = place % count, half = count / 2;
    const uint32_t counter = (uint32_t)((at * 8 + place - within) / 2 + within % half);
    const uint32_t bits = random_bits((uint32_t)key, (uint32_t)(key >> 32), counter);
    const uint32_t own = within < half ? bits & 0xffff : bits >> 16;
    return ((float)(int32_t)own + 0.5f) * 0x1p-16f;
}

static void code_put(uint8_t *codes, int k, int32_t code) {
#if TRAINER_STORED_BITS == 16
    codes[2 * k] = (uint8_t)code;
    codes[2 * k + 1] = (uint8_t)(code >> 8);
#elif TRAINER_STORED_BITS == 8
    codes[k] = (uint8_t)code;
#else
    codes[k / 2] = (uint8_t)(k % 2 ? codes[k / 2] | code << 4 : code);
#endif
}

static int32_t code_at(const uint8_t *codes, int k) {
#if TRAINER_STORED_BITS == 16
    return codes[2 * k] | codes[2 * k + 1] << 8;
#elif TRAINER_STORED_BITS == 8
    return codes[k];
#else
    return k % 2 ? codes[k / 2] >> 4 : codes[k / 2] & 15;
#endif
}

static int code_bytes(const struct tensor *t) {
    return (t->plane * LANES * TRAINER_STORED_BITS + 7) / 8;
}

/* Least and most of each part of a channel tell its grid. */
static struct grid grid_of(const float *ranges, int parts) {
    struct grid grid;
    memset(&grid, 0, sizeof grid);
    for (int p = 0; p < parts; p++) grid.least[p] = ranges[2 * p], grid.most[p] = ranges[2 * p + 1];
    stored_grid(&grid, TRAINER_STORED_BITS);
    return grid;
}

/* Which part of its channel's values each lane is. */
static void parts_of(const struct reading *how, int parts, const float *x, int *part) {
    float chosen[LANES];
    vec_store(chosen, stored_chosen(how, parts, vec_load(x), vec_zero(), vec_set1(1.0f),
                                    vec_set1(2.0f)));
    for (int l = 0; l < LANES; l++) part[l] = (int)chosen[l];
}

static struct grid grid_over(const struct reading *how, int parts, const float *x, int plane) {
    struct grid grid;
    float least[STORED_PARTS][LANES], most[STORED_PARTS][LANES];
    int part[LANES];
    for (int p = 0; p < STORED_PARTS; p++)
        for (int l = 0; l < LANES; l++) least[p][l] = INFINITY, most[p][l] = -INFINITY;
    for (int k = 0; k < plane; k++, x += LANES) {
        parts_of(how, parts, x, part);
        for (int l = 0; l < LANES; l++) {
            float *low = &least[part[l]][l], *high = &most[part[l]][l];
            *low = *low < x[l] ? *low : x[l];
            *high = *high > x[l] ? *high : x[l];
        }
    }
    for (int p = 0; p < STORED_PARTS; p++) {
        for (int l = 1; l < LANES; l++) {
            least[p][0] = least[p][l] < least[p][0] ? least[p][l] : least[p][0];
            most[p][0] = most[p][l] > most[p][0] ? most[p][l] : most[p][0];
        }
        grid.least[p] = least[p][0], grid.most[p] = most[p][0];
    }
    stored_grid(&grid, TRAINER_STORED_BITS);
    return grid;
}

static void channel_narrow(const struct tensor *t, int channel, const struct reading *how,
                           const struct grid *grid, int parts, uint64_t key, uint8_t *codes) {
    const ptrdiff_t at = (ptrdiff_t)channel * t->plane;
    const float *x = t->x + plane_offset(t, 0, channel);
    float by[STORED_PARTS], last[STORED_PARTS];
    int part[LANES];
    for (int p = 0; p < STORED_PARTS; p++) {
        by[p] = grid->step[p] > 0.0f ? 1.0f / grid->step[p] : 0.0f;
        last[p] = (float)(grid->first[p + 1] - 1 - grid->first[p]);
    }
    for (int k = 0; k < t->plane * LANES; k += LANES) {
        parts_of(how, parts, x + k, part);
        for (int l = 0; l < LANES; l++) {
            const int p = part[l];
            const float n = (x[k + l] - grid->least[p]) * by[p] + drawn(key, at, k + l, t->plane);
            code_put(codes, k + l, grid->first[p] + (int32_t)(last[p] < n ? last[p] : n));
        }
    }
}

/* Write the codes that the engine's `narrow` writes; a tensor's number and the key of the step tell what
 * it draws. Of each channel the ranges come first, then the codes of all. */
static inline void tensor_narrow(const struct tensor *t, uint64_t step_key, int number, void *to) {
    const uint64_t key = with_word(with_word(step_key, (uint64_t)number), 2);
    const int parts = stored_parts_of(t);
    float *ranges = (float *)to;
    uint8_t *codes = (uint8_t *)(ranges + 2 * parts * t->channels);
    for (int c = 0; c < t->channels; c++, ranges += 2 * parts, codes += code_bytes(t)) {
        const struct reading how = reading_of(t, c);
        const struct grid grid = grid_over(&how, parts, t->x + plane_offset(t, 0, c), t->plane);
        for (int p = 0; p < parts; p++) {
            ranges[2 * p] = grid.least[p];
            ranges[2 * p + 1] = grid.most[p];
        }
        channel_narrow(t, c, &how, &grid, parts, key, codes);
    }
}

/* Write the values that the codes stand for. */
static inline void tensor_widen(const struct tensor *t, const void *from) {
    const int parts = stored_parts_of(t);
    const float *ranges = (const float *)from;
    const uint8_t *codes = (const uint8_t *)(ranges + 2 * parts * t->channels);
    for (int c = 0; c < t->channels; c++, ranges += 2 * parts, codes += code_bytes(t)) {
        const struct grid grid = grid_of(ranges, parts);
        float *x = t->x + plane_offset(t, 0, c);
        for (int k = 0; k < t->plane * LANES; k++) {
            const int32_t code = code_at(codes, k);
            int p = 0;
            while (p + 1 < parts && code >= grid.first[p + 1]) p++;
            const float value = grid.least[p] + (float)(code - grid.first[p]) * grid.step[p];
            x[k] = value < grid.most[p] ? value : grid.most[p];
        }
    }
}

#endif
#endif
