"""Which rates: losses per block, search, report; may import `predict`, `graph`, `bundle`."""
