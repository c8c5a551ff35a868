/* Of both operands: zero point, width, and multiplier at a common shift; the second has period codes. */
typedef struct {
    int32_t count, period, zero[2], wide[2], multiplier[2], left, shift;
    NAME_grid grid;
} NAME_sum;

void NAME_add(const void *a, const void *b, const NAME_sum *p, void *y);

