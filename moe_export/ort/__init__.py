"""ONNX Runtime sessions: loading, decoding, and measuring memory and speed."""
