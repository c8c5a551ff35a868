/* The product of two 16-bit numbers may need 33 bits: the rule is applied in 64. */
void NAME_mul(const void *a, const void *b, const NAME_factor *p, void *y)
{
    const NAME_factor own = *p; /* to a compiler, a stored byte may change what p points to */
    const int64_t half = (int64_t)1 << (own.shift - 1);
    for (int32_t i = 0; i < own.count;) {
        for (int32_t j = 0; j < own.period; j++, i++) {
            const int32_t u = NAME_load(a, i, own.wide[0]) - own.zero[0];
            const int32_t v = NAME_load(b, j, own.wide[1]) - own.zero[1];
            NAME_store(y, i, (int32_t)(((int64_t)u * v * own.multiplier + half) >> own.shift), &own.grid);
        }
    }
}

