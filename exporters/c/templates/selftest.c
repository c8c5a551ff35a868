/* Runs NAME on the golden vectors; prints and returns whether codes differ. */
#include "NAME.h"
#include "NAME_vectors.h"

#include <stdio.h>

#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(8)))
#else
#define ALIGNED
#endif

static ALIGNED uint8_t arena[@UPPER@_ARENA_BYTES];

int main(void)
{
    uint32_t different = 0, largest = 0;
    for (int v = 0; v < NAME_VECTORS; v++) {
        if (NAME_try(v, arena) != 0) {
            printf("NAME: the arena is not aligned\n");
            return 1;
        }
        different += NAME_compare(v, &largest);
    }
    printf("NAME: %lu of %d codes differ\n", (unsigned long)different, NAME_VECTORS * (@codes@));
    return different == 0 ? 0 : 1;
}
