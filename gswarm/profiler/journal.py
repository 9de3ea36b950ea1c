"""The files of a recording's state: framed records that are whole or not there, whatever byte the power went at."""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

FORMAT = 2
"""1: one journal, kept for ever. 2: numbered segments, each a journal until it is sealed."""
_HEAD = struct.Struct("<4sIIBq")
_MAGIC = b"gsJ\x01"
MAX_PAYLOAD = 256 << 20


class Record(IntEnum):
    """What a record holds."""

    SCHEMA = 1
    """A MetricSchema."""
    TICK = 2
    """A SampleTick."""
    BATCH = 3
    """A WatchResponse with one operation's changes."""
    LIST = 4
    """A WatchResponse with everything: a seek point."""
    GAP = 5
    """Text: why nothing was recorded since the record before."""
    BLOCK = 6
    """Of a sealed segment: records from a seek point to the next, deflated (RFC 1950)."""
    SUMMARY = 7
    """Of a sealed segment: what it holds, as JSON."""
    REASONS = 8
    """Of a sealed segment: why values are NA from here on, as JSON of device to metric to reason."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record: its host time (microseconds since the epoch) and where its payload lies."""

    kind: Record
    time_us: int
    offset: int
    size: int


def frame(kind: Record, time_us: int, payload: bytes) -> bytes:
    """A record as bytes: magic, length, crc32 of kind, time and payload, kind, time, payload."""
    crc = zlib.crc32(payload, zlib.crc32(struct.pack("<Bq", kind, time_us)))
    return _HEAD.pack(_MAGIC, len(payload), crc, kind, time_us) + payload


class Writer:
    """Appends records; one write and one fdatasync a call. Blocks: call it in a thread."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a torn record at the end (a crash) is cut off first.

        The file is locked while it is open, so that nobody seals what is still written. Raises OSError.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.last_us = whole = 0
            """Time of the last record, microseconds since the epoch; 0: none."""
            for found in scan(path.read_bytes())[0]:
                whole, self.last_us = found.offset + found.size, max(self.last_us, found.time_us)
            os.ftruncate(self._fd, whole)
            os.lseek(self._fd, whole, os.SEEK_SET)
        except OSError:
            os.close(self._fd)
            raise
        self.size = whole

    def append(self, records: bytes) -> None:
        """Make records durable. On an error (disk full) the file is as before and OSError is raised."""
        try:
            view = memoryview(records)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self.size)
            os.lseek(self._fd, self.size, os.SEEK_SET)
            raise
        self.size += len(records)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def scan(data: bytes) -> tuple[list[Frame], int]:
    """All whole records of a journal's bytes, and how many bytes belong to none (torn or damaged)."""
    frames = list(_walk(data))
    whole = sum(found.size + _HEAD.size for found in frames)
    return frames, len(data) - whole


def _walk(data: bytes) -> Iterator[Frame]:
    at = 0
    while at + _HEAD.size <= len(data):
        magic, size, crc, kind, time_us = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + size
        if (
            magic == _MAGIC
            and size <= MAX_PAYLOAD
            and end <= len(data)
            and kind in Record._value2member_map_
            and zlib.crc32(memoryview(data)[at + _HEAD.size : end], zlib.crc32(struct.pack("<Bq", kind, time_us)))
            == crc
        ):
            yield Frame(Record(kind), time_us, at + _HEAD.size, size)
            at = end
            continue
        # Damaged here: go on at the next thing that looks like a record.
        at = data.find(_MAGIC, at + 1)
        if at < 0:
            return
