"""Networks as ONNX graphs of standard operators: written, run by onnxruntime, and read back."""
