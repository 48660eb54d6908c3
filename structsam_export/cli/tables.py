"""Tables that fit a width: text wraps, numbers stay whole, and columns too many go below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

#: What a column takes beside its cells: two spaces and a line.
_BORDER = 3
#: Text with longer words, such as paths, is folded within them.
_LONGEST_WORD = 36


def fit(table: Table, width: int) -> list[Table | Text]:
    """Cut a table into tables of at most `width` columns of characters, each with the rows' names.

    Args:
        table: its columns that are justified to the right hold numbers, which are not wrapped.

    Returns:
        The parts in order, and the caption below them, which the last part may be too narrow for.
    """
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.justify == "right"
    count = _naming(table.columns, width)
    names = table.columns[:count]
    room = width - 1 - sum(map(_least_width, names))
    pieces: list[list[Column]] = [[]]
    left = room
    for column in table.columns[count:]:
        needed = _least_width(column)
        if needed > left and pieces[-1]:
            pieces.append([])
            left = room
        pieces[-1].append(column)
        left -= needed
    if len(pieces) == 1:
        return [table]
    cut = [_with_columns(table, [*names, *piece]) for piece in pieces]
    cut[0].title = table.title
    caption = table.caption
    text = Text.from_markup(caption) if isinstance(caption, str) else caption
    return [*cut, *([text] if text else [])]


def _naming(columns: Sequence[Column], width: int) -> int:
    """Return how many first columns tell the rows apart; at least one, and no half of the width."""
    cells = [list(column.cells) for column in columns]
    count, taken = 1, _least_width(columns[0])
    while len(set(zip(*cells[:count], strict=True))) < len(cells[0]) and count < len(columns):
        taken += _least_width(columns[count])
        if taken > width / 2:
            break
        count += 1
    return count


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
    part = Table(box=table.box, show_header=table.show_header)
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
