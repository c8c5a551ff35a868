typedef struct {
    int32_t batch, rows, zero_left, zero_right;
    NAME_layer layer; /* of the right operand; codes are set for each batch */
} NAME_product;

void NAME_matmul(const int8_t *left, const int8_t *right, const NAME_product *p, void *y, void *scratch);

