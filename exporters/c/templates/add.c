void NAME_add(const void *a, const void *b, const NAME_sum *p, void *y)
{
    const NAME_sum own = *p; /* to a compiler, a stored byte may change what p points to */
    const int32_t left = (int32_t)1 << own.left, half = (int32_t)1 << (own.shift - 33);
    for (int32_t i = 0; i < own.count;) {
        for (int32_t j = 0; j < own.period; j++, i++) {
            const int32_t u = (NAME_load(a, i, own.wide[0]) - own.zero[0]) * left;
            const int32_t v = (NAME_load(b, j, own.wide[1]) - own.zero[1]) * left;
            const int64_t sum = (int64_t)u * own.multiplier[0] + (int64_t)v * own.multiplier[1];
            NAME_store(y, i, ((int32_t)(sum >> 32) + half) >> (own.shift - 32), &own.grid);
        }
    }
}

