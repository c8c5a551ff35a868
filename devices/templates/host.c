/* Golden vectors of NAME compared and the network timed on this machine, layer by layer. */
#define _POSIX_C_SOURCE 199309L
#include "NAME.h"
#include "NAME_vectors.h"

#include <stdint.h>
#include <stdio.h>
#include <time.h>

static __attribute__((aligned(8))) uint8_t arena[@UPPER@_ARENA_BYTES];
static uint64_t layer_ns[@UPPER@_LAYERS];
static uint64_t since;

static uint64_t now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void edgeq_layer_done(int index)
{
    const uint64_t done = now();
    layer_ns[index] += done - since;
    since = done;
}

int main(void)
{
    uint32_t different = 0, largest = 0;
    for (int v = 0; v < NAME_VECTORS; v++) {
        if (NAME_try(v, arena) != 0) {
            return 1;
        }
        different += NAME_compare(v, &largest);
    }
    for (int i = 0; i < @UPPER@_LAYERS; i++) {
        layer_ns[i] = 0;
    }
    for (int run = 0; run < @runs@; run++) {
        const uint64_t start = since = now();
        (void)NAME_try(0, arena);
        printf("RUN %llu\n", (unsigned long long)(now() - start));
    }
    for (int i = 0; i < @UPPER@_LAYERS; i++) {
        printf("LAYER %llu\n", (unsigned long long)layer_ns[i]);
    }
    printf("LARGEST %lu\nDIFFERENT %lu\n", (unsigned long)largest, (unsigned long)different);
    return 0;
}
