"""Filtering, sorting and limiting objects before they are encoded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gswarm import units
from gswarm.errors import InvalidError
from gswarm.kinds import BY_KIND
from gswarm.names import near
from gswarm.v1 import cluster_pb2
from gswarm.views import SHORT, fields

T = TypeVar("T")
Value = str | int | float | bool
_NUMBERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
        FieldDescriptor.CPPTYPE_DOUBLE,
        FieldDescriptor.CPPTYPE_FLOAT,
    }
)


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
        tests.append(_test(_field(cls, wanted.field, "filter"), field_reader(cls, wanted.field), wanted))
    return lambda message: all(test(message) for test in tests)


def _equal(field: Any, value: str) -> Callable[[Value], bool]:
    """Whether an item is what was written: as JSON has it, or as a column shows it.

    Raises InvalidError for what the field never is: no rows would say that there are none now.
    """
    if field.cpp_type in _NUMBERS:
        return _equal_number(field.name, value)
    if field.enum_type is not None:
        words = [enum_word(field.enum_type, number) for number in sorted(field.enum_type.values_by_number) if number]
        value = next((word for word in words if SHORT.get(word) == value), value)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        words = ["true", "false"]
    else:
        return lambda item: _text(item) == value
    if value not in (*words, "unknown"):
        raise InvalidError(
            f"{field.name} is never {value!r}",
            next=near(value, words) or f"there are: {', '.join(words)}",
            field="filter",
        )
    return lambda item: _text(item) == value


def _equal_number(name: str, value: str) -> Callable[[Value], bool]:
    is_size = "bytes" in name.split("_")
    with contextlib.suppress(ValueError):
        number = int(value) if value.isdecimal() else float(value)
        return lambda item: item == number
    if is_size:
        with contextlib.suppress(ValueError):
            # Columns round: a card of 79.6G is shown as 80G, and found by it.
            shown = units.size(units.parse_size(value))
            return lambda item: units.size(item) == shown  # type: ignore[arg-type]
    raise InvalidError(
        f"{name} is never {value!r}",
        next="write a size, such as 80G, or bytes" if is_size else "write a number",
        field="filter",
    )


def _test(
    field: Any, read: Callable[[Message], Value | tuple[Value, ...]], wanted: cluster_pb2.Filter
) -> Callable[[Message], bool]:
    op, value = wanted.op, wanted.value

    def values(message: Message) -> tuple[Value, ...]:
        found = read(message)
        return found if isinstance(found, tuple) else (found,)

    if op == cluster_pb2.Filter.OP_EQUAL:
        equal = _equal(field, value)
        return lambda message: any(equal(item) for item in values(message))
    if op == cluster_pb2.Filter.OP_NOT_EQUAL:
        equal = _equal(field, value)
        return lambda message: not any(equal(item) for item in values(message))
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
    kind: int, rows: Iterable[tuple[Message, T]], request: cluster_pb2.WatchRequest
) -> tuple[list[tuple[Message, T]], int]:
    """The rows of a list request in order, each with what came beside it, and how many its limit left out."""
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
