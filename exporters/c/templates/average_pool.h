void NAME_average_pool(const void *x, const NAME_window *g, const NAME_average *p, void *y);

