void NAME_interpolate(const int16_t *x, int32_t count, const int16_t *points, int32_t fraction, const NAME_grid *grid, void *y);

