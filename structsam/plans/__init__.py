"""Which tokens share a slot, as index data of fixed shape; may import `errors` only."""
