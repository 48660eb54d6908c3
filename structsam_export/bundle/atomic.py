"""Write to a temporary name, then rename: an interrupted run leaves the old artifact or none."""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from structsam.errors import UserError

_MARK = ".tmp-"


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; rename it to `final` when the block succeeds.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    temporary = final.with_name(f".{final.name}{_MARK}{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final)
        yield temporary
        os.replace(temporary, final)
    except OSError as error:
        raise as_user_error(error, final) from None
    finally:
        with suppress(OSError):  # what went wrong first is what the user should read
            temporary.unlink(missing_ok=True)


def write_text(final: Path, text: str) -> None:
    """Write UTF-8 `text` to `final` in one step that cannot be seen half done."""
    with staged_file(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(final: Path, data: bytes | memoryview) -> None:
    """Write `data` to `final` in one step that cannot be seen half done."""
    with staged_file(final) as temporary:
        temporary.write_bytes(data)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `final`; when the block succeeds it takes `final`'s place.

    A folder that was there before is replaced only then, and is kept when the block fails.

    Raises:
        UserError: the parent folder cannot be written or the disk is full.
    """
    temporary = final.with_name(f".{final.name}{_MARK}{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(final)
        temporary.mkdir()
        yield temporary
        if final.exists():
            outdated = final.with_name(f".{final.name}{_MARK}{os.getpid()}-old")
            os.replace(final, outdated)
            try:
                os.replace(temporary, final)
            except BaseException:
                os.replace(outdated, final)
                raise
            shutil.rmtree(outdated, ignore_errors=True)
        else:
            os.replace(temporary, final)
    except OSError as error:
        raise as_user_error(error, final) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be written, before work that would be lost; makes nothing.

    Raises:
        UserError: it, or the nearest folder above it that exists, is a file or read-only.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        code = errno.ENOTDIR
    elif not os.access(nearest, os.W_OK | os.X_OK):
        code = errno.EACCES
    else:
        return
    raise as_user_error(OSError(code, os.strerror(code)), folder)


def remove_leftovers(final: Path) -> None:
    """Delete temporary files and folders of `final` whose process has died (for example killed)."""
    for leftover in final.parent.glob(glob.escape(f".{final.name}{_MARK}") + "*"):
        owner = leftover.name.rpartition(_MARK)[2].partition("-")[0]
        mine = owner == str(os.getpid())  # of an earlier process: in containers numbers repeat
        if owner.isdigit() and (mine or not _process_is_alive(int(owner))):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _process_is_alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill(pid, 0) would end the process on Windows; keep the leftover
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


#: What a user can mend about a file: its path, its rights, the disk and its limits.
MENDABLE = {
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EEXIST", "EFBIG", "EISDIR", "ELOOP", "ENAMETOOLONG", "ENOENT",
        "ENOSPC", "ENOTDIR", "ENOTEMPTY", "EPERM", "EROFS",
    )
    if hasattr(errno, name)
}  # fmt: skip


def as_user_error(error: OSError, target: Path) -> Exception:
    """Return a `UserError` for what another folder or more space can mend, else `error` itself."""
    if error.errno not in MENDABLE:
        return error
    reason = error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"cannot write {target}: {reason}. Choose a folder with a shorter path")
    return UserError(
        f"cannot write {target}: {reason}. Choose a folder that you can write to and that has "
        "enough free space"
    )
