"""ONNX files for onnxruntime, through torch's exporter."""
