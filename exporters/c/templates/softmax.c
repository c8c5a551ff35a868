#if defined(NAME_MVE)
/* The largest code, then the powers four at a time; a vector of bytes or halves is read as one of words. */
static uint32_t NAME_row_of_powers(
    const void *x, int32_t count, const NAME_exponents *p, const uint16_t *powers, uint16_t *row)
{
    const int32_t wide = p->wide, shift = -p->slope_shift;
    const uint32_t slope = p->slope, round = (uint32_t)1 << (p->slope_shift - 1);
    int32_t top = -32768;
    uint32_t sum = 0;
    for (int32_t i = 0; i < count; i += 4) {
        const mve_pred16_t some = vctp32q((uint32_t)(count - i));
        const int32x4_t codes = NAME_load4(x, i, wide, some);
        top = vmaxvq_p_s32(top, codes, some);
    }
    for (int32_t i = 0; i < count; i += 4) {
        const mve_pred16_t some = vctp32q((uint32_t)(count - i));
        const int32x4_t codes = NAME_load4(x, i, wide, some);
        const uint32x4_t below = vreinterpretq_u32_s32(vsubq_s32(vdupq_n_s32(top), codes));
        const uint32x4_t octaves = vshlq_r_u32(vaddq_n_u32(vmulq_n_u32(below, slope), round), shift);
        const uint32x4_t whole = vminq_u32(vshrq_n_u32(octaves, 8), vdupq_n_u32(31));
        const uint32x4_t part = vldrhq_gather_shifted_offset_u32(powers, vandq_u32(octaves, vdupq_n_u32(255)));
        const uint32x4_t power = vshlq_u32(part, vnegq_s32(vreinterpretq_s32_u32(whole)));
        vstrhq_p_u32(row + i, power, some);
        sum = vaddvaq_p_u32(sum, power, some);
    }
    return sum;
}

/* As NAME_store of NAME_scale: what is scaled has no sign, so that one addition rounds. */
static void NAME_row_of_shares(
    const uint16_t *row, int32_t count, int32_t left, int32_t m, int32_t s, const NAME_grid *grid, void *y)
{
    const NAME_grid own = *grid; /* to a compiler, a stored byte may change what grid points to */
    const int32_t half = (int32_t)1 << (s - 33), shift = 32 - s;
    for (int32_t i = 0; i < count; i += 4) {
        const mve_pred16_t some = vctp32q((uint32_t)(count - i));
        int32x4_t v = vshlq_r_s32(vreinterpretq_s32_u32(vldrhq_z_u32(row + i, some)), left);
        v = vshlq_r_s32(vaddq_n_s32(vmulhq_s32(v, vdupq_n_s32(m)), half), shift);
        v = vaddq_n_s32(v, own.zero);
        v = vminq_s32(vmaxq_s32(v, vdupq_n_s32(own.low)), vdupq_n_s32(own.high));
        NAME_store4(y, i, v, own.wide, some);
    }
}
#else
static int32_t NAME_largest(const void *x, int32_t count, int32_t wide)
{
    int32_t top = NAME_load(x, 0, wide), i = 1;
#if defined(NAME_DSP)
    if (!wide && count >= 4) {
        uint32_t four = NAME_word((const int8_t *)x);
        for (i = 4; i + 4 <= count; i += 4) {
            four = NAME_larger(NAME_word((const int8_t *)x + i), four);
        }
        for (int32_t place = 0; place < 4; place++) {
            const int32_t code = (int32_t)(int8_t)(uint8_t)(four >> (8 * place));
            top = code > top ? code : top;
        }
    }
#endif
    for (; i < count; i++) {
        const int32_t code = NAME_load(x, i, wide);
        top = code > top ? code : top;
    }
    return top;
}

/* wide and near are constants at each call: near where no power is shifted by 32 places or more. */
static inline uint32_t NAME_powers_of(
    const void *x, int32_t count, int32_t wide, int32_t near, const NAME_exponents *p, const uint16_t *powers, uint16_t *row)
{
    const int32_t top = NAME_largest(x, count, wide);
    const uint32_t slope = p->slope, shift = (uint32_t)p->slope_shift, round = (uint32_t)1 << (shift - 1u);
    uint32_t sum = 0;
    NAME_UNROLL
    for (int32_t i = 0; i < count; i++) {
        const uint32_t below = (uint32_t)(top - NAME_load(x, i, wide));
        const uint32_t octaves = (below * slope + round) >> shift, whole = octaves >> 8;
        const uint32_t power = (uint32_t)powers[octaves & 255u] >> (near || whole < 31u ? whole : 31u);
        row[i] = (uint16_t)power;
        sum += power;
    }
    return sum;
}

