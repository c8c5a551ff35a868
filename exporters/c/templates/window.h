/* Geometry of a window over an image (height, width, channels). */
typedef struct {
    int32_t height, width, channels, rows, columns, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, step_h, step_w;
} NAME_window;

