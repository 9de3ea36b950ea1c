"""Dataclasses to protobuf messages and back, by field name; one table per pair, built at first use."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gswarm.errors import InvalidError

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Convert = Callable[[Any], Any]

_TYPE_MODULES = {
    "node": "cluster",
    "device": "cluster",
    "event": "cluster",
    "model": "model",
    "placement": "model",
    "service": "model",
    "chunk": "data",
    "workflow": "queue",
    "task": "queue",
    "lane": "queue",
    "plan": "queue",
    "session": "profiler",
    "alert": "alert",
}


@functools.cache
def dataclass_of(slot: str) -> type:
    """The dataclass of a kind by its slot in `Object.body`: "service" is gswarm.model.types.Service."""
    import importlib

    module = importlib.import_module(f"gswarm.{_TYPE_MODULES[slot]}.types")
    cls: type = getattr(module, slot.capitalize())
    return cls


def to_proto(value: object, cls: type[M]) -> M:
    """The message of a dataclass. Raises InvalidError for naive times and NaN, TypeError for a pair that does not match."""
    message = cls()
    _fill(value, message)
    return message


def from_proto(message: Message, cls: type[T]) -> T:
    """The dataclass of a message; absent times and messages are None, times are aware UTC."""
    kind: Any = type(message)
    wanted: Any = cls
    readers = _readers(kind, wanted)
    return cls(**{name: read(message) for name, read in readers})


@functools.cache
def _readers(message: Any, cls: Any) -> tuple[tuple[str, Convert], ...]:
    hints = typing.get_type_hints(cls)
    fields = message.DESCRIPTOR.fields_by_name
    ours = {field.name for field in dataclasses.fields(cls)}
    if unmatched := ours ^ set(fields.keys()):
        raise TypeError(f"{cls.__name__} and {message.DESCRIPTOR.name} differ in {', '.join(sorted(unmatched))}")
    return tuple((name, _reader(fields[name], hints[name])) for name in fields)


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def _reader(field: Any, hint: Any) -> Convert:
    name = field.name
    if _is_map(field):
        return lambda message: dict(getattr(message, name))
    one = _one_reader(field, hint)
    if field.is_repeated:
        return lambda message: tuple(one(item) for item in getattr(message, name))
    if field.has_presence:
        return lambda message: one(getattr(message, name)) if message.HasField(name) else None
    return lambda message: one(getattr(message, name))


def _inner(hint: Any) -> Any:
    """The class inside `X | None` or `tuple[X, ...]`."""
    for part in typing.get_args(hint):
        if part not in (type(None), Ellipsis):
            return part
    return hint


def _one_reader(field: Any, hint: Any) -> Convert:
    inner = _inner(hint)
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return lambda stamp: datetime.fromtimestamp(stamp.seconds, UTC).replace(microsecond=stamp.nanos // 1000)
        return lambda item: from_proto(item, inner)
    if field.enum_type is not None:
        by_number = _enum_table(field.enum_type, inner)
        unknown = inner("unknown")
        return lambda number: by_number.get(number, unknown)
    return _same


def _same(value: Any) -> Any:
    return value


def _enum_table(descriptor: Any, cls: type[Enum]) -> Mapping[int, Enum]:
    prefix = descriptor.values[0].name.removesuffix("UNKNOWN")
    words = {value.number: value.name.removeprefix(prefix).lower() for value in descriptor.values}
    known = {member.value for member in cls}
    if missing := set(words.values()) ^ known:
        raise TypeError(f"{cls.__name__} and {descriptor.name} differ in {', '.join(sorted(map(str, missing)))}")
    return {number: cls(word) for number, word in words.items()}


def _writers_of(value: Any, message: Any) -> Any:
    ours: Any = type(value)
    theirs: Any = type(message)
    return _writers(ours, theirs)


def _fill(value: object, message: Message) -> None:
    for name, write in _writers_of(value, message):
        write(getattr(value, name), message)


@functools.cache
def _writers(cls: Any, message: Any) -> tuple[tuple[str, Callable[[Any, Message], None]], ...]:
    _readers(message, cls)  # checks that the two match
    hints = typing.get_type_hints(cls)
    fields = message.DESCRIPTOR.fields_by_name
    return tuple((name, _writer(fields[name], hints[name])) for name in fields)


def _writer(field: Any, hint: Any) -> Callable[[Any, Message], None]:
    name = field.name
    convert = _scalar(field, hint)

    def set_map(value: Mapping[str, str], message: Message) -> None:
        getattr(message, name).update(value)

    def set_messages(value: tuple[object, ...], message: Message) -> None:
        for item in value:
            _fill(item, getattr(message, name).add())

    def set_times(value: tuple[datetime, ...], message: Message) -> None:
        getattr(message, name).extend(_stamp(item, name) for item in value)

    def set_list(value: tuple[Any, ...], message: Message) -> None:
        getattr(message, name).extend(convert(item) for item in value)

    def set_message(value: object, message: Message) -> None:
        if value is not None:
            getattr(message, name).SetInParent()
            _fill(value, getattr(message, name))

    def set_time(value: datetime | None, message: Message) -> None:
        if value is not None:
            getattr(message, name).CopyFrom(_stamp(value, name))

    def set_scalar(value: Any, message: Message) -> None:
        if value is not None:
            setattr(message, name, convert(value))

    if _is_map(field):
        return set_map
    time = field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp"
    if field.is_repeated:
        return set_times if time else set_messages if field.message_type is not None else set_list
    return set_time if time else set_message if field.message_type is not None else set_scalar


def _scalar(field: Any, hint: Any) -> Convert:
    name = field.name
    if field.enum_type is not None:
        numbers = {member: number for number, member in _enum_table(field.enum_type, _inner(hint)).items()}
        return lambda value: numbers[value]
    if field.type == FieldDescriptor.TYPE_DOUBLE:

        def number(value: float) -> float:
            if math.isnan(value):
                raise InvalidError(f"{name} is not a number", why="NaN is no value; absent ones are None", field=name)
            return value

        return number
    return _same


def _stamp(value: datetime, name: str) -> Timestamp:
    if value.tzinfo is None:
        raise InvalidError(f"{name} has no time zone", next="give a UTC time", field=name)
    stamp = Timestamp()
    stamp.FromDatetime(value.astimezone(UTC))
    return stamp


def to_plain(value: object) -> Any:
    """A dataclass as JSON-ready data: enums as words, times as ISO 8601 with Z, None stays None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
