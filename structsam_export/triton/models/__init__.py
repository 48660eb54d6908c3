"""Python models that run inside a Triton server; the repository carries copies of them."""
