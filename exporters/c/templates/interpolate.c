/* 513 points, 128 codes apart, in units of 2^-fraction codes. */
void NAME_interpolate(const int16_t *x, int32_t count, const int16_t *points, int32_t fraction, const NAME_grid *grid, void *y)
{
    const NAME_grid own = *grid; /* to a compiler, a stored byte may change what grid points to */
    const int32_t shift = 7 + fraction, half = (int32_t)1 << (6 + fraction);
    for (int32_t i = 0; i < count; i++) {
        const int32_t position = x[i] + 32768, part = position & 127;
        const int16_t *p = points + (position >> 7);
        const int32_t code = (p[0] * (128 - part) + p[1] * part + half) >> shift;
        NAME_store(y, i, code - own.zero, &own);
    }
}

