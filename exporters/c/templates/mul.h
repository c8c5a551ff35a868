typedef struct {
    int32_t count, period, zero[2], wide[2], multiplier, shift;
    NAME_grid grid;
} NAME_factor;

void NAME_mul(const void *a, const void *b, const NAME_factor *p, void *y);

