"""C99 for microcontrollers, written from an `IntGraph`."""
