/* Codes minus zero as 16-bit numbers in the order that the products read; returns their sum. Rows have room for a
 * multiple of four. Or the codes as they are, without a sum. */
#define NAME_ROW(count) (((count) + 3) & ~(int32_t)3)
int32_t NAME_expand(const int8_t *x, int16_t *to, int32_t count, int32_t zero, int32_t row, int32_t rows);
void NAME_widen(const int8_t *x, int16_t *to, int32_t count, int32_t row, int32_t rows);
void NAME_products(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at);
#if defined(NAME_MVE)
/* Rows of bytes, step bytes apart, times all rows of weights; what zero points of rows do lies in the bias. */
void NAME_products_bytes(const int8_t *x, int32_t step, int32_t rows, const NAME_layer *layer, void *y, int32_t at);
#endif
