#define NAME_PADDED(count) (((count) + 7) & ~(int32_t)7)
#define NAME_ROOM(count) (((count) + 15) & ~(int32_t)15)
#if defined(NAME_MVE)
#define NAME_ROWS4 4 /* at once, of half as much room each */
#else
#define NAME_ROWS4 2
#endif

/* With SIMD on words, eight codes lie as 0 4 1 5 2 6 3 7: the halves that a mask takes out of a word of weights. With
 * vectors, bytes, first all even codes and then all odd ones: the low and the high halves of the weights. */
NAME_APART int32_t NAME_expand4(const int8_t *x, int16_t *rows, int32_t row, int32_t count)
{
    int16_t *to = rows + row * (NAME_ROOM(count) * 2 / NAME_ROWS4);
    int32_t sum = 0, i = 0;
#if defined(NAME_MVE)
    int8_t *even = (int8_t *)to, *odd = even + NAME_ROOM(count) / 2;
    for (; i + 16 <= count; i += 16) {
        const int8x16_t codes = vldrbq_s8(x + i);
        const uint16x8_t pairs = vreinterpretq_u16_s8(codes);
        vstrbq_u16((uint8_t *)even + i / 2, pairs);
        vstrbq_u16((uint8_t *)odd + i / 2, vshrq_n_u16(pairs, 8));
        sum = vaddvaq_s8(sum, codes);
    }
#elif defined(NAME_DSP)
    for (; i + 8 <= count; i += 8) {
        const uint32_t first = NAME_word(x + i), second = NAME_word(x + i + 4);
        const uint32_t a = NAME_even(first), b = NAME_odd(first), c = NAME_even(second), d = NAME_odd(second);
        const uint32_t pairs[4] = {
            NAME_low_halves(a, c), NAME_low_halves(b, d), NAME_high_halves(a, c), NAME_high_halves(b, d)};
        memcpy(to + i, pairs, 16);
        sum = NAME_mac2(a, 0x10001u, NAME_mac2(b, 0x10001u, sum));
        sum = NAME_mac2(c, 0x10001u, NAME_mac2(d, 0x10001u, sum));
    }
#else
    NAME_UNROLL
    for (; i < count; i++) {
        to[i] = x[i];
        sum += x[i];
    }
#endif
    for (; i < NAME_PADDED(count); i++) {
        const int32_t value = i < count ? x[i] : 0;
#if defined(NAME_MVE)
        ((i & 1) != 0 ? odd : even)[i >> 1] = (int8_t)value;
#elif defined(NAME_DSP)
        to[(i & ~7) + ((i & 3) << 1) + ((i >> 2) & 1)] = (int16_t)value;
#else
        to[i] = (int16_t)value;
#endif
        sum += value;
    }
    return sum;
}

#if defined(NAME_MVE)
/* One row, even codes and then odd ones from a multiple of 8 on, times four rows of weights, bytes of two codes each. */
static inline int32x4_t NAME_dot14_4(const int8_t *even, const NAME_rows *rows)
{
    register int32x4_t sums __asm__("q0");
#define NAME_TAKE(row, sum) \
    "vldrb.8 q2, [" row "], #16\n" \
    "vand q3, q2, q4\n" \
    "vmladava.s8 " sum ", q0, q3\n" \
    "vshr.u8 q2, q2, #4\n" \
    "vmladava.s8 " sum ", q1, q2\n"
    __asm__ volatile("ldrd r2, r3, [%[rows]]\n"
                     "ldrd r4, r5, [%[rows], #8]\n"
                     "ldrd r6, r8, [%[rows], #16]\n"
                     "ldrd r10, r12, [%[rows], #24]\n"
                     "ldr lr, [%[rows], #32]\n"
                     "add %[rows], lr, #7\n"
                     "bic %[rows], %[rows], #7\n"
                     "add %[rows], %[rows], %[even]\n"
                     "vmov.i8 q4, #15\n"
                     "wlstp.8 lr, lr, 2f\n"
                     "1: vldrb.8 q0, [%[even]], #16\n"
                     "vldrb.8 q1, [%[rows]], #16\n"
                     NAME_TAKE("r2", "r6") NAME_TAKE("r3", "r8") NAME_TAKE("r4", "r10") NAME_TAKE("r5", "r12")
                     "letp lr, 1b\n"
                     "2: vmov d0, r6, r8\n"
                     "vmov d1, r10, r12\n"
                     : [sums] "=w"(sums), [even] "+r"(even), [rows] "+r"(rows)
                     :
                     : "r2", "r3", "r4", "r5", "r6", "r8", "r10", "r12", "q1", "q2", "q3", "q4", "lr", "cc", "memory");
#undef NAME_TAKE
    return sums;
}

