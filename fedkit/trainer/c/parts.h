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
    p.in = in;
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
#define BITS TRAINER_STORED_BITS

/* One step of SplitMix64: fedkit.core.numerics.derive_key. */
static uint64_t with_word(uint64_t key, uint64_t word) {
    uint64_t x = key + word + UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

/* Write the codes that the engine's `narrow` writes; a tensor's number and the key of the step tell what
 * it draws. The range of each channel comes first, which tells its grid, then the codes of all. */
static inline void tensor_narrow(const struct tensor *t, uint64_t step_key, int number, void *to) {
    const uint64_t key = with_word(with_word(step_key, (uint64_t)number), 2);
    const int parts = stored_parts_of(t);
    struct range *range = (struct range *)to;
    uint8_t *codes = (uint8_t *)(range + t->channels);
    for (int c = 0; c < t->channels; c++) {
        const struct reading how = reading_of(t, c);
        const struct parts all = stored_parts(&how, parts);
        struct grid grid;
        const float *x = t->x + plane_offset(t, 0, c);
        range[c] = stored_range(x, t->plane);
        stored_make_plane(&all, parts, range[c], &grid, BITS, key, stored_counter(c, t->plane), t->plane, x,
                          codes + c * stored_bytes(t->plane, BITS));
    }
}

/* Write the values that the codes stand for. */
static inline void tensor_widen(const struct tensor *t, const void *from) {
    const int parts = stored_parts_of(t);
    const struct range *range = (const struct range *)from;
    const uint8_t *codes = (const uint8_t *)(range + t->channels);
    for (int c = 0; c < t->channels; c++) {
        const struct reading how = reading_of(t, c);
        const struct parts all = stored_parts(&how, parts);
        struct narrowing unused;
        struct grid grid;
        stored_grid(&all, range[c], BITS, &grid, &unused);
        stored_widen_plane(parts, &grid, BITS, t->plane, codes + c * stored_bytes(t->plane, BITS),
                           t->x + plane_offset(t, 0, c));
    }
}

#endif
#endif