/* Apart, so that all they need stays in registers. */
NAME_APART static uint32_t NAME_near_powers(
    const int8_t *x, int32_t count, const NAME_exponents *p, const uint16_t *powers, uint16_t *row)
{
    return NAME_powers_of(x, count, 0, 1, p, powers, row);
}

NAME_APART static uint32_t NAME_far_powers(
    const void *x, int32_t count, const NAME_exponents *p, const uint16_t *powers, uint16_t *row)
{
    return p->wide ? NAME_powers_of(x, count, 1, 0, p, powers, row) : NAME_powers_of(x, count, 0, 0, p, powers, row);
}

/* As NAME_store of NAME_scale: what is scaled has no sign, so that one addition rounds. */
static inline void NAME_share(
    const uint16_t *row, int32_t count, int32_t left, int32_t m, int32_t s, const NAME_grid *grid, void *y)
{
    const int32_t half = (int32_t)1 << (s - 33), shift = s - 32;
    NAME_UNROLL
    for (int32_t i = 0; i < count; i++) {
        NAME_store(y, i, (NAME_high((int32_t)row[i] << left, m) + half) >> shift, grid);
    }
}

NAME_APART static void NAME_share_bytes(
    const uint16_t *row, int32_t count, int32_t left, int32_t m, int32_t s, int32_t zero, int8_t *y)
{
    const NAME_grid all = {zero, -128, 127, 0};
    NAME_share(row, count, left, m, s, &all, y);
}

NAME_APART static void NAME_share_codes(
    const uint16_t *row, int32_t count, int32_t left, int32_t m, int32_t s, const NAME_grid *grid, void *y)
{
    const NAME_grid own = *grid; /* to a compiler, a stored byte may change what grid points to */
    NAME_share(row, count, left, m, s, &own, y);
}

static uint32_t NAME_row_of_powers(
    const void *x, int32_t count, const NAME_exponents *p, const uint16_t *powers, uint16_t *row)
{
    const uint32_t farthest = (255u * p->slope + ((uint32_t)1 << (p->slope_shift - 1))) >> p->slope_shift;
    if (!p->wide && farthest < 32u * 256u) {
        return NAME_near_powers((const int8_t *)x, count, p, powers, row);
    }
    return NAME_far_powers(x, count, p, powers, row);
}

static void NAME_row_of_shares(
    const uint16_t *row, int32_t count, int32_t left, int32_t m, int32_t s, const NAME_grid *grid, void *y)
{
    if (!grid->wide && grid->low == -128 && grid->high == 127) {
        NAME_share_bytes(row, count, left, m, s, grid->zero, (int8_t *)y);
    } else {
        NAME_share_codes(row, count, left, m, s, grid, y);
    }
}
#endif

/* Powers of two from a table of one octave, one division a row. Scratch: a row of 16-bit numbers. */
void NAME_softmax(const void *x, const NAME_exponents *p, const uint16_t *powers, void *y, void *scratch)
{
    uint16_t *row = (uint16_t *)scratch;
    const int32_t n = p->length;
    for (int32_t r = 0; r < p->rows; r++) {
        const int8_t *from = (const int8_t *)x + (p->wide ? 2 : 1) * r * n;
        int8_t *to = (int8_t *)y + (p->grid.wide ? 2 : 1) * r * n;
        const uint32_t sum = NAME_row_of_powers(from, n, p, powers, row);
        const int32_t zeros = NAME_leading_zeros(sum);
        const uint32_t reciprocal = 0x80000000u / ((sum << zeros) >> 16);
        const int32_t multiplier = (int32_t)(((uint64_t)reciprocal * p->gain) >> 16);
        NAME_row_of_shares(row, n, p->left, multiplier, p->shift - zeros, &p->grid, to);
    }
}

