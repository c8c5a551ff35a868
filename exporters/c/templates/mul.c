/* The product of two 16-bit numbers may need 33 bits: the rule is applied in 64. */
void NAME_mul(const void *a, const void *b, const NAME_factor *p, void *y)
{
    const int64_t half = (int64_t)1 << (p->shift - 1);
    for (int32_t i = 0; i < p->count;) {
        for (int32_t j = 0; j < p->period; j++, i++) {
            const int32_t u = NAME_load(a, i, p->wide[0]) - p->zero[0];
            const int32_t v = NAME_load(b, j, p->wide[1]) - p->zero[1];
            NAME_store(y, i, (int32_t)(((int64_t)u * v * p->multiplier + half) >> p->shift), &p->grid);
        }
    }
}

