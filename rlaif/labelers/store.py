"""The label store: every answer to a labeler, kept in one SQLite file that several processes share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.errors import UserError

_VERSION = 1
_TIMEOUT = 120.0  # seconds to wait for another process's transaction
_CHUNK = 500  # SQLite limits the variables per statement
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, kind TEXT NOT NULL, answer TEXT NOT NULL,"
    " checksum TEXT NOT NULL, created REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, holder TEXT NOT NULL, expires REAL NOT NULL)"
    " WITHOUT ROWID",
    f"PRAGMA user_version = {_VERSION}",
)


@dataclass(frozen=True)
class Claim:
    """What `LabelStore.claim` found: the answers already there, and whether the rest is now ours.

    `stale` are the keys of the rest that have an answer which counts as missing. If the claim is not granted, `held`
    says who holds the keys, and for how much longer.
    """

    found: dict[str, dict[str, Any]]
    granted: bool
    stale: frozenset[str] = frozenset()
    held: str = ""


Stale = Callable[[str, dict[str, Any]], bool]
"""(key, its answer) -> whether the answer counts as missing."""


class LabelStore:
    """Answers by key, in WAL mode; a batch is one transaction, so kill -9 loses and repeats nothing.

    A process claims the keys of a batch before it asks the backend. A claim ends when its answers are written, when
    its holder is no longer alive (same host), or `claim_seconds` after its holder last renewed it; a live holder does
    so several times within that period (a container that was killed is another host). Should two processes answer one
    key all the same, both use the first answer written.

    Raises UserError if the file is damaged or is not a label store.
    """

    def __init__(self, path: Path, *, claim_seconds: float) -> None:
        self.path = path
        self._claim_seconds = claim_seconds
        self._holder = f"{socket.gethostname()}|{os.getpid()}|{uuid.uuid4().hex}"
        self._renewal: threading.Thread | None = None
        self._closed = threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._guarded():
            self._connection = sqlite3.connect(path, timeout=_TIMEOUT, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _open(self) -> None:
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != _VERSION and (version or tables):
                raise UserError(
                    f"{self.path}: not a label store of this version; move the file aside or set another path"
                )
            if self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise self._damaged("the file's structure is broken")
            for statement in _SCHEMA if version == 0 else ():
                self._connection.execute(statement)
        self._switch_to_wal()

    def _switch_to_wal(self) -> None:
        """WAL needs exclusive access for a moment and does not wait for it by itself."""
        deadline = time.time() + _TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.time() > deadline:
                    raise
                time.sleep(0.02)

    def get(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The stored answers among `keys`; an unknown key is simply absent."""
        with self._guarded():
            return self._read(keys)

    def claim(self, keys: Sequence[str], *, stale: Stale | None = None) -> Claim:
        """Claim what is missing among `keys`, all or nothing; a `stale` answer is missing, but stays until `put`.

        Not granted if another live process holds one of them; its answer will then appear, or its claim will end.
        Granted with nothing to do if every key has an answer.
        """
        with self._guarded(), self._transaction():
            stored = self._read(keys)
            old = frozenset(key for key, answer in stored.items() if stale is not None and stale(key, answer))
            found = {key: answer for key, answer in stored.items() if key not in old}
            missing = [key for key in keys if key not in found]
            claims = self._rows("SELECT holder, expires FROM claims", missing)
            elsewhere = [row for row in claims if self._held_elsewhere(*row)]
            if elsewhere:
                return Claim(found, False, old, _held(*elsewhere[0]))
            expires = time.time() + self._claim_seconds
            self._connection.executemany(
                "INSERT OR REPLACE INTO claims VALUES (?, ?, ?)",
                [(key, self._holder, expires) for key in missing],
            )
        if missing and self._renewal is None:
            self._renewal = threading.Thread(target=self._renew, daemon=True, name="claims")
            self._renewal.start()
        return Claim(found, True, old)

    def _renew(self) -> None:
        """Keep this process's claims alive while it computes, over a connection of this thread's own."""
        connection = sqlite3.connect(self.path, timeout=_TIMEOUT, isolation_level=None)
        while not self._closed.wait(self._claim_seconds / 4):
            # If it fails once, for instance because the disk is full, the next time is early enough.
            with contextlib.suppress(sqlite3.Error):
                connection.execute(
                    "UPDATE claims SET expires = ? WHERE holder = ?",
                    (time.time() + self._claim_seconds, self._holder),
                )
        connection.close()

    def put(self, kind: str, answers: Mapping[str, dict[str, Any]], *, replace: Collection[str] = ()) -> None:
        """Write a batch's answers and drop their claims in one transaction.

        A key's first answer stays, except for the keys to `replace`. Raises ValueError for what strict JSON cannot
        hold; a log-probability of -inf is written as `{"float": "-inf"}`.
        """
        rows = []
        for key, answer in answers.items():
            text = json.dumps(_strict(answer), ensure_ascii=False, sort_keys=True, allow_nan=False)
            rows.append((key, kind, text, _checksum(key, text), time.time()))
        old = [(key,) for key in answers if key in replace]
        with self._guarded(), self._transaction():
            self._connection.executemany("DELETE FROM answers WHERE key = ?", old)
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._connection.executemany("DELETE FROM claims WHERE key = ?", [(key,) for key in answers])

    def release(self, keys: Sequence[str]) -> None:
        """Give up this process's claims on `keys` (their calls failed)."""
        with self._guarded(), self._transaction():
            self._connection.executemany(
                "DELETE FROM claims WHERE key = ? AND holder = ?", [(key, self._holder) for key in keys]
            )

    def __len__(self) -> int:
        with self._guarded():
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        self._closed.set()
        if self._renewal is not None:
            self._renewal.join()
        self._connection.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = {}
        for key, text, checksum in self._rows("SELECT key, answer, checksum FROM answers", keys):
            if checksum != _checksum(key, text):
                raise self._damaged(f"the answer {key[:12]} does not match its checksum")
            found[key] = json.loads(text, object_hook=_float)
        return found

    def _rows(self, query: str, keys: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of `query` whose key is in `keys`."""
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            yield from self._connection.execute(f"{query} WHERE key IN ({marks})", chunk)

    def _held_elsewhere(self, holder: str, expires: float) -> bool:
        if holder == self._holder or expires < time.time():
            return False
        host, pid, _ = holder.split("|")
        return host != socket.gethostname() or _alive(int(pid))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "malformed" in str(error) or "no such" in str(error):
                raise self._damaged(str(error)) from error
            raise UserError(
                f"{self.path}: the label store cannot be used ({error}); free the file or its disk"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self.path}: the label store is damaged ({why}); move the file aside and run again to make its"
            " labels anew"
        )


_ZERO = {"float": "-inf"}  # the logarithm of 0: strict JSON has no infinity, and null means not reported


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return _ZERO if value == -math.inf else value


def _float(value: dict[str, Any]) -> Any:
    return -math.inf if value == _ZERO else value


def _checksum(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()[:16]


def _held(holder: str, expires: float) -> str:
    host, pid, _ = holder.split("|")
    left = max(expires - time.time(), 0)
    return f"process {pid} on {host} (for another {left:.0f} s, unless it renews its claim)"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