void NAME_products4(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at)
{
    const NAME_layer own = *layer;
    const int32_t n = NAME_PADDED(own.inner) / 2, room = NAME_ROOM(own.inner);
    const int8_t *codes = own.codes;
    for (int32_t j = 0; j < own.outputs; j += 4, codes += 4 * n) {
        const mve_pred16_t some = vctp32q((uint32_t)(own.outputs - j));
        const NAME_rule rule = NAME_rule_of(&own, j, some);
        NAME_rows four = NAME_rows_of(codes, n, own.outputs - j);
        vstrwq_s32(four.start, vldrwq_z_s32(own.bias + j, some));
        const int8_t *even = (const int8_t *)x;
        int32_t to = at + j;
        for (int32_t r = 0; r < rows; r++, even += room, to += own.outputs) {
            const int32x4_t sums = vaddq_n_s32(NAME_dot14_4(even, &four), base[r]);
            const int32x4_t code = NAME_codes4(sums, rule, own.scaling.left, own.grid.zero);
            NAME_store4(y, to, code, own.grid.wide, some);
        }
    }
}
#else
/* Two rows times two rows of weights. */
NAME_APART static void NAME_dot22_4(
    const int16_t *x0, const int16_t *x1, const uint8_t *w0, const uint8_t *w1, int32_t n, int32_t *sum)
{
    int32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
#if defined(NAME_DSP)
    const uint32_t mask = 0x000f000fu;
    for (int32_t k = 0; k < n; k += 8, w0 += 4, w1 += 4, x0 += 8, x1 += 8) {
        const uint32_t v0 = NAME_word(w0), v1 = NAME_word(w1);
        uint32_t p = v0 & mask, q = v1 & mask, u = NAME_word(x0), v = NAME_word(x1);
        a = NAME_mac2(u, p, a);
        b = NAME_mac2(u, q, b);
        c = NAME_mac2(v, p, c);
        d = NAME_mac2(v, q, d);
        p = (v0 >> 4) & mask, q = (v1 >> 4) & mask, u = NAME_word(x0 + 2), v = NAME_word(x1 + 2);
        a = NAME_mac2(u, p, a);
        b = NAME_mac2(u, q, b);
        c = NAME_mac2(v, p, c);
        d = NAME_mac2(v, q, d);
        p = (v0 >> 8) & mask, q = (v1 >> 8) & mask, u = NAME_word(x0 + 4), v = NAME_word(x1 + 4);
        a = NAME_mac2(u, p, a);
        b = NAME_mac2(u, q, b);
        c = NAME_mac2(v, p, c);
        d = NAME_mac2(v, q, d);
        p = (v0 >> 12) & mask, q = (v1 >> 12) & mask, u = NAME_word(x0 + 6), v = NAME_word(x1 + 6);
        a = NAME_mac2(u, p, a);
        b = NAME_mac2(u, q, b);
        c = NAME_mac2(v, p, c);
        d = NAME_mac2(v, q, d);
    }
#else
    int32_t low0, low1, high0, high1;
#define NAME_STEP(at) \
    low0 = w0[at] & 15, low1 = w1[at] & 15, high0 = w0[at] >> 4, high1 = w1[at] >> 4; \
    a += x0[2 * (at)] * low0; \
    b += x0[2 * (at)] * low1; \
    a += x0[2 * (at) + 1] * high0; \
    b += x0[2 * (at) + 1] * high1; \
    c += x1[2 * (at)] * low0; \
    d += x1[2 * (at)] * low1; \
    c += x1[2 * (at) + 1] * high0; \
    d += x1[2 * (at) + 1] * high1;
    for (const int16_t *end = x0 + n; x0 != end; x0 += 8, x1 += 8, w0 += 4, w1 += 4) {
        NAME_STEP(0)
        NAME_STEP(1)
        NAME_STEP(2)
        NAME_STEP(3)
    }
#undef NAME_STEP
#endif
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}

