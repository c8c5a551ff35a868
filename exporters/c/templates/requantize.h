/* Codes gathered by strides; where there is no multiplier they are copied. */
typedef struct {
    int32_t dims[5], strides[5], offset, zero, wide;
    NAME_scaling scaling;
    int32_t row_step; /* 1 where each row has a multiplier */
    NAME_grid grid;
} NAME_gather;

void NAME_requantize(const void *x, const NAME_gather *g, void *y);

