#if defined(NAME_MVE)
/* Sum of the codes of a row. */
static int32_t NAME_row_sum(const int8_t *x, int32_t n)
{
    int32_t sum = 0;
    for (int32_t left = n; left > 0; left -= 16, x += 16) {
        const mve_pred16_t some = vctp8q((uint32_t)left);
        sum = vaddvaq_p_s8(sum, vldrbq_z_s8(x, some), some);
    }
    return sum;
}

/* All columns of some rows: codes are multiplied as they are, and what zero points do is told from sums of rows. */
static void NAME_some_rows(
    const int8_t *left, const int32_t *base, int32_t rows, const NAME_product *p, const int8_t *right, void *y, int32_t at)
{
    const NAME_layer own = p->layer;
    const int32_t n = own.inner, columns = own.outputs;
    for (int32_t j = 0; j < columns; j += 4, right += 4 * n) {
        const mve_pred16_t some = vctp32q((uint32_t)(columns - j));
        const NAME_rule rule = NAME_rule_of(&own, j, some);
        NAME_rows four = NAME_rows_of(right, n, columns - j);
        for (int32_t t = 0; t < 4; t++) {
            four.start[t] = -p->zero_left * (NAME_row_sum(four.row[t], n) - n * p->zero_right);
        }
        const int8_t *row = left;
        int32_t to = at + j;
        for (int32_t r = 0; r < rows; r++, row += n, to += columns) {
            const int32x4_t sums = vaddq_n_s32(NAME_dot14_bytes(row, &four), base[r]);
            const int32x4_t code = NAME_codes4(sums, rule, own.scaling.left, own.grid.zero);
            NAME_store4(y, to, code, own.grid.wide, some);
        }
    }
}

/* Scratch: a sum a row, for as many rows as a row has codes. */
void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch)
{
    int32_t *base = (int32_t *)scratch;
    const int32_t n = p->layer.inner, columns = p->layer.outputs;
    int32_t at = 0;
    for (int32_t b = 0; b < p->batch; b++, right += columns * n) {
        for (int32_t r = 0, count; r < p->rows; r += count, left += count * n, at += count * columns) {
            count = p->rows - r < n ? p->rows - r : n;
            for (int32_t t = 0; t < count; t++) {
                base[t] = -p->zero_right * NAME_row_sum(left + t * n, n);
            }
            NAME_some_rows(left, base, count, p, right, y, at);
        }
    }
}
#else
/* Scratch: two rows of 16-bit numbers. */
void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch)
{
    NAME_layer layer = p->layer;
    const int32_t n = layer.inner;
    int16_t *expanded = (int16_t *)scratch;
    int32_t at = 0;
    for (int32_t b = 0; b < p->batch; b++) {
        layer.codes = right + (size_t)b * (size_t)layer.outputs * (size_t)n;
        for (int32_t r = 0; r < p->rows; r += 2) {
            const int32_t count = p->rows - r < 2 ? 1 : 2;
            int32_t base[2] = {0, 0};
            for (int32_t t = 0; t < count; t++, left += n) {
                base[t] = -p->zero_right * NAME_expand(left, expanded + NAME_BEGIN(n, t), n, p->zero_left, count);
            }
            NAME_products(expanded, count, &layer, base, y, at);
            at += count * layer.outputs;
        }
    }
}
#endif

