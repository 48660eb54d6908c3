"""The cheapest encoder whose masks are good enough: points, losses, latencies, search, recipe."""
