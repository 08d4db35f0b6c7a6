/* Lets a gateway train over a serial line or a socket; the gateway is fedkit.trainer.link.
 *
 * The program says how bytes are read and written, and which examples it has of its own, and calls
 * link_serve() for as long as it likes:
 *
 *   static const struct link_port port = {read_uart, write_uart, NULL, my_example, my_count};
 *   for (;;) link_serve(&port);
 *
 * A frame is "FK", a kind, a number, 4 bytes of length, a payload and the CRC-32 of all but "FK"; all is
 * little-endian, and so must be the processor. Each request has one reply with its number, of its own
 * kind with bit 7 set, or of LINK_ERROR with one byte that says why. */
#ifndef TRAINER_LINK_H
#define TRAINER_LINK_H

#include <stddef.h>
#include <stdint.h>

enum link_kind {
    LINK_ABOUT = 1,  /* -> uint32 version, batch, inputs, classes, values, statistics, stored bits,
                      *    own examples; plan and masks as text that ends with 0 */
    LINK_BEGIN,      /* uint64 seed */
    LINK_LOAD,       /* float values [TRAINER_VALUES] */
    LINK_EPOCH,      /* nothing */
    LINK_PUT,        /* uint32 place, int32 label, float image [TRAINER_INPUTS] */
    LINK_OWN,        /* uint32 place, uint32 number of an example of its own */
    LINK_STEP,       /* float rate, momentum, decay -> double loss, uint32 enum trainer_result */
    LINK_VALUES,     /* -> float [TRAINER_VALUES] */
    LINK_STATISTICS, /* -> float [TRAINER_STATISTICS] */
    LINK_ERROR = 127
};

enum link_error { LINK_DAMAGED = 1, LINK_UNKNOWN, LINK_LENGTH, LINK_REFUSED };

struct link_port {
    int (*read)(void *context, uint8_t *to, size_t count);         /* 0: count bytes came */
    int (*write)(void *context, const uint8_t *from, size_t count); /* 0: they went */
    void *context;
    /* An example of the machine's own, image [TRAINER_INPUTS]; NULL where there are none. */
    const float *(*example)(void *context, uint32_t number, int *label);
    uint32_t (*examples)(void *context);
};

/* Answer one request. Returns 0, or what `read` or `write` returned where one failed. */
int link_serve(const struct link_port *port);

#endif
