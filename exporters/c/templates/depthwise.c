/* Where a window is read: columns side by side, rows stride bytes apart. */
typedef struct {
    const int8_t *from;
    int32_t rows, columns, stride;
} NAME_taps;

#if defined(NAME_MVE)
/* Sixteen channels of one pixel, fewer at the end; full is a constant at each call. Products of even and of odd bytes
 * are widened by halves, so that the channels of a sum lie four apart. */
static inline void NAME_taps16(
    const NAME_taps *taps, const NAME_layer *layer, int32_t channel, int32_t full, void *y, int32_t at)
{
    const int32_t channels = layer->outputs, step = layer->scaling.step;
    const mve_pred16_t some = vctp8q((uint32_t)(channels - channel));
    const int8_t *row = taps->from + channel, *w = layer->codes + channel;
    int32x4_t sums[4] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int32_t i = taps->rows; i > 0; i--, row += taps->stride) {
        const int8_t *u = row;
        for (int32_t k = taps->columns; k > 0; k--, u += channels, w += channels) {
            const int8x16_t a = full ? vldrbq_s8(u) : vldrbq_z_s8(u, some);
            const int8x16_t b = full ? vldrbq_s8(w) : vldrbq_z_s8(w, some);
            const int16x8_t even = vmullbq_int_s8(a, b), odd = vmulltq_int_s8(a, b);
            sums[0] = vaddq_s32(sums[0], vmovlbq_s16(even));
            sums[1] = vaddq_s32(sums[1], vmovlbq_s16(odd));
            sums[2] = vaddq_s32(sums[2], vmovltq_s16(even));
            sums[3] = vaddq_s32(sums[3], vmovltq_s16(odd));
        }
    }
    const uint32x4_t apart = vidupq_n_u32(0, 4), apart_or_0 = vmulq_n_u32(apart, (uint32_t)step);
    for (int32_t t = 0; t < 4; t++) {
        const int32_t c = channel + t;
        const mve_pred16_t known =
            full ? vctp32q(4) : vcmpltq_n_s32(vreinterpretq_s32_u32(apart), channels - c);
        const NAME_rule rule = {
            vldrwq_gather_shifted_offset_z_s32(layer->scaling.multiplier + c * step, apart_or_0, known),
            vsubq_s32(vdupq_n_s32(32), vreinterpretq_s32_u32(
                vldrbq_gather_offset_z_u32(layer->scaling.shift + c * step, apart_or_0, known))),
            vdupq_n_s32(layer->grid.low), vdupq_n_s32(layer->grid.high)};
        const int32x4_t bias = vldrwq_gather_shifted_offset_z_s32(layer->bias + c, apart, known);
        const int32x4_t code = NAME_codes4(vaddq_s32(sums[t], bias), rule, layer->scaling.left, layer->grid.zero);
        if (layer->grid.wide) {
            vstrhq_scatter_shifted_offset_p_s32((int16_t *)y + at + c, apart, code, known);
        } else {
            vstrbq_scatter_offset_p_s32((int8_t *)y + at + c, apart, code, known);
        }
    }
}

/* One pixel. */
static inline void NAME_pixel(const NAME_taps *taps, const NAME_layer *layer, void *y, int32_t at)
{
    int32_t c = 0;
    for (; c + 16 <= layer->outputs; c += 16) {
        NAME_taps16(taps, layer, c, 1, y, at);
    }
    if (c < layer->outputs) {
        NAME_taps16(taps, layer, c, 0, y, at);
    }
}
#else
/* Sums of the taps of four channels. */
static inline void NAME_taps4(const NAME_taps *taps, const int8_t *w, int32_t channel, int32_t channels, int32_t *sum)
{
    const int8_t *row = taps->from + channel;
#if defined(NAME_DSP)
    int32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
    for (int32_t i = taps->rows; i > 0; i--, row += taps->stride) {
        const int8_t *u = row;
        for (int32_t k = taps->columns; k > 0; k--, u += channels, w += channels) {
            const uint32_t x = NAME_word(u), v = NAME_word(w);
            const uint32_t x_even = NAME_even(x), x_odd = NAME_odd(x), v_even = NAME_even(v), v_odd = NAME_odd(v);
            a = NAME_mac_low(x_even, v_even, a);
            b = NAME_mac_low(x_odd, v_odd, b);
            c = NAME_mac_high(x_even, v_even, c);
            d = NAME_mac_high(x_odd, v_odd, d);
        }
    }
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
#else
    for (int32_t i = taps->rows; i > 0; i--, row += taps->stride) {
        const int8_t *u = row;
        for (int32_t k = taps->columns; k > 0; k--, u += channels, w += channels) {
            for (int32_t c = 0; c < 4; c++) {
                sum[c] += (int32_t)u[c] * w[c];
            }
        }
    }
#endif
}

/* One pixel. */
static inline void NAME_pixel(const NAME_taps *taps, const NAME_layer *layer, void *y, int32_t at)
{
    const int32_t channels = layer->outputs;
    int32_t c = 0;
    for (; c + 4 <= channels; c += 4) {
        int32_t sum[4] = {layer->bias[c], layer->bias[c + 1], layer->bias[c + 2], layer->bias[c + 3]};
        NAME_taps4(taps, layer->codes + c, c, channels, sum);
        for (int32_t t = 0; t < 4; t++) {
            NAME_finish(sum + t, 1, c + t, layer, y, at);
        }
    }
    for (; c < channels; c++) {
        int32_t sum = layer->bias[c];
        const int8_t *w = layer->codes + c;
        for (int32_t i = 0; i < taps->rows; i++) {
            for (int32_t k = 0; k < taps->columns; k++, w += channels) {
                sum += (int32_t)taps->from[i * taps->stride + k * channels + c] * *w;
            }
        }
        NAME_finish(&sum, 1, c, layer, y, at);
    }
}
#endif

/* Scratch: one window of bytes, for those that reach beyond the image. */
void NAME_depthwise(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    const NAME_layer own = *layer; /* to a compiler, a stored byte may change what layer points to */
    const int32_t channels = own.outputs, line = g->width * channels, reach = (g->kernel_h - 1) * g->step_h;
    const NAME_taps border_taps = {(int8_t *)scratch, g->kernel_h, g->kernel_w, g->kernel_w * channels};
    int32_t at = 0, top = -g->pad_h;
    for (int32_t row = 0; row < g->rows; row++, top += g->stride_h) {
        const int32_t known = top >= 0 && top + reach < g->height && g->step_w == 1;
        int32_t left = -g->pad_w;
        for (int32_t column = 0; column < g->columns; column++, at += channels, left += g->stride_w) {
            NAME_taps taps = border_taps;
            if (known && left >= 0 && left + g->kernel_w <= g->width) {
                taps.from = x + (size_t)top * (size_t)line + (size_t)left * (size_t)channels;
                taps.stride = g->step_h * line;
            } else {
                NAME_patch(x, g, row, column, border, (int8_t *)scratch);
            }
            NAME_pixel(&taps, &own, y, at);
        }
    }
}

