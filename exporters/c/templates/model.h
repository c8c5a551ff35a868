/* NAME: @title@
 *
 * Written by edgeq @version@. C99, integers only; no allocation, no libm, no state: the arena holds everything, so that
 * calls with arenas of their own may run at once.
 */
#ifndef NAME_H
#define NAME_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define @UPPER@_ARENA_BYTES @arena@
#define @UPPER@_ARENA_ALIGNMENT 8
#define @UPPER@_LAYERS @layers@
#define @UPPER@_HASH "@hash@"

@ports@
/* Runs the network. arena: @UPPER@_ARENA_BYTES bytes, aligned to 8. Returns 0, or -1 if the arena is not aligned. */
int NAME_run(@parameters@, uint8_t *arena);

#ifdef __cplusplus
}
#endif
#endif
