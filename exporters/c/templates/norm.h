/* step is 0 where all channels share gain and offset. */
typedef struct {
    int32_t rows, length, centred, zero, wide;
    int64_t epsilon;
    const int32_t *gain, *offset;
    int32_t step, left, shift;
    NAME_grid grid;
} NAME_normal;

void NAME_norm(const void *x, const NAME_normal *p, void *y);

