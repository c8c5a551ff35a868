void NAME_concat(const void *x, int32_t outer, int32_t size, int32_t from, int32_t row, void *y);

