/* Scratch: two rows of 16-bit numbers. */
void NAME_fully_connected4(const int8_t *x, int32_t rows, const NAME_layer *layer, void *y, void *scratch)
{
    int32_t base[2] = {0, 0};
    const int32_t inner = layer->inner, n = NAME_ROOM(inner);
    int16_t *expanded = (int16_t *)scratch;
    for (int32_t r = 0; r < rows; r += 2) {
        const int32_t count = rows - r < 2 ? 1 : 2;
        for (int32_t t = 0; t < count; t++) {
            base[t] = -8 * NAME_expand4(x + (size_t)(r + t) * (size_t)inner, expanded + t * n, inner);
        }
        NAME_products4(expanded, count, layer, base, y, r * layer->outputs);
    }
}

