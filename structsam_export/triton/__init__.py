"""A model repository for NVIDIA Triton from a bundle: photo and prompts in, masks out."""
