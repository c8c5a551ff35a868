void NAME_depthwise(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch);