/* One row times two rows of weights: with more, sums and words would not stay in registers. */
NAME_APART static void NAME_dot12_4(const int16_t *x, const uint8_t *w0, const uint8_t *w1, int32_t n, int32_t *sum)
{
    int32_t a = sum[0], b = sum[1];
#if defined(NAME_DSP)
    const uint32_t mask = 0x000f000fu;
    uint32_t u[4], v, p;
/* Shift and mask in one instruction, which a compiler splits. */
#define NAME_PART(shift, sum, at) \
    __asm__("and %0, %1, %2, lsr #" #shift : "=r"(p) : "r"(mask), "r"(v)); \
    sum = NAME_mac2(u[at], p, sum);
#define NAME_TAKE(w, at, sum) \
    v = NAME_word((w) + (at)); \
    sum = NAME_mac2(u[0], v & mask, sum); \
    NAME_PART(4, sum, 1) NAME_PART(8, sum, 2) NAME_PART(12, sum, 3)
#define NAME_STEP(at) \
    memcpy(u, NAME_ALIGNED(x + 2 * (at)), 16); \
    NAME_TAKE(w0, at, a) NAME_TAKE(w1, at, b)
    const uint8_t *end = w0 + ((n & ~15) >> 1);
    while (w0 != end) {
        NAME_STEP(0)
        NAME_STEP(4)
        x += 16, w0 += 8, w1 += 8;
    }
    if ((n & 8) != 0) {
        NAME_STEP(0)
    }
#undef NAME_STEP
#undef NAME_TAKE
#undef NAME_PART
#else
    for (const int16_t *end = x + n; x != end; x += 2, w0++, w1++) {
        a += x[0] * (*w0 & 15);
        b += x[0] * (*w1 & 15);
        a += x[1] * (*w0 >> 4);
        b += x[1] * (*w1 >> 4);
    }
#endif
    sum[0] = a;
    sum[1] = b;
}

void NAME_products4(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at)
{
    const NAME_layer own = *layer; /* to a compiler, a stored byte may change what layer points to */
    const int32_t n = NAME_PADDED(own.inner), outputs = own.outputs;
    const uint8_t *codes = (const uint8_t *)own.codes;
    for (int32_t j = 0; j < outputs; j += 2) { /* an odd last output is computed twice */
        const int32_t next = j + 1 < outputs ? j + 1 : j;
        const uint8_t *w0 = codes + (size_t)j * (size_t)(n / 2), *w1 = codes + (size_t)next * (size_t)(n / 2);
        int32_t sum[4] = {own.bias[j] + base[0], own.bias[next] + base[0], 0, 0};
        if (rows == 2) {
            sum[2] = own.bias[j] + base[1];
            sum[3] = own.bias[next] + base[1];
            NAME_dot22_4(x, x + NAME_ROOM(own.inner), w0, w1, n, sum);
        } else {
            NAME_dot12_4(x, w0, w1, n, sum);
        }
        NAME_finish(sum, rows, j, &own, y, at);
        NAME_finish(sum + 1, rows, next, &own, y, at);
    }
}
#endif

