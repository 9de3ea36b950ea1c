"""The host's SQLite file: opening, migrating, loading, and writing one group of changes per commit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gswarm.errors import ExhaustedError, GswarmError, RefusedError

VERSION = 2
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "lustre", "ceph", "glusterfs", "fuse.sshfs"}
)
REPLY_KEPT_S = 86_400


class DiskFullError(ExhaustedError):
    """There is no room for a change; nothing of it was kept."""


def _to_1(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
    db.execute(
        "CREATE TABLE objects (kind INTEGER, key TEXT, revision INTEGER NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (kind, key)) WITHOUT ROWID"
    )
    db.execute(
        "CREATE TABLE archive (kind INTEGER, number INTEGER, key TEXT NOT NULL, parent TEXT NOT NULL, body BLOB NOT NULL,"
        " PRIMARY KEY (kind, number, key)) WITHOUT ROWID"
    )
    db.execute("CREATE TABLE small (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
    db.execute(
        "CREATE TABLE replies (actor TEXT, request_id TEXT, method TEXT NOT NULL, digest BLOB NOT NULL,"
        " reply BLOB NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (actor, request_id)) WITHOUT ROWID"
    )
    db.execute("CREATE INDEX replies_at ON replies (at)")


def _to_2(db: sqlite3.Connection) -> None:
    # Events never change: they are written once, into the archive, instead of moving there as they age.
    event = 12
    db.execute(
        "INSERT OR REPLACE INTO archive SELECT kind, CAST(key AS INTEGER), key, '', body FROM objects WHERE kind = ?",
        (event,),
    )
    db.execute("DELETE FROM objects WHERE kind = ?", (event,))


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_to_1, _to_2)
"""MIGRATIONS[n] takes a file from version n to n + 1, inside a transaction."""


@dataclass(frozen=True, slots=True)
class StoredReply:
    """What a request was answered, to be answered again."""

    method: str
    digest: bytes
    reply: bytes


@dataclass(slots=True)
class Rows:
    """What one group of operations comes to: of several changes to one row only the last. None removes it."""

    objects: dict[tuple[int, str], tuple[int, bytes] | None] = field(default_factory=dict)
    archived: list[tuple[int, int, str, str, bytes]] = field(default_factory=list)
    small: dict[str, bytes | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    replies: list[tuple[str, str, str, bytes, bytes, int]] = field(default_factory=list)


class Database:
    """One connection, used by one thread at a time; the directory is locked for as long as it is open."""

    def __init__(self, directory: Path) -> None:
        """Open or create `directory`/host.db.

        Raises RefusedError when another host has it, when it lies on a network file system (WAL does not work
        there), or when a newer gswarm wrote it.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_network(directory)
        self.path = directory / "host.db"
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _lock(directory))
            try:
                self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
                opened.callback(self._db.close)
                self.path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute("PRAGMA cache_size=-512")
                self._migrate()
                self.epoch = self._next_epoch()
            except sqlite3.DatabaseError as error:
                raise GswarmError(
                    f"{self.path} cannot be used",
                    why=str(error),
                    next="restore a backup beside it, or move it away to start afresh",
                ) from None
            self._opened = opened.pop_all()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise RefusedError(
                f"{self.path} was written by a newer gswarm",
                why=f"its format is {version}, this one knows {VERSION}",
                next="upgrade gswarm",
            )
        if 0 < version < VERSION:
            with sqlite3.connect(self.path.with_suffix(f".v{version}.bak")) as backup:
                self._db.backup(backup)
            backup.close()
        for step in range(version, VERSION):
            self._db.execute("BEGIN EXCLUSIVE")
            MIGRATIONS[step](self._db)
            self._db.execute(f"PRAGMA user_version={step + 1}")
            self._db.execute("COMMIT")

    def _next_epoch(self) -> int:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("INSERT INTO meta VALUES ('epoch', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")
        (epoch,) = self._db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        self._db.execute("DELETE FROM replies WHERE at < unixepoch() - ?", (REPLY_KEPT_S,))
        self._db.execute("COMMIT")
        return int(epoch)

    def objects(self) -> Iterator[tuple[int, str, int, bytes]]:
        """Every watched object: kind, key, revision, body; numbers in keys come in their order."""
        return self._db.execute("SELECT kind, key, revision, body FROM objects ORDER BY kind, length(key), key")

    def small(self, name: str) -> bytes | None:
        """A small value; there are many, and hardly any is read again before the next start."""
        row = self._db.execute("SELECT value FROM small WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def smalls(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Every small value whose name begins so."""
        return self._db.execute("SELECT name, value FROM small WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))

    def counters(self) -> Iterator[tuple[str, int]]:
        """Every counter."""
        return self._db.execute("SELECT substr(name, 9), value FROM meta WHERE name LIKE 'counter:%'")

    def reply(self, actor: str, request_id: str) -> StoredReply | None:
        """What this request was answered within the last day."""
        row = self._db.execute(
            "SELECT method, digest, reply FROM replies WHERE actor = ? AND request_id = ?", (actor, request_id)
        ).fetchone()
        return StoredReply(*row) if row else None

    def archived(self, kind: int, before: int, limit: int, parent: str) -> list[bytes]:
        """Bodies of archived objects numbered below `before` (0: all), newest first; of one `parent` unless empty."""
        rows = self._db.execute(
            "SELECT body FROM archive WHERE kind = ? AND (? = 0 OR number < ?) AND (? = '' OR parent = ?)"
            " ORDER BY number DESC LIMIT ?",
            (kind, before, before, parent, parent, limit),
        )
        return [body for (body,) in rows]

    def write(self, rows: Rows) -> None:
        """Make one group durable; returns after the disk has it.

        Raises ExhaustedError on a full disk and GswarmError on any other failure; then nothing of it is written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._many(
                "DELETE FROM objects WHERE kind = ? AND key = ?",
                [slot for slot, row in rows.objects.items() if row is None],
            )
            self._many(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)",
                [(*slot, *row) for slot, row in rows.objects.items() if row is not None],
            )
            self._many("INSERT OR REPLACE INTO archive VALUES (?, ?, ?, ?, ?)", rows.archived)
            self._many(
                "DELETE FROM small WHERE name = ?", [(name,) for name, value in rows.small.items() if value is None]
            )
            self._many(
                "INSERT OR REPLACE INTO small VALUES (?, ?)",
                [(name, value) for name, value in rows.small.items() if value is not None],
            )
            self._many("INSERT OR REPLACE INTO meta VALUES ('counter:' || ?, ?)", rows.counters.items())
            self._many("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", rows.replies)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            # A quota, and a limit on a file's size, are told as an error of writing.
            if getattr(error, "sqlite_errorcode", 0) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE):
                raise DiskFullError(
                    "the host's disk is full",
                    why=f"{self.path}: {error}",
                    next="free space there; nothing of this change was kept",
                ) from None
            raise GswarmError("the host could not store the change", why=f"{self.path}: {error}") from None
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _many(self, statement: str, rows: Collection[tuple[object, ...]]) -> None:
        if rows:
            self._db.executemany(statement, rows)

    def forget_replies(self) -> None:
        """Drop replies older than a day. Raises sqlite3.Error: this, too, needs room."""
        self._db.execute("DELETE FROM replies WHERE at < unixepoch() - ?", (REPLY_KEPT_S,))

    def close(self) -> None:
        """Close the file, then let another host have the directory."""
        self._opened.close()


def _lock(directory: Path) -> int:
    fd = os.open(directory / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RefusedError(
            f"another host uses {directory}",
            next="stop it (gswarm host stop), or give this one its own GSWARM_STATE_DIR",
        ) from None
    return fd


def refuse_network(directory: Path) -> None:
    """Raise RefusedError when `directory` lies on a network file system, and name a local one to use."""
    import psutil

    real = directory.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if real.is_relative_to(p.mountpoint)]
    mount = max(mounts, key=lambda p: len(p.mountpoint), default=None)
    if mount is not None and mount.fstype in NETWORK_FILE_SYSTEMS:
        free = shutil.disk_usage("/var/tmp").free >> 30
        raise RefusedError(
            f"the state cannot live in {directory}",
            why=f"that is {mount.fstype}, where SQLite's write-ahead log does not work",
            next=f"set GSWARM_STATE_DIR=/var/tmp/gswarm-{os.getuid()} ({free} GiB free)",
        )
