"""How fast: cost card, encoders, rows, report; may import every room but studies and `cli`."""
