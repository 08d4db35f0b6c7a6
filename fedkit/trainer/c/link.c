/* See link.h. */
#include "link.h"

#include <string.h>

#include "trainer.h"

#define VERSION 1
#define REPLY 128

#if TRAINER_BATCH > 1
static float image[TRAINER_INPUTS];
#define IMAGE image
#else
#define IMAGE trainer_input()
#endif

static uint32_t crc_of(uint32_t crc, const uint8_t *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return crc;
}

/* A frame on its way: bytes of payload that are left, and the CRC so far. */
struct frame {
    const struct link_port *port;
    uint32_t left, crc;
    int failed;
    uint8_t number;
};

static void take(struct frame *f, void *to, uint32_t count) {
    if (f->failed) return;
    f->failed = f->port->read(f->port->context, (uint8_t *)to, count);
    if (f->failed) return;
    f->crc = crc_of(f->crc, (const uint8_t *)to, count);
    f->left -= count;
}

static void give(struct frame *f, const void *from, uint32_t count) {
    if (f->failed) return;
    f->crc = crc_of(f->crc, (const uint8_t *)from, count);
    f->failed = f->port->write(f->port->context, (const uint8_t *)from, count);
}

/* Take what is left of a payload, and say whether the whole frame is what was sent. */
static int ends_well(struct frame *f) {
    uint32_t sent = 0;
    uint8_t byte;
    while (f->left && !f->failed) take(f, &byte, 1);
    const uint32_t crc = ~f->crc;
    if (!f->failed) f->failed = f->port->read(f->port->context, (uint8_t *)&sent, sizeof sent);
    return !f->failed && sent == crc;
}

static void begin_reply(struct frame *f, uint8_t kind, uint32_t count) {
    if (!f->failed) f->failed = f->port->write(f->port->context, (const uint8_t *)"FK", 2);
    f->crc = 0xFFFFFFFFu;
    give(f, &kind, 1);
    give(f, &f->number, 1);
    give(f, &count, sizeof count);
}

static void end_reply(struct frame *f) {
    const uint32_t crc = ~f->crc;
    if (!f->failed)
        f->failed = f->port->write(f->port->context, (const uint8_t *)&crc, sizeof crc);
}

static void reply(struct frame *f, uint8_t kind, const void *payload, uint32_t count) {
    begin_reply(f, kind, count);
    give(f, payload, count);
    end_reply(f);
}

static void refuse(struct frame *f, enum link_error why) {
    const uint8_t code = (uint8_t)why;
    reply(f, LINK_ERROR, &code, 1);
}

static void say_about(struct frame *f) {
    const struct link_port *port = f->port;
    const uint32_t own = port->examples ? port->examples(port->context) : 0;
    const uint32_t about[] = {VERSION,        TRAINER_BATCH,      TRAINER_INPUTS,      TRAINER_CLASSES,
                              TRAINER_VALUES, TRAINER_STATISTICS, TRAINER_STORED_BITS, own};
    static const char plan[] = TRAINER_PLAN, masks[] = TRAINER_MASKS;
    begin_reply(f, LINK_ABOUT | REPLY, (uint32_t)(sizeof about + sizeof plan + sizeof masks));
    give(f, about, sizeof about);
    give(f, plan, sizeof plan);
    give(f, masks, sizeof masks);
    end_reply(f);
}

static void say_statistics(struct frame *f) {
    begin_reply(f, LINK_STATISTICS | REPLY, TRAINER_STATISTICS * sizeof(float));
    for (int i = 0; i < TRAINER_STATISTICS; i++) {
        const float value = trainer_statistic(i);
        give(f, &value, sizeof value);
    }
    end_reply(f);
}

/* What a request holds beside an image or values. */
union arguments {
    uint64_t seed;
    struct {
        uint32_t place;
        int32_t label;
    } put;
    struct {
        uint32_t place, number;
    } own;
    float rates[3];
};

static enum trainer_result put_own(const struct link_port *port, uint32_t place, uint32_t number) {
    int label = -1;
    if (!port->example || number >= port->examples(port->context)) return TRAINER_BAD_EXAMPLE;
    const float *found = port->example(port->context, number, &label);
    return found ? trainer_put((int)place, found, label) : TRAINER_BAD_EXAMPLE;
}

static void step(struct frame *f, const float *rates) {
    struct {
        double loss;
        uint32_t result, unused;
    } done = {0.0, 0, 0};
    done.result = (uint32_t)trainer_step(rates[0], rates[1], rates[2], &done.loss);
    reply(f, LINK_STEP | REPLY, &done, 12);
}

static uint32_t payload_of(uint8_t kind) {
    switch (kind) {
    case LINK_BEGIN: return 8;
    case LINK_LOAD: return TRAINER_VALUES * sizeof(float);
    case LINK_PUT: return 8 + TRAINER_INPUTS * sizeof(float);
    case LINK_OWN: return 8;
    case LINK_STEP: return 12;
    default: return 0;
    }
}

static void answer(struct frame *f, uint8_t kind, const union arguments *given) {
    enum trainer_result result = TRAINER_OK;
    switch (kind) {
    case LINK_ABOUT: say_about(f); return;
    case LINK_STEP: step(f, given->rates); return;
    case LINK_STATISTICS: say_statistics(f); return;
    case LINK_VALUES:
        reply(f, LINK_VALUES | REPLY, trainer_values(), TRAINER_VALUES * sizeof(float));
        return;
    case LINK_BEGIN: trainer_begin(given->seed); break;
    case LINK_EPOCH: trainer_epoch(); break;
    case LINK_PUT: result = trainer_put((int)given->put.place, IMAGE, given->put.label); break;
    case LINK_OWN: result = put_own(f->port, given->own.place, given->own.number); break;
    default: break;
    }
    if (result == TRAINER_OK)
        reply(f, kind | REPLY, NULL, 0);
    else
        refuse(f, LINK_REFUSED);
}

int link_serve(const struct link_port *port) {
    struct frame f = {port, 0, 0xFFFFFFFFu, 0, 0};
    union arguments given;
    uint8_t letter = 0, kind = 0;
    uint32_t length = 0;
    while (letter != 'F') /* whatever is left of a frame that was cut off is passed over */
        if ((f.failed = port->read(port->context, &letter, 1))) return f.failed;
    if ((f.failed = port->read(port->context, &letter, 1)) || letter != 'K') return f.failed;
    f.left = sizeof kind + sizeof f.number + sizeof length;
    take(&f, &kind, sizeof kind);
    take(&f, &f.number, sizeof f.number);
    take(&f, &length, sizeof length);
    f.left = length;
    memset(&given, 0, sizeof given);
    const int known = kind >= LINK_ABOUT && kind <= LINK_STATISTICS;
    const int fits = known && length == payload_of(kind);
    if (fits && kind == LINK_LOAD)
        take(&f, trainer_values(), length);
    else if (fits && length)
        take(&f, &given, kind == LINK_PUT ? 8 : length);
    if (fits && kind == LINK_PUT) take(&f, IMAGE, TRAINER_INPUTS * sizeof(float));
    const int whole = ends_well(&f);
    if (f.failed) return f.failed;
    if (!whole)
        refuse(&f, LINK_DAMAGED);
    else if (!fits)
        refuse(&f, known ? LINK_LENGTH : LINK_UNKNOWN);
    else
        answer(&f, kind, &given);
    return f.failed;
}
