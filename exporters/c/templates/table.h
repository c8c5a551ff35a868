void NAME_table(const int8_t *x, int32_t count, const int16_t *values, const NAME_grid *grid, void *y);

