/* Stands in for a microcontroller on a computer: `host PORT [EXAMPLES]` answers one gateway after the
 * other on TCP port PORT of the loopback. EXAMPLES is a file of examples of its own, each an int32
 * label and the image as float [TRAINER_INPUTS]. */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "link.h"
#include "trainer.h"

struct machine {
    int line;
    FILE *examples;
    uint32_t count;
    struct {
        int32_t label;
        float image[TRAINER_INPUTS];
    } example;
};

static int read_line(void *context, uint8_t *to, size_t count) {
    while (count) {
        const ssize_t came = read(((struct machine *)context)->line, to, count);
        if (came <= 0) return 1;
        to += came;
        count -= (size_t)came;
    }
    return 0;
}

static int write_line(void *context, const uint8_t *from, size_t count) {
    while (count) {
        const ssize_t went = send(((struct machine *)context)->line, from, count, MSG_NOSIGNAL);
        if (went <= 0) return 1;
        from += went;
        count -= (size_t)went;
    }
    return 0;
}

static uint32_t count_examples_of(void *context) { return ((struct machine *)context)->count; }

static const float *read_example(void *context, uint32_t number, int *label) {
    struct machine *m = (struct machine *)context;
    if (fseek(m->examples, (long)(number * sizeof m->example), SEEK_SET)) return NULL;
    if (fread(&m->example, sizeof m->example, 1, m->examples) != 1) return NULL;
    *label = m->example.label;
    return m->example.image;
}

static int listen_on(int port) {
    struct sockaddr_in address = {0};
    const int listening = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (listening < 0 || bind(listening, (struct sockaddr *)&address, sizeof address) ||
        listen(listening, 1))
        return -1;
    return listening;
}

/* The port, which the system chose where it was asked for 0. */
static int port_of(int listening) {
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    if (getsockname(listening, (struct sockaddr *)&address, &size)) return -1;
    return ntohs(address.sin_port);
}

int main(int count, char **arguments) {
    static struct machine machine;
    static const struct link_port port = {read_line, write_line, &machine, read_example,
                                          count_examples_of};
    const int listening = count > 1 ? listen_on(atoi(arguments[1])) : -1;
    if (listening < 0) {
        fprintf(stderr, "give a TCP port that is free: host PORT [EXAMPLES]\n");
        return 2;
    }
    if (count > 2) {
        machine.examples = fopen(arguments[2], "rb");
        if (!machine.examples || fseek(machine.examples, 0, SEEK_END)) {
            fprintf(stderr, "the examples cannot be read\n");
            return 2;
        }
        machine.count = (uint32_t)((size_t)ftell(machine.examples) / sizeof machine.example);
    }
    printf("%d\n", port_of(listening));
    fflush(stdout);
    for (;;) {
        machine.line = accept(listening, NULL, NULL);
        while (machine.line >= 0 && link_serve(&port) == 0) {
        }
        close(machine.line);
    }
}
