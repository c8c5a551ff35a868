#if defined(NAME_MVE)
#include <arm_mve.h>

static inline int32x4_t NAME_load4(const void *x, int32_t i, int32_t wide, mve_pred16_t some)
{
    return wide ? vldrhq_z_s32((const int16_t *)x + i, some) : vldrbq_z_s32((const int8_t *)x + i, some);
}

static inline void NAME_store4(void *y, int32_t i, int32x4_t codes, int32_t wide, mve_pred16_t some)
{
    if (wide) {
        vstrhq_p_s32((int16_t *)y + i, codes, some);
    } else {
        vstrbq_p_s32((int8_t *)y + i, codes, some);
    }
}
#endif

