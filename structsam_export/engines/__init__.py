"""ONNX -> one engine: builder and progress; may import `runtimes` and `bundle`."""
