"""The kinds of watched objects: wire message, wire slot and key field of each, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import Message

from gswarm.v1 import alerts_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2
from gswarm.wire import LENGTH_DELIMITED, VARINT, tag, varint

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class KindInfo:
    """`slot` is the field of `Object.body`; `key_field` is empty for the one object of its kind."""

    kind: common_pb2.Kind.ValueType
    slot: str
    message: type[Message]
    key_field: str


_TABLE = (
    KindInfo(common_pb2.KIND_NODE, "node", cluster_pb2.Node, "name"),
    KindInfo(common_pb2.KIND_DEVICE, "device", cluster_pb2.Device, "id"),
    KindInfo(common_pb2.KIND_MODEL, "model", models_pb2.Model, "name"),
    KindInfo(common_pb2.KIND_PLACEMENT, "placement", models_pb2.Placement, "id"),
    KindInfo(common_pb2.KIND_SERVICE, "service", models_pb2.Service, "name"),
    KindInfo(common_pb2.KIND_CHUNK, "chunk", data_pb2.Chunk, "id"),
    KindInfo(common_pb2.KIND_WORKFLOW, "workflow", queue_pb2.Workflow, "id"),
    KindInfo(common_pb2.KIND_TASK, "task", queue_pb2.Task, "id"),
    KindInfo(common_pb2.KIND_LANE, "lane", queue_pb2.Lane, "device_id"),
    KindInfo(common_pb2.KIND_PLAN, "plan", queue_pb2.Plan, ""),
    KindInfo(common_pb2.KIND_SESSION, "session", profiler_pb2.Session, "name"),
    KindInfo(common_pb2.KIND_EVENT, "event", common_pb2.Event, "id"),
    KindInfo(common_pb2.KIND_ALERT, "alert", alerts_pb2.Alert, "id"),
)
BY_KIND: Mapping[int, KindInfo] = MappingProxyType({info.kind: info for info in _TABLE})
BY_MESSAGE: Mapping[type[Message], KindInfo] = MappingProxyType({info.message: info for info in _TABLE})
BY_SLOT: Mapping[str, KindInfo] = MappingProxyType({info.slot: info for info in _TABLE})


def key_of(message: Message) -> str:
    """The key under which `message` is kept."""
    field = BY_MESSAGE[type(message)].key_field
    return str(getattr(message, field)) if field else "plan"


def wire_of(kind: int, key: str, revision: int, body: bytes | None) -> bytes:
    """A serialised `Object` around a serialised message; None: one that is deleted.

    Written field by field, for each change is wrapped once: the body is appended in the bytes that are on the disk,
    not parsed and serialised again.
    """
    name = key.encode()
    head = (_KINDS[kind], varint(len(name)), name, _REVISION, varint(revision))
    return b"".join((*head, _DELETED) if body is None else (*head, _BODIES[kind], varint(len(body)), body))


def _tag(field: str, wire_type: int) -> bytes:
    return tag(cluster_pb2.Object.DESCRIPTOR.fields_by_name[field].number, wire_type)


_KINDS: Mapping[int, bytes] = {
    i.kind: _tag("kind", VARINT) + varint(i.kind) + _tag("key", LENGTH_DELIMITED) for i in _TABLE
}
_REVISION = _tag("revision", VARINT)
_DELETED = _tag("deleted", VARINT) + varint(1)
_BODIES: Mapping[int, bytes] = {i.kind: _tag(i.slot, LENGTH_DELIMITED) for i in _TABLE}


def body_of(obj: cluster_pb2.Object) -> Message:
    """The message inside a wire object; ValueError if it was deleted."""
    if not (slot := obj.WhichOneof("body")):
        raise ValueError(f"object {obj.key} carries no body")
    message: Message = getattr(obj, slot)
    return message
