#if defined(NAME_MVE)
#include <arm_mve.h>
#endif

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

static inline int32_t NAME_mac2(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t result;
    __asm__("smlad %0, %1, %2, %3" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}
#endif

static inline void NAME_finish(int32_t sum, int32_t channel, const NAME_layer *layer, void *y, int32_t at)
{
    const NAME_scaling *s = &layer->scaling;
    const int32_t index = channel * s->step;
    const int32_t code = NAME_scale(sum * ((int32_t)1 << s->left), s->multiplier[index], s->shift[index]);
    NAME_store(y, at + channel, code, &layer->grid);
}

