"""Files that cannot be written: one sentence for the user instead of a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlaif.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def written_below(root: str) -> Iterator[None]:
    """What cannot be written below the directory `root` becomes a UserError that says what helps.

    Artifacts are renamed into place when whole, and partial ones are resumed: once there is room, the same command
    gives the same numbers.
    """
    folder = Path(root).expanduser().absolute()
    try:
        yield
    except OSError as error:
        if error.filename and not folder.is_dir():
            raise UserError(f"{_closed(folder, error)} (paths.root={root})") from error
        raise not_written(error) from error


def not_written(error: OSError) -> UserError:
    """The sentence for a file that could not be written. Any other failure is raised as it is."""
    if error.errno in _FULL:
        return UserError(
            f"{error.filename or 'a file'} could not be written ({error.strerror}): make room, or write another "
            "paths.root; the same command continues from there"
        )
    if error.errno in _CLOSED and error.filename:
        return UserError(_closed(error.filename, error))
    raise error


def _closed(place: object, error: OSError) -> str:
    return f"{place} could not be written ({error.strerror}): paths.root must be a writable directory"
