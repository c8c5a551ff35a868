void NAME_table(const int8_t *x, int32_t count, const int16_t *values, const NAME_grid *grid, void *y)
{
    const NAME_grid own = *grid; /* to a compiler, a stored byte may change what grid points to */
    for (int32_t i = 0; i < count; i++) {
        NAME_store(y, i, values[x[i] + 128] - own.zero, &own);
    }
}

