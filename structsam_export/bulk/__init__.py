"""Masks of many photos: source, pipeline, parts that outlive a crash, COCO at the end."""
