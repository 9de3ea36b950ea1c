"""One operation's view of the host's state, and its edits: what the writer commits, or drops whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gswarm.host.database import Database
from gswarm.host.state import Entry
from gswarm.kinds import BY_KIND, BY_MESSAGE, M, key_of
from gswarm.v1 import common_pb2

R = TypeVar("R")
Operation = Callable[["Transaction"], R]
WATCHED_EVENTS = 1_000


@dataclass(slots=True)
class Edits:
    """What one operation (or its group so far) has changed. None is a deletion."""

    objects: dict[tuple[int, str], Message | None] = field(default_factory=dict)
    entries: dict[tuple[int, str], Entry | None] = field(default_factory=dict)
    """The same as it will be held, once the operation has ended well."""
    archived: dict[tuple[int, str], tuple[int, str, str, bytes]] = field(default_factory=dict)
    small: dict[str, bytes | None] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def absorb(self, other: Edits) -> None:
        """Take what a later operation of the group has changed."""
        self.objects.update(other.objects)
        self.entries.update(other.entries)
        self.counters.update(other.counters)
        if other.archived:
            self.archived.update(other.archived)
        if other.small:
            self.small.update(other.small)


@dataclass(slots=True)
class Committed:
    """The state as the last group left it: entries by kind and key, counters, and where small values are read."""

    database: Database
    counters: dict[str, int]
    entries: dict[int, dict[str, Entry]] = field(default_factory=lambda: {kind: {} for kind in BY_KIND})

    def absorb(self, edits: Edits) -> None:
        """Take what a group has changed, once it is on disk."""
        for (kind, key), entry in edits.entries.items():
            if entry is None:
                self.entries[kind].pop(key, None)
            else:
                self.entries[kind][key] = entry
        self.counters.update(edits.counters)


class Transaction:
    """One operation's view: the committed state plus what its group has changed before it.

    Use it only inside the operation. What `get` and `list` give is shared: change a copy from `edit`, then `put` it.
    """

    def __init__(
        self, committed: Committed, group: Edits, edits: Edits, *, revision: int, now: datetime, actor: str, cause: str
    ) -> None:
        """`edits` takes what the operation changes; `group` is what those before it in its group have changed."""
        self._committed, self._group, self._edits = committed, group, edits
        self.revision = revision
        """The revision this operation will have once committed."""
        self.now = now
        self.stamp = Timestamp(seconds=int(now.timestamp()), nanos=now.microsecond * 1000)
        """`now` as messages take it: `task.created_at.CopyFrom(tx.stamp)`."""
        self.actor = actor
        self.cause = cause

    def get(self, cls: type[M], key: str) -> M | None:
        """The object or None."""
        return self._find(BY_MESSAGE[cls].kind, key)  # type: ignore[return-value]

    def _find(self, kind: int, key: str) -> Message | None:
        slot = (kind, key)
        for edits in (self._edits, self._group):
            if slot in edits.objects:
                return edits.objects[slot]
        entry = self._committed.entries[kind].get(key)
        return entry.message if entry is not None else None

    def edit(self, cls: type[M], key: str) -> M | None:
        """A private copy to change and `put`, or None."""
        found = self.get(cls, key)
        if found is None:
            return None
        copy = cls()
        copy.CopyFrom(found)
        return copy

    def list(self, cls: type[M]) -> Iterator[M]:
        """All objects of a kind; may be changed while iterating."""
        kind = BY_MESSAGE[cls].kind
        edited: dict[str, Message | None] = {}
        for edits in (self._group, self._edits):
            edited.update({key: message for (k, key), message in edits.objects.items() if k == kind})
        for key, entry in self._committed.entries[kind].items():
            message = edited.pop(key, entry.message)
            if message is not None:
                yield message  # type: ignore[misc]
        for message in edited.values():
            if message is not None:
                yield message  # type: ignore[misc]

    def put(self, message: Message) -> None:
        """Insert or replace an object under its own key. The message must not be changed afterwards."""
        self._edits.objects[BY_MESSAGE[type(message)].kind, key_of(message)] = message

    def delete(self, cls: type[Message], key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        kind = BY_MESSAGE[cls].kind
        if self._find(kind, key) is not None:
            self._edits.objects[kind, key] = None

    def archive(self, cls: type[Message], key: str) -> None:
        """Take an object with a decimal key out of the watched state; `Store.archived` still finds it."""
        kind = BY_MESSAGE[cls].kind
        message = self._find(kind, key)
        if message is None:
            return
        parent = str(getattr(message, "workflow_id", ""))
        self._edits.archived[kind, key] = (int(key), key, parent, message.SerializeToString())
        self._edits.objects[kind, key] = None

    def next_id(self, name: str) -> int:
        """The next number of a durable counter, from 1."""
        mine, group, kept = self._edits.counters, self._group.counters, self._committed.counters
        number = (mine.get(name) or group.get(name) or kept.get(name, 0)) + 1
        mine[name] = number
        return number

    def get_value(self, name: str) -> bytes | None:
        """A small durable value that no one watches."""
        for edits in (self._edits, self._group):
            if name in edits.small:
                return edits.small[name]
        return self._committed.database.small(name)

    def put_value(self, name: str, value: bytes | None) -> None:
        """Set a small value, or remove it with None."""
        self._edits.small[name] = value

    def list_values(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Small values by name prefix, sorted."""
        kept = dict(self._committed.database.smalls(prefix))
        merged: dict[str, bytes | None] = {**kept, **self._group.small, **self._edits.small}
        return ((k, v) for k, v in sorted(merged.items()) if v is not None and k.startswith(prefix))

    def event(
        self,
        type: str,
        message: str,
        *,
        subject: Message | None = None,
        severity: common_pb2.Severity.ValueType = common_pb2.SEVERITY_INFO,
        cause: str | None = None,
    ) -> str:
        """Append to the event log in this very transaction; the entry's id."""
        number = self.next_id("event")
        event = common_pb2.Event(
            id=str(number),
            type=type,
            severity=severity,
            actor=self.actor,
            cause=self.cause if cause is None else cause,
            message=message,
        )
        # Merged, for a message that was given its time field by field takes 350 bytes more, and a thousand are kept.
        event.MergeFrom(common_pb2.Event(time=self.stamp))
        if subject is not None:
            event.subject_kind = BY_MESSAGE[subject.__class__].kind
            event.subject = key_of(subject)
        self.put(event)
        if number > WATCHED_EVENTS:
            self._edits.objects[common_pb2.KIND_EVENT, str(number - WATCHED_EVENTS)] = None
        return event.id
