"""A checkpoint as ONNX graphs."""
