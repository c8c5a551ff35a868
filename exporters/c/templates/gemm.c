#if defined(NAME_MVE)
/* Sums of one row of bytes times four rows of weights. Written out: a compiler gives each pointer arithmetic of its own,
 * and does not find even registers for sums every time. */
static inline int32x4_t NAME_dot14_bytes(const int8_t *x, const NAME_rows *rows)
{
    register int32x4_t sums __asm__("q0");
    __asm__ volatile("ldrd r2, r3, [%[rows]]\n"
                     "ldrd r4, r5, [%[rows], #8]\n"
                     "ldrd r6, r8, [%[rows], #16]\n"
                     "ldrd r10, r12, [%[rows], #24]\n"
                     "ldr lr, [%[rows], #32]\n"
                     "wlstp.8 lr, lr, 2f\n"
                     "1: vldrb.8 q0, [%[x]], #16\n"
                     "vldrb.8 q1, [r2], #16\n"
                     "vmladava.s8 r6, q0, q1\n"
                     "vldrb.8 q2, [r3], #16\n"
                     "vmladava.s8 r8, q0, q2\n"
                     "vldrb.8 q1, [r4], #16\n"
                     "vmladava.s8 r10, q0, q1\n"
                     "vldrb.8 q2, [r5], #16\n"
                     "vmladava.s8 r12, q0, q2\n"
                     "letp lr, 1b\n"
                     "2: vmov d0, r6, r8\n"
                     "vmov d1, r10, r12\n"
                     : [sums] "=w"(sums), [x] "+r"(x)
                     : [rows] "r"(rows)
                     : "r2", "r3", "r4", "r5", "r6", "r8", "r10", "r12", "q1", "q2", "lr", "cc", "memory");
    return sums;
}

void NAME_products_bytes(const int8_t *x, int32_t step, int32_t rows, const NAME_layer *layer, void *y, int32_t at)
{
    const NAME_layer own = *layer;
    const int8_t *codes = own.codes;
    for (int32_t j = 0; j < own.outputs; j += 4, codes += 4 * own.inner) {
        const mve_pred16_t some = vctp32q((uint32_t)(own.outputs - j));
        const NAME_rule rule = NAME_rule_of(&own, j, some);
        NAME_rows four = NAME_rows_of(codes, own.inner, own.outputs - j);
        vstrwq_s32(four.start, vldrwq_z_s32(own.bias + j, some));
        const int8_t *row = x;
        int32_t to = at + j;
        for (int32_t r = 0; r < rows; r++, row += step, to += own.outputs) {
            const int32x4_t code = NAME_codes4(NAME_dot14_bytes(row, &four), rule, own.scaling.left, own.grid.zero);
            NAME_store4(y, to, code, own.grid.wide, some);
        }
    }
}
#else
/* With SIMD on 32-bit words, four codes lie as 0 2 1 3, the halves that one extension of a word of weights gives, and
 * the rows take turns, so that one pointer reads them all. */
static inline int32_t NAME_spread(const int8_t *x, int16_t *to, int32_t count, int32_t plain, int32_t zero, int32_t rows)
{
    int32_t sum = 0, i = 0;
#if defined(NAME_DSP)
    const uint32_t zeros = ((uint32_t)zero & 0xffffu) * 0x10001u;
    NAME_UNROLL
    for (; i + 4 <= count; i += 4) {
        const uint32_t bytes = NAME_word(x + i);
        uint32_t even = NAME_even(bytes), odd = NAME_odd(bytes);
        if (!plain) {
            even = NAME_minus(even, zeros);
            odd = NAME_minus(odd, zeros);
        }
        memcpy(to, &even, 4);
        memcpy(to + 2, &odd, 4);
        to += NAME_GROUP(rows);
        sum = NAME_mac2(even, 0x10001u, NAME_mac2(odd, 0x10001u, sum));
    }
#else
    (void)rows;
    (void)plain;
#endif
    for (; i < count; i++) {
        const int32_t value = x[i] - zero;
        *to++ = (int16_t)value;
        sum += value;
    }
    return sum;
}

