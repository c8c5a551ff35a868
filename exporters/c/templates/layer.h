/* Weights (outputs, inner): bytes, or two codes + 8 in a byte, rows padded to 8 codes. */
typedef struct {
    const int8_t *codes;
    const int32_t *bias;
    NAME_scaling scaling;
    int32_t inner, outputs;
    NAME_grid grid;
} NAME_layer;

