#if defined(NAME_MVE)
/* Rows of bytes, step bytes apart, times all rows of weights; what zero points of rows do lies in the bias. */
void NAME_products_bytes(const int8_t *x, int32_t step, int32_t rows, const NAME_layer *layer, void *y, int32_t at);
#else
/* Codes minus zero as 16-bit numbers in the order that the products read; returns their sum. Or the codes as they are,
 * without a sum. Rows have room for a multiple of four, groups of four codes of a row lie NAME_GROUP apart. */
#define NAME_ROW(count) (((count) + 3) & ~(int32_t)3)
#if defined(NAME_DSP)
#define NAME_GROUP(rows) (4 * (rows))
#define NAME_BEGIN(count, row) (4 * (row))
#else
#define NAME_GROUP(rows) 4
#define NAME_BEGIN(count, row) (NAME_ROW(count) * (row))
#endif
int32_t NAME_expand(const int8_t *x, int16_t *to, int32_t count, int32_t zero, int32_t rows);
void NAME_widen(const int8_t *x, int16_t *to, int32_t count, int32_t rows);
/* One or two expanded rows times all rows of weights; base is added to the sums of each row. */
void NAME_products(const int16_t *x, int32_t rows, const NAME_layer *layer, const int32_t *base, void *y, int32_t at);
#endif
