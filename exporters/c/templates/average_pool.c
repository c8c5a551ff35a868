void NAME_average_pool(const void *x, const NAME_window *g, const NAME_average *p, void *y)
{
    int32_t at = 0;
    for (int32_t row = 0; row < g->rows; row++) {
        for (int32_t column = 0; column < g->columns; column++) {
            for (int32_t c = 0; c < g->channels; c++, at++) {
                int32_t sum = 0;
                for (int32_t i = 0; i < g->kernel_h; i++) {
                    for (int32_t j = 0; j < g->kernel_w; j++) {
                        const int32_t v = row * g->stride_h + i, u = column * g->stride_w + j;
                        sum += NAME_load(x, (v * g->width + u) * g->channels + c, p->wide) - p->zero;
                    }
                }
                NAME_store(y, at, NAME_scale(sum * ((int32_t)1 << p->left), p->multiplier, p->shift), &p->grid);
            }
        }
    }
}

