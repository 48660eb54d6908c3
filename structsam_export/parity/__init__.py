"""Is it the same as merged PyTorch? May import `predict`, `runtimes`, `graph`, `bundle`."""
