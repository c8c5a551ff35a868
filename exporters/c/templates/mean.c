void NAME_mean(const void *x, const NAME_average *p, void *y)
{
    int32_t at = 0;
    for (int32_t a = 0; a < p->outer; a++) {
        for (int32_t c = 0; c < p->inner; c++, at++) {
            int32_t sum = 0;
            for (int32_t b = 0; b < p->reduced; b++) {
                sum += NAME_load(x, (a * p->reduced + b) * p->inner + c, p->wide) - p->zero;
            }
            NAME_store(y, at, NAME_scale(sum * ((int32_t)1 << p->left), p->multiplier, p->shift), &p->grid);
        }
    }
}

