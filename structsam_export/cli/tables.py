"""Tables that fit a width: text wraps, numbers stay whole, and columns too many go below."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

#: What a column takes beside its cells: two spaces and a line.
_BORDER = 3
#: Text with longer words, such as paths, is folded within them.
_LONGEST_WORD = 36


def fit(table: Table, width: int) -> list[Table]:
    """Cut a table into tables of at most `width` columns of characters, each with its first column.

    Args:
        table: its columns that are justified to the right hold numbers, which are not wrapped.
    """
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.justify == "right"
    first, *others = table.columns
    room = width - 1 - _least_width(first)
    pieces: list[list[Column]] = [[]]
    left = room
    for column in others:
        needed = _least_width(column)
        if needed > left and pieces[-1]:
            pieces.append([])
            left = room
        pieces[-1].append(column)
        left -= needed
    if len(pieces) == 1:
        return [table]
    cut = [_with_columns(table, [first, *piece]) for piece in pieces]
    cut[0].title, cut[-1].caption = table.title, table.caption
    return cut


def _least_width(column: Column) -> int:
    """Characters that a column takes at least, with its border."""
    console = Console(width=1000)
    sizes = [
        Measurement.get(console, console.options, cell) for cell in (column.header, *column.cells)
    ]
    if column.no_wrap:
        return max(size.maximum for size in sizes) + _BORDER
    return min(max(size.minimum for size in sizes), _LONGEST_WORD) + _BORDER


def _with_columns(table: Table, columns: list[Column]) -> Table:
    part = Table(
        box=table.box, show_header=table.show_header, caption_justify=table.caption_justify
    )
    for column in columns:
        part.add_column(
            column.header,
            justify=column.justify,
            style=column.style,
            overflow=column.overflow,
            no_wrap=column.no_wrap,
        )
    cells = zip(*(column.cells for column in columns), strict=True)
    for row, own in zip(table.rows, cells, strict=True):
        part.add_row(*own, style=row.style, end_section=row.end_section)
    return part
