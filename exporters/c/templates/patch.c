static inline void NAME_copy(int8_t *to, const int8_t *from, size_t count)
{
#if defined(NAME_MVE)
    for (int32_t left = (int32_t)count; left > 0; left -= 16, to += 16, from += 16) {
        const mve_pred16_t some = vctp8q((uint32_t)left);
        vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
    }
#else
    memcpy(to, from, count);
#endif
}

/* The codes of one window side by side; beyond the image the border. */
void NAME_patch(const int8_t *x, const NAME_window *g, int32_t row, int32_t column, int32_t border, int8_t *to)
{
    const size_t pixel = (size_t)g->channels;
    const int32_t left = column * g->stride_w - g->pad_w;
    const int32_t inside = left >= 0 && left + (g->kernel_w - 1) * g->step_w < g->width && g->step_w == 1;
    for (int32_t i = 0; i < g->kernel_h; i++) {
        const int32_t y = row * g->stride_h - g->pad_h + i * g->step_h;
        const int32_t known = y >= 0 && y < g->height;
        if (known && inside) {
            const size_t count = pixel * (size_t)g->kernel_w;
            NAME_copy(to, x + ((size_t)y * (size_t)g->width + (size_t)left) * pixel, count);
            to += count;
            continue;
        }
        for (int32_t j = 0; j < g->kernel_w; j++, to += pixel) {
            const int32_t z = left + j * g->step_w;
            if (known && z >= 0 && z < g->width) {
                NAME_copy(to, x + ((size_t)y * (size_t)g->width + (size_t)z) * pixel, pixel);
            } else {
                memset(to, border, pixel);
            }
        }
    }
}

