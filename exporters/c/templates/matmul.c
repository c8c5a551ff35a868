/* Scratch: two rows of 16-bit numbers. */
void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch)
{
    NAME_layer layer = p->layer;
    const int32_t n = layer.inner;
    int16_t *expanded = (int16_t *)scratch;
    int32_t at = 0;
    for (int32_t b = 0; b < p->batch; b++) {
        layer.codes = right + (size_t)b * (size_t)layer.outputs * (size_t)n;
        for (int32_t r = 0; r < p->rows; r += 2) {
            const int32_t count = p->rows - r < 2 ? 1 : 2;
            int32_t base[2] = {0, 0};
            for (int32_t t = 0; t < count; t++, left += n) {
                base[t] = -p->zero_right * NAME_expand(left, expanded, n, p->zero_left, t, count);
            }
            NAME_products(expanded, count, &layer, base, y, at);
            at += count * layer.outputs;
        }
    }
}

