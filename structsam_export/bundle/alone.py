"""A folder of results that one process at a time writes into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structsam.errors import UserError
from structsam_export.bundle.atomic import as_user_error


@contextmanager
def alone(out: Path, what: str) -> Iterator[None]:
    """Keep every other process from writing results into `out`; made if missing.

    The lock goes with the process, however it ends.

    Args:
        what: that writes there, for the message: `evaluation`.

    Raises:
        UserError: one is at it, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        held = FileLock(out / ".lock").acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another {what} is writing into {out}. Wait until it has ended, or choose another "
            "`out=`"
        ) from None
    except OSError as error:
        raise as_user_error(error, out) from None
    with held:
        yield
