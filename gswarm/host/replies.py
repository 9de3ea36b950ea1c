"""Replies kept beside the changes they tell of, so that a request that is sent again is answered, not repeated."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf import message_factory
from google.protobuf.message import Message

from gswarm.errors import RefusedError
from gswarm.host.database import Database, Rows, StoredReply

log = logging.getLogger("gswarm.host")
SWEEP = 10_000
"""After so many new replies those older than a day are dropped."""


class Asked(NamedTuple):
    """A request that may be sent again: who sent it under which id, and what it was."""

    actor: str
    request_id: str
    method: str
    digest: bytes
    reply_type: type[Message] | None


def asked(actor: str, request_id: str, method: str, request: Message | None) -> Asked:
    """What tells a request from others; its reply's type is that of the method's response."""
    if request is None:
        return Asked(actor, request_id, method, b"", None)
    return Asked(actor, request_id, method, _digest(request), _reply_type(request))


class Replies:
    """Those of the group under way, and behind them those on disk. Used in the writer's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._group: dict[tuple[str, str], StoredReply] = {}
        self._written = 0

    def begin_group(self) -> None:
        """Forget the replies of the group before: they are on disk, or were never given."""
        self._group.clear()

    def find(self, asked: Asked) -> Message | None:
        """What was answered to this very request. Raises RefusedError when its id was used for another one."""
        found = self._group.get((asked.actor, asked.request_id)) or self._database.reply(asked.actor, asked.request_id)
        if found is None:
            return None
        if found.method != asked.method or found.digest != asked.digest or asked.reply_type is None:
            raise RefusedError(
                f"request id {asked.request_id} was used for another request",
                why=f"it was a {found.method}",
                next="use a new id",
                field="request_id",
            )
        return asked.reply_type.FromString(found.reply)

    def keep(self, asked: Asked, reply: Message, now: datetime, rows: Rows) -> None:
        """Remember a reply for the rest of the group, and among the rows that are to be written."""
        body = reply.SerializeToString()
        self._group[asked.actor, asked.request_id] = StoredReply(asked.method, asked.digest, body)
        rows.replies.append((asked.actor, asked.request_id, asked.method, asked.digest, body, int(now.timestamp())))

    def written(self, rows: Rows) -> None:
        """Count what is now on disk, and now and then drop what is too old there, as soon as there is room for that."""
        self._written += len(rows.replies)
        if self._written <= SWEEP:
            return
        try:
            self._database.forget_replies()
        except sqlite3.Error as error:
            log.warning("replies older than a day are kept for now: %s", error)
        else:
            self._written = 0


def _digest(request: Message) -> bytes:
    """Identity of a request without its meta, which a retry may change."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("meta")
    return hashlib.blake2b(copy.SerializeToString(deterministic=True), digest_size=16).digest()


def _reply_type(request: Message) -> type[Message] | None:
    name = request.DESCRIPTOR.full_name
    if not name.endswith("Request"):
        return None
    descriptor: Any = request.DESCRIPTOR.file.pool.FindMessageTypeByName(name.removesuffix("Request") + "Response")
    return message_factory.GetMessageClass(descriptor)
