"""What merging costs in quality: metrics, datasets, protocols, and the loop over images."""
