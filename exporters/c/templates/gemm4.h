/* As above for two codes in a byte: rows are padded to 8 codes, and the sum pays for the codes' offset of 8. */
int32_t NAME_expand4(const int8_t *x, int16_t *rows, int32_t row, int32_t count);
void NAME_products4(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at);

