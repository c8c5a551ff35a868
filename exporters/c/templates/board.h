/* Golden vectors of NAME compared and timed on a board, reported on its serial line: edgeq verify, edgeq profile. */
#ifndef NAME_BOARD_H
#define NAME_BOARD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Yours: sends `count` bytes over the serial line and returns when they may be overwritten. */
void NAME_write(const char *bytes, int count);

/* Runs every golden vector once and reports it. Call it for ever; arena as of NAME_run. */
void NAME_report(uint8_t *arena);

/* Told by NAME_run of each layer, where NAME.c is compiled with -DEDGEQ_LAYER=NAME_layer_done. */
void NAME_layer_done(int index);

#ifdef __cplusplus
}
#endif
#endif
