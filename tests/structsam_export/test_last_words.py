"""How an ended process is told."""

from __future__ import annotations

import pytest

from structsam_export.last_words import last_words


@pytest.mark.parametrize(
    ("code", "errors", "told"),
    [
        (3, "", "it ended with code 3"),
        (1, "first\n  last \n", "it ended with code 1: last"),
        (-9, "", "it ended with code -9 (killed, perhaps for lack of memory)"),
        (137, "last", "it ended with code 137 (killed, perhaps for lack of memory): last"),
    ],
)
def test_last_words(code: int, errors: str, told: str) -> None:
    assert last_words("it", code, errors) == told
