"""Which graphs of tokens a spectrum can be of: their edge weights follow from cosines."""

from __future__ import annotations

from structsam.errors import UserError

#: Name -> (base, slope) of the edge weight `base + slope * cosine`; see `structsam.spectrum`.
GRAPHS: dict[str, tuple[float, float]] = {"affinity": (0.5, 0.5), "distance": (1.0, -1.0)}


def edge_weight(graph: str) -> tuple[float, float]:
    """Return base and slope of a graph's edge weight; raises `UserError` for an unknown one."""
    if graph not in GRAPHS:
        raise UserError(f"unknown graph {graph!r}. Choose one of: {', '.join(GRAPHS)}")
    return GRAPHS[graph]
