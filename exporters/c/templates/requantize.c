static void NAME_gather_row(const void *x, int32_t from, int32_t c, const NAME_gather *g, void *y, int32_t at)
{
    const int32_t count = g->dims[4], stride = g->strides[4];
    const NAME_scaling scaling = g->scaling, *s = &scaling; /* to a compiler, a stored byte may change what g points to */
    const NAME_grid grid = g->grid;
    const int32_t wide = g->wide, zero = g->zero;
    if (s->multiplier == NULL) {
        for (int32_t i = 0; i < count; i++, from += stride) {
            NAME_store(y, at + i, NAME_load(x, from, wide) - grid.zero, &grid);
        }
        return;
    }
    const int32_t left = (int32_t)1 << s->left;
    for (int32_t i = 0; i < count; i++, from += stride, c += s->step) {
        const int32_t value = (NAME_load(x, from, wide) - zero) * left;
        NAME_store(y, at + i, NAME_scale(value, s->multiplier[c], s->shift[c]), &grid);
    }
}

void NAME_requantize(const void *x, const NAME_gather *g, void *y)
{
    const int32_t *d = g->dims, *s = g->strides;
    int32_t at = 0;
    for (int32_t a = 0; a < d[0]; a++) {
        for (int32_t b = 0; b < d[1]; b++) {
            for (int32_t c = 0; c < d[2]; c++) {
                for (int32_t e = 0; e < d[3]; e++, at += d[4]) {
                    const int32_t from = g->offset + a * s[0] + b * s[1] + c * s[2] + e * s[3];
                    NAME_gather_row(x, from, e * g->row_step, g, y, at);
                }
            }
        }
    }
}

