/* Scratch: two rows of 16-bit numbers, or four of bytes. */
void NAME_fully_connected4(const int8_t *x, int32_t rows, const NAME_layer *layer, void *y, void *scratch)
{
    int32_t base[NAME_ROWS4] = {0};
    const int32_t inner = layer->inner;
    int16_t *expanded = (int16_t *)scratch;
    for (int32_t r = 0, count; r < rows; r += count) {
        count = rows - r < NAME_ROWS4 ? rows - r : NAME_ROWS4;
        for (int32_t t = 0; t < count; t++) {
            base[t] = -8 * NAME_expand4(x + (size_t)(r + t) * (size_t)inner, expanded, t, inner);
        }
        NAME_products4(expanded, count, layer, base, y, r * layer->outputs);
    }
}

