#if defined(NAME_MVE)
/* Four channels, fewer at the end; full is a constant at each call. */
static inline void NAME_taps4(
    const int8_t *u, const NAME_layer *layer, int32_t channel, int32_t full, void *y, int32_t at)
{
    const NAME_four four = NAME_channels(layer, channel);
    const int8_t *w = layer->codes + channel;
    const int32_t channels = layer->outputs;
    int32x4_t total = vdupq_n_s32(0);
    for (int32_t t = layer->inner; t > 0; t--, u += channels, w += channels) {
        const int32x4_t a = full ? vldrbq_s32(u) : vldrbq_z_s32(u, four.some);
        const int32x4_t b = full ? vldrbq_s32(w) : vldrbq_z_s32(w, four.some);
        total = vaddq_s32(total, vmulq_s32(a, b));
    }
    NAME_finish4(total, four, layer, y, at + channel);
}

/* One pixel. */
static inline void NAME_taps(const int8_t *bytes, const NAME_layer *layer, void *y, int32_t at)
{
    int32_t c = 0;
    for (; c + 4 <= layer->outputs; c += 4) {
        NAME_taps4(bytes + c, layer, c, 1, y, at);
    }
    if (c < layer->outputs) {
        NAME_taps4(bytes + c, layer, c, 0, y, at);
    }
}
#else
/* Sums of the taps of four channels. */
static inline void NAME_taps4(const int8_t *u, const int8_t *w, int32_t channels, int32_t taps, int32_t *sum)
{
#if defined(NAME_DSP)
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

/* One pixel. */
static inline void NAME_taps(const int8_t *bytes, const NAME_layer *layer, void *y, int32_t at)
{
    const int32_t channels = layer->outputs, taps = layer->inner;
    int32_t c = 0;
    for (; c + 4 <= channels; c += 4) {
        int32_t sum[4] = {layer->bias[c], layer->bias[c + 1], layer->bias[c + 2], layer->bias[c + 3]};
        NAME_taps4(bytes + c, layer->codes + c, channels, taps, sum);
        for (int32_t t = 0; t < 4; t++) {
            NAME_finish(sum + t, 1, c + t, layer, y, at);
        }
    }
    for (; c < channels; c++) {
        int32_t sum = layer->bias[c];
        for (int32_t t = 0; t < taps; t++) {
            sum += (int32_t)bytes[t * channels + c] * layer->codes[t * channels + c];
        }
        NAME_finish(&sum, 1, c, layer, y, at);
    }
}
#endif

/* Scratch: one window of bytes. */
void NAME_depthwise(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    const NAME_layer own = *layer; /* to a compiler, a stored byte may change what layer points to */
    int8_t *bytes = (int8_t *)scratch;
    int32_t at = 0;
    for (int32_t row = 0; row < g->rows; row++) {
        for (int32_t column = 0; column < g->columns; column++, at += own.outputs) {
            NAME_patch(x, g, row, column, border, bytes);
            NAME_taps(bytes, &own, y, at);
        }
    }
}

