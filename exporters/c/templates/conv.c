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
/* One window as 16-bit numbers, one of rows at once; inside the image each of its rows is read where it lies. */
static void NAME_widen_window(
    const int8_t *x, const NAME_window *g, int32_t row, int32_t column, int32_t border, int8_t *bytes, int16_t *to, int32_t rows)
{
    const int32_t side = g->kernel_w * g->channels, line = g->width * g->channels;
    const int32_t top = row * g->stride_h - g->pad_h, left = column * g->stride_w - g->pad_w;
    const int32_t inside = top >= 0 && top + (g->kernel_h - 1) * g->step_h < g->height && left >= 0 &&
        left + g->kernel_w <= g->width && g->step_w == 1;
    if (!inside || (side % 4 != 0 && g->kernel_h > 1)) {
        NAME_patch(x, g, row, column, border, bytes);
        NAME_widen(bytes, to, g->kernel_h * side, rows);
        return;
    }
    x += (size_t)top * (size_t)line + (size_t)left * (size_t)g->channels;
    for (int32_t i = 0; i < g->kernel_h; i++, x += g->step_h * line, to += side / 4 * NAME_GROUP(rows)) {
        NAME_widen(x, to, side, rows);
    }
}

/* Scratch: two windows of 16-bit numbers and one of bytes. */
void NAME_conv(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    static const int32_t base[2] = {0, 0};
    const int32_t n = layer->inner, pixels = g->rows * g->columns;
    int16_t *expanded = (int16_t *)scratch;
    int8_t *bytes = (int8_t *)(expanded + 2 * NAME_ROW(n));
    int32_t row = 0, column = 0;
    for (int32_t p = 0; p < pixels; p += 2) {
        const int32_t count = pixels - p < 2 ? 1 : 2;
        for (int32_t t = 0; t < count; t++) {
            NAME_widen_window(x, g, row, column, border, bytes, expanded + NAME_BEGIN(n, t), count);
            if (++column == g->columns) {
                column = 0;
                row++;
            }
        }
        NAME_products(expanded, count, layer, base, y, p * layer->outputs);
    }
}
#endif

