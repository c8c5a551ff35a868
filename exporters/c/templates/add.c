void NAME_add(const void *a, const void *b, const NAME_sum *p, void *y)
{
    const int32_t left = (int32_t)1 << p->left, half = (int32_t)1 << (p->shift - 33);
    for (int32_t i = 0; i < p->count;) {
        for (int32_t j = 0; j < p->period; j++, i++) {
            const int32_t u = (NAME_load(a, i, p->wide[0]) - p->zero[0]) * left;
            const int32_t v = (NAME_load(b, j, p->wide[1]) - p->zero[1]) * left;
            const int64_t sum = (int64_t)u * p->multiplier[0] + (int64_t)v * p->multiplier[1];
            NAME_store(y, i, ((int32_t)(sum >> 32) + half) >> (p->shift - 32), &p->grid);
        }
    }
}

