/* Kernels of NAME: integers only, no allocation, no state outside of their arguments. */
#ifndef NAME_KERNELS_H
#define NAME_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Paths for vector instructions; without optimization no registers are left for their inner loops. */
#if defined(__GNUC__) && defined(__OPTIMIZE__) && !defined(EDGEQ_PLAIN_C)
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define NAME_MVE 1
#elif defined(__ARM_FEATURE_SIMD32) && defined(__ARM_FEATURE_UNALIGNED) && !defined(__ARM_BIG_ENDIAN)
#define NAME_DSP 1
#endif
#endif

/* Inner loops hold all registers: reordered before they are allotted, their loads would spill. */
#if defined(__GNUC__) && !defined(__clang__)
#define NAME_APART __attribute__((noinline, optimize("no-schedule-insns")))
#elif defined(__GNUC__)
#define NAME_APART __attribute__((noinline))
#else
#define NAME_APART
#endif

/* Before a short loop over many codes. */
#if defined(__GNUC__) && !defined(__clang__) && !defined(NAME_MVE)
#define NAME_UNROLL _Pragma("GCC unroll 4")
#else
#define NAME_UNROLL
#endif

/* The arithmetic wants 32-bit int or wider and shifts of negative numbers towards minus infinity. */
typedef char NAME_wants_arithmetic_shift[((-1) >> 1) == -1 ? 1 : -1];
typedef char NAME_wants_int32[sizeof(int) >= 4 ? 1 : -1];

/* Grid of a result: codes are stored as one byte, or as two where wide. */
typedef struct {
    int32_t zero, low, high;
    int32_t wide;
} NAME_grid;

/* Accumulator to code; step is 0 where all channels share one multiplier. */
typedef struct {
    const int32_t *multiplier;
    const uint8_t *shift;
    int32_t left, step;
} NAME_scaling;

static inline int32_t NAME_load(const void *x, int32_t i, int32_t wide)
{
    return wide ? ((const int16_t *)x)[i] : ((const int8_t *)x)[i];
}

static inline int32_t NAME_high(int32_t a, int32_t m)
{
    return (int32_t)(((int64_t)a * m) >> 32);
}

/* (a * m + 2^(s - 1)) >> s for s of 33 to 62: neither the low word nor the bits below the half ever matter. */
static inline int32_t NAME_scale(int32_t a, int32_t m, int32_t s)
{
    return ((NAME_high(a, m) >> (s - 33)) + 1) >> 1;
}

static inline int32_t NAME_clip(int32_t v, const NAME_grid *grid)
{
    return v < grid->low ? grid->low : v > grid->high ? grid->high : v;
}

static inline void NAME_store(void *y, int32_t i, int32_t v, const NAME_grid *grid)
{
    v = NAME_clip(v + grid->zero, grid);
    if (grid->wide) {
        ((int16_t *)y)[i] = (int16_t)v;
    } else {
        ((int8_t *)y)[i] = (int8_t)v;
    }
}

