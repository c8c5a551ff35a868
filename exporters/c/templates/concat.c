/* Rows of size bytes to where each longer row has them. */
void NAME_concat(const void *x, int32_t outer, int32_t size, int32_t from, int32_t row, void *y)
{
    for (int32_t i = 0; i < outer; i++) {
        memcpy((int8_t *)y + i * row + from, (const int8_t *)x + i * size, (size_t)size);
    }
}

