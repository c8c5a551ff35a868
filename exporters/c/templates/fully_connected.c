/* Scratch: two rows of 16-bit numbers. */
void NAME_fully_connected(const int8_t *x, int32_t rows, const NAME_layer *layer, void *y, void *scratch)
{
    const int32_t n = layer->inner;
#if defined(NAME_MVE)
    (void)scratch;
    NAME_products_bytes(x, n, rows, layer, y, 0);
#else
    static const int32_t base[2] = {0, 0};
    int16_t *expanded = (int16_t *)scratch;
    for (int32_t r = 0; r < rows; r += 2) {
        const int32_t count = rows - r < 2 ? 1 : 2;
        for (int32_t t = 0; t < count; t++) {
            NAME_widen(x + (size_t)(r + t) * (size_t)n, expanded + NAME_BEGIN(n, t), n, count);
        }
        NAME_products(expanded, count, layer, base, y, r * layer->outputs);
    }
#endif
}

