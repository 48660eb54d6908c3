"""Pictures of merging, and the spectrum; may import `predict` and `bundle`."""
