void NAME_mean(const void *x, const NAME_average *p, void *y);

