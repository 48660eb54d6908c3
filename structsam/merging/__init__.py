"""Merging inside SAM's blocks: geometry, attention, the block; may import `methods` and `plans`."""
