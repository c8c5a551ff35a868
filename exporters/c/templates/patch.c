static inline void NAME_copy(int8_t *to, const int8_t *from, size_t count)
{
#if defined(NAME_MVE)
    __asm__ volatile("wlstp.8 lr, %[count], 2f\n"
                     "1: vldrb.8 q0, [%[from]], #16\n"
                     "vstrb.8 q0, [%[to]], #16\n"
                     "letp lr, 1b\n"
                     "2:\n"
                     : [to] "+r"(to), [from] "+r"(from)
                     : [count] "r"(count)
                     : "q0", "lr", "cc", "memory");
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

