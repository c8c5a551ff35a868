void NAME_max_pool(const void *x, const NAME_window *g, int32_t wide, const NAME_grid *grid, void *y);

