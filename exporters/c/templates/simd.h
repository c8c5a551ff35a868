#if defined(NAME_DSP)
#define NAME_ALIGNED(p) __builtin_assume_aligned(p, 8)

static inline uint32_t NAME_word(const void *p)
{
    uint32_t word;
    memcpy(&word, p, 4);
    return word;
}

static inline uint32_t NAME_even(uint32_t bytes)
{
    uint32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(bytes));
    return pair;
}

static inline uint32_t NAME_odd(uint32_t bytes)
{
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(bytes));
    return pair;
}

static inline uint32_t NAME_minus(uint32_t pair, uint32_t zeros)
{
    uint32_t result;
    __asm__("ssub16 %0, %1, %2" : "=r"(result) : "r"(pair), "r"(zeros));
    return result;
}

/* The larger byte of each pair. */
static inline uint32_t NAME_larger(uint32_t a, uint32_t b)
{
    uint32_t result;
    __asm__("ssub8 %0, %1, %2\n sel %0, %1, %2" : "=&r"(result) : "r"(a), "r"(b) : "cc");
    return result;
}

static inline int32_t NAME_mac2(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

/* Halves that lie at the same end of both words. */
static inline uint32_t NAME_low_halves(uint32_t a, uint32_t b)
{
    return (a & 0xffffu) | (b << 16);
}

static inline uint32_t NAME_high_halves(uint32_t a, uint32_t b)
{
    return (a >> 16) | (b & 0xffff0000u);
}

static inline int32_t NAME_mac_low(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlabb %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

static inline int32_t NAME_mac_high(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlatt %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}
#endif

/* The nearest byte. */
static inline int32_t NAME_saturate(int32_t v)
{
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__) && !defined(EDGEQ_PLAIN_C)
    int32_t result;
    __asm__("ssat %0, #8, %1" : "=r"(result) : "r"(v) : "cc");
    return result;
#else
    return v < -128 ? -128 : v > 127 ? 127 : v;
#endif
}

/* Sums of some rows at one channel to codes: NAME_store of NAME_scale, the zero point added before the last shift. */
static inline void NAME_finish(
    const int32_t *sum, int32_t rows, int32_t channel, const NAME_layer *layer, void *y, int32_t at)
{
    const int32_t index = channel * layer->scaling.step, left = layer->scaling.left;
    const int32_t multiplier = layer->scaling.multiplier[index], shift = layer->scaling.shift[index] - 33;
    const int32_t low = layer->grid.low, high = layer->grid.high, wide = layer->grid.wide;
    const int32_t bytes = low == -128 && high - 65536 * wide == 127, round = 2 * layer->grid.zero + 1;
    const int32_t outputs = layer->outputs;
    at += channel;
    for (int32_t r = 0; r < rows; r++, at += outputs) {
        int32_t code = ((NAME_high(sum[2 * r] * ((int32_t)1 << left), multiplier) >> shift) + round) >> 1;
        if (bytes) {
            ((int8_t *)y)[at] = (int8_t)NAME_saturate(code);
            continue;
        }
        code = code < low ? low : code;
        code = code > high ? high : code;
        if (wide) {
            ((int16_t *)y)[at] = (int16_t)code;
        } else {
            ((int8_t *)y)[at] = (int8_t)code;
        }
    }
}

#if defined(NAME_MVE)
/* What makes codes of the sums of four channels. */
typedef struct {
    int32x4_t multiplier, shift, low, high;
} NAME_rule;

static inline NAME_rule NAME_rule_of(const NAME_layer *layer, int32_t channel, mve_pred16_t some)
{
    const NAME_scaling *s = &layer->scaling;
    int32x4_t multiplier = vdupq_n_s32(s->multiplier[0]), shift = vdupq_n_s32(s->shift[0]);
    if (s->step) {
        multiplier = vldrwq_z_s32(s->multiplier + channel, some);
        shift = vreinterpretq_s32_u32(vldrbq_z_u32(s->shift + channel, some));
    }
    const NAME_rule rule = {multiplier, vsubq_s32(vdupq_n_s32(32), shift), vdupq_n_s32(layer->grid.low),
                            vdupq_n_s32(layer->grid.high)};
    return rule;
}

static inline int32x4_t NAME_codes4(int32x4_t sums, NAME_rule rule, int32_t left, int32_t zero)
{
    const int32x4_t high = vmulhq_s32(vshlq_r_s32(sums, left), rule.multiplier);
    return vminq_s32(vmaxq_s32(vaddq_n_s32(vrshlq_s32(high, rule.shift), zero), rule.low), rule.high);
}

/* Four rows of bytes, what their sums start from, and bytes in a row. */
typedef struct {
    const int8_t *row[4];
    int32_t start[4], count;
} NAME_rows;

/* Rows side by side; beyond the last of those left, the first one again. */
static inline NAME_rows NAME_rows_of(const int8_t *first, int32_t count, int32_t left)
{
    NAME_rows rows = {{first, first, first, first}, {0, 0, 0, 0}, count};
    for (int32_t t = 1; t < 4 && t < left; t++) {
        rows.row[t] = first + t * count;
    }
    return rows;
}
#endif
