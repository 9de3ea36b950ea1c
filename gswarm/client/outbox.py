"""What happened on this node and the host may not know yet: kept on disk until it says it does."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from gswarm.v1 import agent_pb2

log = logging.getLogger("gswarm.agent")
BATCH = 256
RETRY_S = 1.0
"""Pause before a write that failed (a full disk) is tried again; what is to be written waits in memory."""


class Outbox:
    """Numbered reports in SQLite. Numbers grow for ever, also after all reports are deleted.

    `put` returns at once; a thread writes in groups and calls `written` after each commit.
    """

    def __init__(self, path: Path, written: Callable[[], None]) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS reports (seq INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL)")
        row = self._db.execute("SELECT id FROM identity").fetchone()
        if row is None:
            row = (uuid.uuid4().hex,)
            self._db.execute("INSERT INTO identity VALUES (?)", row)
        self.id: str = row[0]
        """Identity of this file: the host counts sequence numbers per outbox."""
        self._written = written
        self._lock = threading.Lock()
        self._pending: list[agent_pb2.Report] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, report: agent_pb2.Report) -> None:
        """Keep a report; its number is given when it is written."""
        with self._wake:
            self._pending.append(report)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closing:
                    self._wake.wait()
                batch, self._pending = self._pending, []
                if not batch:
                    return
            try:
                self._write(batch)
            except sqlite3.Error as error:
                log.error("reports cannot be written: %s; %d wait in memory", error, len(batch))
                with self._wake:
                    self._pending = batch + self._pending
                    if self._closing:
                        return
                    self._wake.wait(RETRY_S)
            else:
                self._written()

    def _write(self, batch: list[agent_pb2.Report]) -> None:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT INTO reports (body) VALUES (?)", [(r.SerializeToString(),) for r in batch])
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def after(self, seq: int) -> list[agent_pb2.Report]:
        """The next reports behind `seq`, in order, at most 256. Blocks briefly."""
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, body FROM reports WHERE seq > ? ORDER BY seq LIMIT ?", (seq, BATCH)
            ).fetchall()
        reports = []
        for number, body in rows:
            report = agent_pb2.Report.FromString(body)
            report.seq = number
            reports.append(report)
        return reports

    def last_seq(self) -> int:
        """The last number ever given."""
        with self._lock:
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reports'").fetchone()
        return int(row[0]) if row else 0

    def delete(self, seq: int) -> None:
        """Drop what the host has applied. Losing this in a crash only repeats reports it knows."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.execute("DELETE FROM reports WHERE seq <= ?", (seq,))

    def close(self) -> None:
        """Write what is pending, then close."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        with self._lock:  # a read in another thread must be over: SQLite crashes on a connection closed under it
            self._db.close()
