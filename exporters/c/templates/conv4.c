/* Scratch: two windows of 16-bit numbers, or four of bytes, and one of bytes. */
void NAME_conv4(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    int32_t base[NAME_ROWS4] = {0};
    const int32_t inner = layer->inner, n = NAME_ROOM(inner), pixels = g->rows * g->columns;
    const int32_t direct = g->kernel_h == 1 && g->kernel_w == 1 && g->pad_h == 0 && g->pad_w == 0;
    int16_t *expanded = (int16_t *)scratch;
    int8_t *bytes = (int8_t *)(expanded + 2 * n);
    for (int32_t p = 0, count; p < pixels; p += count) {
        count = pixels - p < NAME_ROWS4 ? pixels - p : NAME_ROWS4;
        for (int32_t t = 0; t < count; t++) {
            const int32_t row = (p + t) / g->columns, column = (p + t) - row * g->columns;
            const int8_t *codes = bytes;
            if (direct) {
                codes = x + ((size_t)(row * g->stride_h) * (size_t)g->width + (size_t)(column * g->stride_w)) * (size_t)inner;
            } else {
                NAME_patch(x, g, row, column, border, bytes);
            }
            base[t] = -8 * NAME_expand4(codes, expanded, t, inner);
        }
        NAME_products4(expanded, count, layer, base, y, p * layer->outputs);
    }
}

