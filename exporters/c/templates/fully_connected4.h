void NAME_fully_connected4(const int8_t *x, int32_t rows, const NAME_layer *layer, void *y, void *scratch);

