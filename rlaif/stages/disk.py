"""Files that cannot be written, as a user's affair: one sentence instead of a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlaif.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def written_below(root: str) -> Iterator[None]:
    """Make the directory `root`; what cannot be written within becomes a UserError that says what helps.

    Artifacts are renamed into place when whole, and partial ones go on: once there is room, the same command gives
    the same numbers.
    """
    folder = Path(root).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno in _FULL:
            raise UserError(
                f"{place} could not be written ({error.strerror}): make room, or write another paths.root; the same "
                "command goes on from there"
            ) from error
        if error.errno in _CLOSED and Path(str(place)).is_relative_to(folder):
            raise UserError(
                f"{place} could not be written ({error.strerror}): paths.root={root} must be a directory that can be "
                "written to"
            ) from error
        raise
