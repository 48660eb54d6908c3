"""torch -> ONNX: networks, number types, exporter, export rules; may import `bundle`."""