NAME_APART int32_t NAME_expand(const int8_t *x, int16_t *to, int32_t count, int32_t zero, int32_t rows)
{
    return NAME_spread(x, to, count, 0, zero, rows);
}

NAME_APART void NAME_widen(const int8_t *x, int16_t *to, int32_t count, int32_t rows)
{
    (void)NAME_spread(x, to, count, 1, 0, rows);
}

/* Two rows that take turns, two rows of weights, and the sums of their four products. */
typedef struct {
    const int16_t *x;
    const int8_t *w0, *w1, *end; /* of the first row of weights, before what is no multiple of 16 */
    int32_t sum[4];
} NAME_tile;

#if defined(NAME_DSP)
/* Sixteen codes a turn. Written out: it takes all registers, which a compiler spills; the end lies on the stack. */
static inline void NAME_turns(NAME_tile *tile)
{
    register NAME_tile *at __asm__("r12") = tile;
#define NAME_STEP \
    "ldr r3, [r1], #4\n" \
    "ldrd r11, r12, [r0], #8\n" \
    "sxtb16 r9, r3, ror #8\n" \
    "sxtb16 r3, r3\n" \
    "ldr r10, [r2], #4\n" \
    "smlad r4, r11, r3, r4\n" \
    "sxtb16 lr, r10, ror #8\n" \
    "smlad r4, r12, r9, r4\n" \
    "sxtb16 r10, r10\n" \
    "smlad r5, r11, r10, r5\n" \
    "smlad r5, r12, lr, r5\n" \
    "ldrd r11, r12, [r0], #8\n" \
    "smlad r6, r11, r3, r6\n" \
    "smlad r8, r11, r10, r8\n" \
    "smlad r6, r12, r9, r6\n" \
    "smlad r8, r12, lr, r8\n"
    __asm__ volatile("ldmia r12!, {r0, r1, r2, r3}\n"
                     "ldmia r12, {r4, r5, r6, r8}\n"
                     "push {r3, r12}\n"
                     "1:\n" NAME_STEP NAME_STEP NAME_STEP NAME_STEP
                     "ldr r3, [sp]\n"
                     "cmp r1, r3\n"
                     "bne 1b\n"
                     "pop {r3, r12}\n"
                     "stmia r12, {r4, r5, r6, r8}\n"
                     "stmdb r12, {r0, r1, r2, r3}\n"
                     : "+r"(at)
                     :
                     : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r8", "r9", "r10", "r11", "lr", "cc", "memory");
#undef NAME_STEP
}

static inline void NAME_dot22(NAME_tile *tile, int32_t n)
{
    if (n >= 16) {
        NAME_turns(tile);
    }
    n &= 15;
    if (n == 0) {
        return;
    }
    const int16_t *x = tile->x;
    const int8_t *w0 = tile->w0, *w1 = tile->w1;
    int32_t a = tile->sum[0], b = tile->sum[1], c = tile->sum[2], d = tile->sum[3];
    for (; n >= 4; n -= 4, x += 8, w0 += 4, w1 += 4) {
        const uint32_t v0 = NAME_word(w0), v1 = NAME_word(w1), even0 = NAME_even(v0), even1 = NAME_even(v1);
        const uint32_t odd0 = NAME_odd(v0), odd1 = NAME_odd(v1);
        a = NAME_mac2(NAME_word(x), even0, NAME_mac2(NAME_word(x + 2), odd0, a));
        b = NAME_mac2(NAME_word(x), even1, NAME_mac2(NAME_word(x + 2), odd1, b));
        c = NAME_mac2(NAME_word(x + 4), even0, NAME_mac2(NAME_word(x + 6), odd0, c));
        d = NAME_mac2(NAME_word(x + 4), even1, NAME_mac2(NAME_word(x + 6), odd1, d));
    }
    const int16_t *x1 = x + 4;
#else
/* Kept apart: inlined, its sums would not stay in registers. */
NAME_APART static void NAME_dot22(NAME_tile *tile, int32_t n)
{
    const int16_t *x = tile->x, *x1 = x + NAME_ROW(n);
    const int8_t *w0 = tile->w0, *w1 = tile->w1;
    int32_t a = tile->sum[0], b = tile->sum[1], c = tile->sum[2], d = tile->sum[3];
#endif
    for (; n > 0; n--) {
        const int32_t v0 = *w0++, v1 = *w1++, u0 = *x++, u1 = *x1++;
        a += u0 * v0;
        b += u0 * v1;
        c += u1 * v0;
        d += u1 * v1;
    }
    tile->sum[0] = a;
    tile->sum[1] = b;
    tile->sum[2] = c;
    tile->sum[3] = d;
}

/* One row times four rows of weights. */
NAME_APART static void NAME_dot14(const int16_t *x, const int8_t *const *w, int32_t n, int32_t *sum)
{
    const int8_t *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    int32_t a = sum[0], b = sum[1], c = sum[2], d = sum[3];
#if defined(NAME_DSP)
    uint32_t pair[2], v;
#define NAME_TAKE(w, at, sum) \
    v = NAME_word((w) + (at)); \
    sum = NAME_mac2(pair[0], NAME_even(v), sum); \
    sum = NAME_mac2(pair[1], NAME_odd(v), sum);
#define NAME_STEP(at) \
    memcpy(pair, NAME_ALIGNED(x + (at)), 8); \
    NAME_TAKE(w0, at, a) NAME_TAKE(w1, at, b) NAME_TAKE(w2, at, c) NAME_TAKE(w3, at, d)
    const int8_t *end = w0 + (n & ~15);
    while (w0 != end) {
        NAME_STEP(0)
        NAME_STEP(4)
        NAME_STEP(8)
        NAME_STEP(12)
        x += 16, w0 += 16, w1 += 16, w2 += 16, w3 += 16;
    }
    for (n &= 15; n >= 4; n -= 4) {
        NAME_STEP(0)
        x += 4, w0 += 4, w1 += 4, w2 += 4, w3 += 4;
    }
#undef NAME_STEP
#undef NAME_TAKE
#endif
    for (; n > 0; n--) {
        const int32_t u = *x++;
        a += u * *w0++;
        b += u * *w1++;
        c += u * *w2++;
        d += u * *w3++;
    }
    sum[0] = a;
    sum[1] = b;
    sum[2] = c;
    sum[3] = d;
}

void NAME_products(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at)
{
    const NAME_layer own = *layer; /* to a compiler, a stored byte may change what layer points to */
    const int32_t n = own.inner, outputs = own.outputs;
    const int8_t *codes = own.codes;
    int32_t j = 0;
    if (rows == 2) {
        for (; j < outputs; j += 2) { /* an odd last output is computed twice */
            const int32_t next = j + 1 < outputs ? j + 1 : j;
            const int32_t bias0 = own.bias != NULL ? own.bias[j] : 0;
            const int32_t bias1 = own.bias != NULL ? own.bias[next] : 0;
            const int8_t *w = codes + j * n;
            NAME_tile tile = {x, w, codes + next * n, w + (n & ~15),
                              {bias0 + base[0], bias1 + base[0], bias0 + base[1], bias1 + base[1]}};
            NAME_dot22(&tile, n);
            NAME_finish(tile.sum, 2, j, &own, y, at);
            NAME_finish(tile.sum + 1, 2, next, &own, y, at);
        }
        return;
    }
    for (; j < outputs; j += 4) {
        const int8_t *w[4];
        int32_t sum[4];
        for (int32_t t = 0; t < 4; t++) { /* beyond the last output, the last one again */
            const int32_t channel = j + t < outputs ? j + t : outputs - 1;
            w[t] = codes + channel * n;
            sum[t] = (own.bias != NULL ? own.bias[channel] : 0) + base[0];
        }
        NAME_dot14(x, w, n, sum);
        for (int32_t t = 0; t < 4 && j + t < outputs; t++) {
            NAME_finish(sum + t, 1, j + t, &own, y, at);
        }
    }
}
#endif

