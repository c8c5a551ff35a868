/* Sums of the taps of four channels. */
static inline void NAME_taps4(const int8_t *u, const int8_t *w, int32_t channels, int32_t taps, int32_t *sum)
{
#if defined(NAME_MVE)
    int32x4_t total = vldrwq_s32(sum);
    for (int32_t t = 0; t < taps; t++, u += channels, w += channels) {
        total = vaddq_s32(total, vmulq_s32(vldrbq_s32(u), vldrbq_s32(w)));
    }
    vstrwq_s32(sum, total);
#elif defined(NAME_DSP)
    int32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
    for (int32_t t = 0; t < taps; t++, u += channels, w += channels) {
        const uint32_t x = NAME_word(u), v = NAME_word(w);
        const uint32_t x_even = NAME_even(x), x_odd = NAME_odd(x), v_even = NAME_even(v), v_odd = NAME_odd(v);
        a = NAME_mac_low(x_even, v_even, a);
        b = NAME_mac_low(x_odd, v_odd, b);
        c = NAME_mac_high(x_even, v_even, c);
        d = NAME_mac_high(x_odd, v_odd, d);
    }
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
#else
    for (int32_t t = 0; t < taps; t++, u += channels, w += channels) {
        for (int32_t c = 0; c < 4; c++) {
            sum[c] += (int32_t)u[c] * w[c];
        }
    }
#endif
}

/* Scratch: one window of bytes. */
void NAME_depthwise(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    const NAME_layer own = *layer; /* to a compiler, a stored byte may change what layer points to */
    int8_t *bytes = (int8_t *)scratch;
    const int32_t channels = own.outputs, taps = own.inner;
    int32_t at = 0;
    for (int32_t row = 0; row < g->rows; row++) {
        for (int32_t column = 0; column < g->columns; column++, at += channels) {
            int32_t c = 0;
            NAME_patch(x, g, row, column, border, bytes);
            for (; c + 4 <= channels; c += 4) {
                int32_t sum[4] = {own.bias[c], own.bias[c + 1], own.bias[c + 2], own.bias[c + 3]};
                NAME_taps4(bytes + c, own.codes + c, channels, taps, sum);
                for (int32_t t = 0; t < 4; t++) {
                    NAME_finish(sum + t, 1, c + t, &own, y, at);
                }
            }
            for (; c < channels; c++) {
                int32_t sum = own.bias[c];
                for (int32_t t = 0; t < taps; t++) {
                    sum += (int32_t)bytes[t * channels + c] * own.codes[t * channels + c];
                }
                NAME_finish(&sum, 1, c, &own, y, at);
            }
        }
    }
}

