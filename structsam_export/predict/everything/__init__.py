"""Masks of everything in a photo: SAM's automatic mask generator, without torch."""
