typedef struct {
    int32_t outer, reduced, inner, zero, wide, multiplier, left, shift;
    NAME_grid grid;
} NAME_average;

