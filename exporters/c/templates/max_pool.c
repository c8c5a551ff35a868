void NAME_max_pool(const void *x, const NAME_window *g, int32_t wide, const NAME_grid *grid, void *y)
{
    int32_t at = 0;
    for (int32_t row = 0; row < g->rows; row++) {
        for (int32_t column = 0; column < g->columns; column++) {
            for (int32_t c = 0; c < g->channels; c++, at++) {
                int32_t top = -32768;
                for (int32_t i = 0; i < g->kernel_h; i++) {
                    const int32_t v = row * g->stride_h - g->pad_h + i * g->step_h;
                    for (int32_t j = 0; j < g->kernel_w; j++) {
                        const int32_t u = column * g->stride_w - g->pad_w + j * g->step_w;
                        if (v >= 0 && v < g->height && u >= 0 && u < g->width) {
                            const int32_t code = NAME_load(x, (v * g->width + u) * g->channels + c, wide);
                            top = code > top ? code : top;
                        }
                    }
                }
                NAME_store(y, at, top - grid->zero, grid);
            }
        }
    }
}

