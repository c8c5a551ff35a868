"""The canonical graph: capture from PyTorch and ONNX, recognition, placement and legalizing."""
