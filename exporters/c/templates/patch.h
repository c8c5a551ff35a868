void NAME_patch(const int8_t *x, const NAME_window *g, int32_t row, int32_t column, int32_t border, int8_t *to);

