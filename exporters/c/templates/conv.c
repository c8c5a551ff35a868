#if defined(NAME_MVE)
/* Scratch: five windows of bytes. */
void NAME_conv(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    const int32_t n = layer->inner, pixels = g->rows * g->columns;
    int8_t *windows = (int8_t *)scratch;
    if (n == g->channels && g->stride_h == 1 && g->stride_w == 1 && g->pad_h == 0 && g->pad_w == 0) {
        NAME_products_bytes(x, n, pixels, layer, y, 0);
        return;
    }
    int32_t row = 0, column = 0;
    for (int32_t p = 0, count; p < pixels; p += count) {
        count = pixels - p < 5 ? pixels - p : 5;
        for (int32_t t = 0; t < count; t++) {
            NAME_patch(x, g, row, column, border, windows + t * n);
            if (++column == g->columns) {
                column = 0;
                row++;
            }
        }
        NAME_products_bytes(windows, n, count, layer, y, p * layer->outputs);
    }
}
#else
/* Scratch: two windows of 16-bit numbers and one of bytes. */
void NAME_conv(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    static const int32_t base[2] = {0, 0};
    const int32_t n = layer->inner, pixels = g->rows * g->columns;
    const int32_t direct = g->kernel_h == 1 && g->kernel_w == 1 && g->pad_h == 0 && g->pad_w == 0;
    int16_t *expanded = (int16_t *)scratch;
    int8_t *bytes = (int8_t *)(expanded + 2 * NAME_ROW(n));
    int32_t row = 0, column = 0;
    for (int32_t p = 0; p < pixels; p += 2) {
        const int32_t count = pixels - p < 2 ? 1 : 2;
        for (int32_t t = 0; t < count; t++) {
            const int8_t *codes = bytes;
            if (direct) {
                codes = x + ((size_t)(row * g->stride_h) * (size_t)g->width + (size_t)(column * g->stride_w)) * (size_t)n;
            } else {
                NAME_patch(x, g, row, column, border, bytes);
            }
            if (++column == g->columns) {
                column = 0;
                row++;
            }
            NAME_widen(codes, expanded, n, t, count);
        }
        NAME_products(expanded, count, layer, base, y, p * layer->outputs);
    }
}
#endif

