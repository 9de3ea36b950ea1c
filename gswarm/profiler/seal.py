"""Child process: turns the journals of a recording into its sealed files. The host never imports pyarrow itself.

Run as `python -m gswarm.profiler.seal DIRECTORY [NUMBER]`: one segment, or all that nobody writes. It tells the
counts of the recording as JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gswarm.errors import GswarmError
from gswarm.profiler import manifest as manifests
from gswarm.profiler.journal import Record, frame
from gswarm.profiler.manifest import OLD_JOURNAL, Files
from gswarm.profiler.segments import Item, JournalSegment, folded

LIST_WEIGHT = 64 << 10
"""A full list is kept as a seek point when the changes since the last one weigh as much as it, or this: see `_blocks`."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a recording holds once it is sealed."""

    ticks: int
    changes: int
    size_bytes: int
    """Without journals that are still written."""
    lost: tuple[str, ...]
    """What its journals had lost before, in sentences."""


def seal(directory: Path, number: int | None = None) -> Sealed:
    """Seal one segment, or all that nobody writes. Raises GswarmError, OSError or ValueError; then nothing is changed."""
    from gswarm.profiler.recording import Recording

    manifests.adopt(directory)
    lost: list[str] = []
    for found in manifests.segments(directory):
        if found.journal.name == OLD_JOURNAL or (number is not None and found.number != number):
            continue
        if not found.sealed:
            lost += seal_segment(found)
        found.journal.unlink(missing_ok=True)
    with Recording.open(directory) as recording:
        ticks, changes = recording.counts()
    size = sum(path.lstat().st_size for path in directory.iterdir() if not path.name.startswith(("journal", ".")))
    return Sealed(ticks, changes, size, tuple(lost))


def seal_segment(found: Files) -> list[str]:
    """Write a segment's samples, events and state, the state last: with it the segment is sealed. What was lost."""
    from gswarm.profiler.parquet import footer_crc, synced, write_events, write_metrics

    with found.journal.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        segment = JournalSegment(found.journal, found.number)
        try:
            sampled = segment.sampled
            lost = list(segment.damage)
            if sampled.unread:
                lost.append(f"{sampled.unread} ticks of {found.journal.name} had no schema and were left out")
            parts = [path.with_name(f".{path.name}.part") for path in (found.metrics, found.events, found.state)]
            try:
                rows = write_metrics(parts[0], segment.slices(), segment.schemas())
                write_events(parts[1], segment.event_rows())
                summary = {
                    "start_us": min([segment.start_us, *(int(g.times_us[0]) for g in sampled.groups)]),
                    "end_us": max(segment.end_us, *(int(g.times_us[-1]) for g in sampled.groups), 0),
                    "ticks": segment.ticks,
                    "changes": segment.changes,
                    "rows": rows,
                    "metrics_bytes": parts[0].stat().st_size if rows else 0,
                    "footers": {
                        path.name: footer_crc(part)
                        for part, path in zip(parts, (found.metrics, found.events), strict=False)
                        if part.is_file()
                    },
                    "devices": sorted({device for group in sampled.groups for device in group.layout.device_ids}),
                    "clock_offsets_us": sampled.offsets,
                    "lost": lost,
                }
                _write_state(parts[2], segment, summary)
                synced(parts[2])
                for part, path in zip(parts, (found.metrics, found.events, found.state), strict=True):
                    if part.is_file():
                        part.replace(path)
                        _sync_directory(path.parent)
            finally:
                for part in parts:
                    part.unlink(missing_ok=True)
        finally:
            segment.close()
    return lost


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_state(path: Path, segment: JournalSegment, summary: dict[str, object]) -> None:
    with path.open("wb") as file:
        for block in _blocks(segment):
            inner = b"".join(frame(item.kind, item.time_us, item.payload) for item in block)
            file.write(frame(Record.BLOCK, block[0].time_us, zlib.compress(inner, 9)))
        file.write(frame(Record.SUMMARY, segment.end_us, json.dumps(summary).encode()))


def _blocks(segment: JournalSegment) -> Iterator[list[Item]]:
    """The state from seek point to seek point.

    A list says nothing that the changes before it did not, so of those that were written every minute only so many stay
    that reading from one to the next costs about as much as reading the list itself.
    """
    from heapq import merge

    items = (item for point in range(len(segment.points)) for item in segment.items(point))
    block: list[Item] = []
    since = 0
    broken = False
    schemas: dict[bytes, Item] = {}
    for item in merge(items, segment.sampled.reasons, key=lambda item: item.time_us):
        if item.kind is Record.LIST:
            if block and not broken and since < max(len(item.payload), LIST_WEIGHT):
                continue
            if block:
                yield block
            reasons = folded(segment.sampled.reasons, item.time_us)
            block, since, broken = [item], 0, False
            if reasons:
                block.append(Item(item.time_us, Record.REASONS, json.dumps(reasons).encode()))
            continue
        if item.kind is Record.SCHEMA:
            if item.payload in schemas:
                continue
            schemas[item.payload] = item
        # What comes after a gap does not follow from what was before it.
        broken = broken or item.kind is Record.GAP
        block.append(item)
        since += len(item.payload)
    if block:
        yield block


def main() -> None:
    """Seal what the command line names; one line on standard error when it cannot be."""
    directory = Path(sys.argv[1])
    os.nice(10)  # the host, its agents and what they serve come first
    try:
        told = seal(directory, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    except BlockingIOError:
        sys.exit("it is being recorded or sealed by another process")
    except (GswarmError, OSError, ValueError) as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main()
