static uint32_t NAME_square_root(uint32_t v)
{
    uint32_t root = 0, bit = 0x40000000u;
    for (; bit != 0; bit >>= 2) {
        const uint32_t trial = root + bit;
        root >>= 1;
        if (v >= trial) {
            v -= trial;
            root += bit;
        }
    }
    return root;
}

/* (x - mean) / deviation of rows, or x / root mean square: one integer square root and one division a row. */
void NAME_norm(const void *x, const NAME_normal *p, void *y)
{
    const NAME_normal own = *p; /* to a compiler, a stored byte may change what p points to */
    const int32_t n = own.length, zero = own.centred ? 0 : own.zero, places = own.shift - 32;
    int32_t at = 0;
    for (int32_t r = 0; r < own.rows; r++, at += n) {
        int32_t total = 0;
        int64_t squares = 0;
        for (int32_t i = 0; i < n; i++) {
            const int32_t v = NAME_load(x, at + i, own.wide) - zero;
            total += own.centred ? v : 0;
            squares += (int64_t)v * v;
        }
        const uint64_t spread = (uint64_t)((int64_t)n * squares - (int64_t)total * total + own.epsilon);
        const uint32_t upper = (uint32_t)(spread >> 32);
        const int32_t zeros = (upper != 0 ? NAME_leading_zeros(upper) : 32 + NAME_leading_zeros((uint32_t)spread)) & ~1;
        const int32_t reciprocal = (int32_t)(0x80000000u / NAME_square_root((uint32_t)((spread << zeros) >> 32)));
        const int32_t shift = 32 - zeros / 2;
        const int64_t half = (int64_t)1 << (shift - 1);
        for (int32_t i = 0, c = 0; i < n; i++, c += own.step) {
            const int32_t v = n * (NAME_load(x, at + i, own.wide) - zero) - total;
            const int32_t normal = (int32_t)(((int64_t)v * reciprocal + half) >> shift);
            const int32_t high = NAME_high(normal * ((int32_t)1 << own.left), own.gain[c]);
            NAME_store(y, at + i, ((high + own.offset[c]) >> places) - own.grid.zero, &own.grid);
        }
    }
}

