/* Powers of two from a table of one octave, one division a row. Scratch: a row of 16-bit numbers. */
void NAME_softmax(const void *x, const NAME_exponents *p, const uint16_t *powers, void *y, void *scratch)
{
    const NAME_exponents own = *p; /* to a compiler, a stored byte may change what p points to */
    uint16_t *row = (uint16_t *)scratch;
    const int32_t n = own.length, round = (int32_t)1 << (own.slope_shift - 1);
    int32_t at = 0;
    for (int32_t r = 0; r < own.rows; r++, at += n) {
        int32_t top = NAME_load(x, at, own.wide);
        for (int32_t i = 1; i < n; i++) {
            const int32_t code = NAME_load(x, at + i, own.wide);
            top = code > top ? code : top;
        }
        uint32_t sum = 0;
        for (int32_t i = 0; i < n; i++) {
            const uint32_t below = (uint32_t)(top - NAME_load(x, at + i, own.wide));
            const uint32_t octaves = (below * own.slope + (uint32_t)round) >> own.slope_shift, whole = octaves >> 8;
            const uint32_t power = (uint32_t)powers[octaves & 255u] >> (whole < 31u ? whole : 31u);
            row[i] = (uint16_t)power;
            sum += power;
        }
        const int32_t zeros = NAME_leading_zeros(sum);
        const uint32_t reciprocal = 0x80000000u / ((sum << zeros) >> 16);
        const int32_t multiplier = (int32_t)(((uint64_t)reciprocal * own.gain) >> 16), shift = own.shift - zeros;
        for (int32_t i = 0; i < n; i++) {
            NAME_store(y, at + i, NAME_scale((int32_t)row[i] << own.left, multiplier, shift), &own.grid);
        }
    }
}

