/* Zeros before the first one of a number that is not 0. */
static inline int32_t NAME_leading_zeros(uint32_t v)
{
#if defined(__GNUC__)
    return __builtin_clz(v);
#else
    int32_t zeros = 0;
    while ((v & 0x80000000u) == 0) {
        v <<= 1;
        zeros++;
    }
    return zeros;
#endif
}

