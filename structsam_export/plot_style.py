"""What all plots share: colours, themes, and the message where matplotlib is missing."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from structsam.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Readable on white and on black, and apart for colour-blind eyes (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f")
DARK_COLORS = {"#0072b2": "#4aa8e0", "#009e73": "#2fc79a", "#8a6d3b": "#b8975a"}


@dataclass(frozen=True)
class Theme:
    """Colours of a page: paper, ink and lines of the grid."""

    paper: str
    ink: str
    grid: str


LIGHT = Theme("#ffffff", "#1c2330", "#e3e7ee")
DARK = Theme("#1b212c", "#dfe4ec", "#343d4d")


def require_matplotlib() -> None:
    """Raise a `UserError` where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "the plot needs matplotlib, which is not installed here. "
            "Install it with `pip install 'structsam[eval]'`"
        ) from None


def png_of(figure: Figure, dpi: int = 140) -> bytes:
    """Return a figure as PNG; no window opens and no display is needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(
        buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor()
    )
    return buffer.getvalue()
