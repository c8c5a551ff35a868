/* Runs NAME on the golden vectors; prints and returns the number of codes that differ. */
#include "NAME.h"
#include "NAME_vectors.h"

#include <stdio.h>

#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(8)))
#else
#define ALIGNED
#endif

static ALIGNED uint8_t arena[@UPPER@_ARENA_BYTES];
@buffers@

int main(void)
{
    int different = 0;
    for (int v = 0; v < NAME_VECTORS; v++) {
        if (NAME_run(@arguments@, arena) != 0) {
            printf("NAME: the arena is not aligned\n");
            return 1;
        }
@compare@
    }
    printf("NAME: %d of %d codes differ\n", different, NAME_VECTORS * (@codes@));
    return different == 0 ? 0 : 1;
}
