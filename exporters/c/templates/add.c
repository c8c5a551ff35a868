#if defined(NAME_MVE)
void NAME_add(const void *a, const void *b, const NAME_sum *p, void *y)
{
    const NAME_sum own = *p; /* to a compiler, a stored byte may change what p points to */
    const int32x4_t first = vdupq_n_s32(own.multiplier[0]), second = vdupq_n_s32(own.multiplier[1]);
    const int32_t half = (int32_t)1 << (own.shift - 33), shift = 32 - own.shift;
    for (int32_t i = 0; i < own.count; i += own.period) {
        for (int32_t j = 0; j < own.period; j += 4) {
            const mve_pred16_t some = vctp32q((uint32_t)(own.period - j));
            const int32x4_t u = vshlq_r_s32(vsubq_n_s32(NAME_load4(a, i + j, own.wide[0], some), own.zero[0]), own.left);
            const int32x4_t v = vshlq_r_s32(vsubq_n_s32(NAME_load4(b, j, own.wide[1], some), own.zero[1]), own.left);
            const uint32x4_t low = vreinterpretq_u32_s32(vmulq_s32(u, first));
            const uint32x4_t both = vaddq_u32(low, vreinterpretq_u32_s32(vmulq_s32(v, second)));
            int32x4_t sum = vaddq_s32(vmulhq_s32(u, first), vmulhq_s32(v, second));
            sum = vaddq_m_n_s32(sum, sum, 1, vcmphiq_u32(low, both)); /* what the low words carry */
            sum = vaddq_n_s32(vshlq_r_s32(vaddq_n_s32(sum, half), shift), own.grid.zero);
            sum = vminq_s32(vmaxq_s32(sum, vdupq_n_s32(own.grid.low)), vdupq_n_s32(own.grid.high));
            NAME_store4(y, i + j, sum, own.grid.wide, some);
        }
    }
}
#else
void NAME_add(const void *a, const void *b, const NAME_sum *p, void *y)
{
    const NAME_sum own = *p; /* to a compiler, a stored byte may change what p points to */
    const int32_t left = (int32_t)1 << own.left, half = (int32_t)1 << (own.shift - 33);
    for (int32_t i = 0; i < own.count;) {
        for (int32_t j = 0; j < own.period; j++, i++) {
            const int32_t u = (NAME_load(a, i, own.wide[0]) - own.zero[0]) * left;
            const int32_t v = (NAME_load(b, j, own.wide[1]) - own.zero[1]) * left;
            const int64_t sum = (int64_t)u * own.multiplier[0] + (int64_t)v * own.multiplier[1];
            NAME_store(y, i, ((int32_t)(sum >> 32) + half) >> (own.shift - 32), &own.grid);
        }
    }
}
#endif

