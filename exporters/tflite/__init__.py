"""TFLite files through LiteRT's converter."""
