"""Filtering, sorting and limiting objects before they are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gswarm.errors import InvalidError
from gswarm.kinds import BY_KIND
from gswarm.names import near
from gswarm.v1 import cluster_pb2
from gswarm.views import fields

Value = str | int | float | bool


def enum_word(descriptor: Any, number: int) -> str:
    """The short lower-case name of an enum value: SERVICE_PHASE_READY is "ready"."""
    prefix = descriptor.values[0].name.removesuffix("UNKNOWN")
    value = descriptor.values_by_number.get(number)
    return str(value.name).removeprefix(prefix).lower() if value else str(number)


def _field(cls: type[Message], name: str, option: str) -> Any:
    """A field by its name or by the heading of its column, in any case. Raises InvalidError with near names."""
    known, headings = cls.DESCRIPTOR.fields_by_name, fields(cls.DESCRIPTOR.name)
    word = name.lower()
    found = known.get(name) or known.get(headings.get(word, word))
    if found is None:
        told = near(word, [*known, *headings]) or f"there are {', '.join(headings)} and the fields of --output json"
        raise InvalidError(f"a {cls.DESCRIPTOR.name.lower()} has no field {name!r}", next=told, field=option)
    return found


def field_reader(
    cls: type[Message], name: str, option: str = "filter"
) -> Callable[[Message], Value | tuple[Value, ...]]:
    """A function that reads one field as something comparable. Raises InvalidError with near names."""
    descriptor = _field(cls, name, option)
    name = descriptor.name
    enum = descriptor.enum_type

    def plain(value: object) -> Value:
        if isinstance(value, Timestamp):
            return value.seconds + value.nanos / 1e9
        if enum is not None and isinstance(value, int):
            return enum_word(enum, value)
        if isinstance(value, Message):
            return str(value)
        return value  # type: ignore[return-value]

    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return lambda message: tuple(f"{key}={value}" for key, value in getattr(message, name).items())
    if descriptor.is_repeated:
        return lambda message: tuple(plain(item) for item in getattr(message, name))
    return lambda message: plain(getattr(message, name))


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def predicate(kind: int, filters: Sequence[cluster_pb2.Filter]) -> Callable[[Message], bool]:
    """Whether an object of `kind` passes every filter. Raises InvalidError for unknown fields."""
    cls = BY_KIND[kind].message
    tests: list[Callable[[Message], bool]] = []
    for wanted in filters:
        if wanted.op in (cluster_pb2.Filter.OP_EQUAL, cluster_pb2.Filter.OP_NOT_EQUAL):
            _check_value(_field(cls, wanted.field, "filter"), wanted.value)
        tests.append(_test(field_reader(cls, wanted.field), wanted.op, wanted.value))
    return lambda message: all(test(message) for test in tests)


def _check_value(field: Any, value: str) -> None:
    """Raises InvalidError for a word that the field never has: no rows would say that there are none now."""
    if field.enum_type is not None:
        words = [enum_word(field.enum_type, number) for number in sorted(field.enum_type.values_by_number) if number]
    elif field.type == FieldDescriptor.TYPE_BOOL:
        words = ["true", "false"]
    else:
        return
    if value not in (*words, "unknown"):
        raise InvalidError(
            f"{field.name} is never {value!r}",
            next=near(value, words) or f"there are: {', '.join(words)}",
            field="filter",
        )


def _test(
    read: Callable[[Message], Value | tuple[Value, ...]], op: cluster_pb2.Filter.Op.ValueType, value: str
) -> Callable[[Message], bool]:
    def values(message: Message) -> tuple[Value, ...]:
        found = read(message)
        return found if isinstance(found, tuple) else (found,)

    if op == cluster_pb2.Filter.OP_EQUAL:
        return lambda message: any(_text(item) == value for item in values(message))
    if op == cluster_pb2.Filter.OP_NOT_EQUAL:
        return lambda message: all(_text(item) != value for item in values(message))
    if op == cluster_pb2.Filter.OP_CONTAINS:
        part = value.lower()
        return lambda message: any(part in _text(item).lower() for item in values(message))
    raise InvalidError(
        "a filter needs an operator", next="write field=value, field!=value or field~part", field="filter"
    )


def sort_key(kind: int, sort: str) -> tuple[Callable[[Message], tuple[object, ...]], bool]:
    """(key function, descending) of a sort word such as "-created_at"; empty sorts by key, numbers as numbers."""
    info = BY_KIND[kind]
    name = sort.removeprefix("-") or info.key_field
    if not name:
        return (lambda _: ()), False
    read = field_reader(info.message, name, "sort")

    def key(message: Message) -> tuple[object, ...]:
        value = read(message)
        if isinstance(value, str):
            return (0, int(value), "") if value.isdecimal() else (1, 0, value)
        return (0, value)

    return key, sort.startswith("-")


def select(
    kind: int, rows: Iterable[tuple[Message, bytes]], request: cluster_pb2.WatchRequest
) -> tuple[list[tuple[Message, bytes]], int]:
    """The rows of a list request in order, and how many its limit left out."""
    passes = predicate(kind, request.filters) if request.filters else None
    keys = frozenset(request.keys)
    key_field = BY_KIND[kind].key_field
    chosen = [
        row
        for row in rows
        if (passes is None or passes(row[0])) and (not keys or str(getattr(row[0], key_field, "plan")) in keys)
    ]
    if request.sort or request.limit:
        key, descending = sort_key(kind, request.sort)
        chosen.sort(key=lambda row: key(row[0]), reverse=descending)
    if request.limit and len(chosen) > request.limit:
        return chosen[: request.limit], len(chosen) - request.limit
    return chosen, 0
