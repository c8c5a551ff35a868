/* Takes the place of NAME_matmul: the left operand holds two 4-bit codes k a byte, which stand for 2^(14 - k), 15 for 0.
 * Decoded to 16-bit powers of two, their product with bytes is an ordinary one. */
static const int16_t NAME_powers[16] = {16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1, 0};

#if defined(NAME_MVE)
void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch)
{
    const NAME_layer own = p->layer;
    const int32_t n = own.inner, columns = own.outputs; /* multiples of 32 and 4 here */
    int16_t *row = (int16_t *)scratch;
    for (int32_t r = 0; r < p->rows; r++, left += n / 2) {
        int32_t sum = 0;
        for (int32_t i = 0; i < n; i += 16) {
            const uint16x8_t pairs = vldrbq_u16((const uint8_t *)left + i / 2);
            const int16x8x2_t both = {{vldrhq_gather_shifted_offset_s16(NAME_powers, vandq_u16(pairs, vdupq_n_u16(15))),
                                       vldrhq_gather_shifted_offset_s16(NAME_powers, vshrq_n_u16(pairs, 4))}};
            vst2q_s16(row + i, both);
            sum = vaddvaq_s16(vaddvaq_s16(sum, both.val[0]), both.val[1]);
        }
        const int8_t *w0 = right;
        for (int32_t j = 0; j < columns; j += 4, w0 += 4 * n) {
            int32_t a = 0, b = 0, c = 0, d = 0;
            for (int32_t i = 0; i < n; i += 8) {
                const int16x8_t u = vldrhq_s16(row + i);
                a = vmladavaq_s16(a, u, vldrbq_s16(w0 + i));
                b = vmladavaq_s16(b, u, vldrbq_s16(w0 + n + i));
                c = vmladavaq_s16(c, u, vldrbq_s16(w0 + 2 * n + i));
                d = vmladavaq_s16(d, u, vldrbq_s16(w0 + 3 * n + i));
            }
            const int32_t base = -p->zero_right * sum, sums[4] = {a + base, b + base, c + base, d + base};
            const mve_pred16_t some = vctp32q(4);
            const int32x4_t code = NAME_codes4(
                vldrwq_s32(sums), NAME_rule_of(&own, j, some), own.scaling.left, own.grid.zero);
            NAME_store4(y, r * columns + j, code, own.grid.wide, some);
        }
    }
}
#else
void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch)
{
    NAME_layer layer = p->layer;
    const int32_t n = layer.inner; /* a multiple of 4 here */
    int16_t *expanded = (int16_t *)scratch;
    layer.codes = right;
    for (int32_t r = 0; r < p->rows; r += 2) { /* an even number here */
        int32_t base[2];
        for (int32_t t = 0; t < 2; t++, left += n / 2) {
            int16_t *to = expanded + NAME_BEGIN(n, t);
            int32_t sum = 0;
            for (int32_t i = 0; i < n; i += 4, to += NAME_GROUP(2)) {
                const uint32_t first = (uint8_t)left[i / 2], second = (uint8_t)left[i / 2 + 1];
                const int16_t a = NAME_powers[first & 15], b = NAME_powers[first >> 4];
                const int16_t c = NAME_powers[second & 15], d = NAME_powers[second >> 4];
#if defined(NAME_DSP)
                to[0] = a, to[1] = c, to[2] = b, to[3] = d;
#else
                to[0] = a, to[1] = b, to[2] = c, to[3] = d;
#endif
                sum += a + b + c + d;
            }
            base[t] = -p->zero_right * sum;
        }
        NAME_products(expanded, 2, &layer, base, y, r * layer.outputs);
    }
}
#endif
