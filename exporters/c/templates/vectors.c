#include "NAME_vectors.h"
#include "NAME.h"

@arrays@
@buffers@

static uint32_t count(int32_t found, int32_t expected, uint32_t *largest)
{
    const uint32_t gap = (uint32_t)(found > expected ? found - expected : expected - found);
    if (gap > *largest) {
        *largest = gap;
    }
    return gap != 0;
}

int NAME_try(int vector, uint8_t *arena)
{
    return NAME_run(@arguments@, arena);
}

uint32_t NAME_compare(int vector, uint32_t *largest)
{
    uint32_t different = 0;
@compare@
    return different;
}
