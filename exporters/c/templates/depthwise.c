/* Scratch: one window of bytes. */
void NAME_depthwise(const int8_t *x, const NAME_window *g, int32_t border, const NAME_layer *layer, void *y, void *scratch)
{
    int8_t *bytes = (int8_t *)scratch;
    const int32_t channels = layer->outputs, taps = layer->inner;
    int32_t at = 0;
    for (int32_t row = 0; row < g->rows; row++) {
        for (int32_t column = 0; column < g->columns; column++, at += channels) {
            NAME_patch(x, g, row, column, border, bytes);
            for (int32_t c = 0; c < channels; c++) {
                const int8_t *u = bytes + c, *w = layer->codes + c;
                const NAME_scaling *s = &layer->scaling;
                int32_t sum = layer->bias[c];
                for (int32_t t = 0; t < taps; t++, u += channels, w += channels) {
                    sum += (int32_t)*u * *w;
                }
                sum = NAME_scale(sum * ((int32_t)1 << s->left), s->multiplier[c * s->step], s->shift[c * s->step]);
                NAME_store(y, at + c, sum, &layer->grid);
            }
        }
    }
}

