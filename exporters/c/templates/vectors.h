/* Golden vectors of NAME. */
#ifndef NAME_VECTORS_H
#define NAME_VECTORS_H

#include <stdint.h>

#define NAME_VECTORS @vectors@

/* Runs the network on input `vector`; as NAME_run. */
int NAME_try(int vector, uint8_t *arena);

/* After it: how many codes differ from the expected ones; `largest` is raised to the largest difference. */
uint32_t NAME_compare(int vector, uint32_t *largest);

#endif
