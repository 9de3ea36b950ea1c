"""The wire contract: against the committed baseline no number is reused, no type changed, nothing undocumented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "proto/gswarm/v1").glob("*.proto"))


def _baseline() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString((ROOT / "proto/baseline.binpb").read_bytes())


def _current() -> descriptor_pb2.FileDescriptorSet:
    from gswarm.v1 import agent_pb2, alerts_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2

    result = descriptor_pb2.FileDescriptorSet()
    for module in (agent_pb2, alerts_pb2, cluster_pb2, common_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2):
        module.DESCRIPTOR.CopyToProto(result.file.add())
    return result


Field = tuple[str, int, int, str, bool]  # name, type, label, type name, explicit presence


def fields(files: descriptor_pb2.FileDescriptorSet) -> dict[tuple[str, int], Field]:
    """(message, number) -> what readers of the wire rely on."""

    def walk(prefix: str, message: descriptor_pb2.DescriptorProto) -> Iterator[tuple[tuple[str, int], Field]]:
        name = f"{prefix}.{message.name}"
        for field in message.field:
            yield (
                (name, field.number),
                (field.name, field.type, field.label, field.type_name, field.proto3_optional),
            )
        for nested in message.nested_type:
            yield from walk(name, nested)

    return {key: value for file in files.file for message in file.message_type for key, value in walk("", message)}


def enum_values(files: descriptor_pb2.FileDescriptorSet) -> dict[tuple[str, int], str]:
    return {(e.name, v.number): v.name for file in files.file for e in file.enum_type for v in e.value}


def methods(files: descriptor_pb2.FileDescriptorSet) -> dict[tuple[str, str], tuple[str, str, bool, bool]]:
    return {
        (s.name, m.name): (m.input_type, m.output_type, m.client_streaming, m.server_streaming)
        for file in files.file
        for s in file.service
        for m in s.method
    }


@pytest.mark.parametrize("read", [fields, enum_values, methods])
def test_nothing_released_was_changed(read: object) -> None:
    assert callable(read)
    before, now = read(_baseline()), read(_current())
    broken = {key: (value, now.get(key)) for key, value in before.items() if now.get(key) != value}
    assert not broken, "add a field with a new number instead; `make baseline` only before a release"


def test_every_enum_starts_with_unknown() -> None:
    for file in _current().file:
        for enum in file.enum_type:
            assert enum.value[0].number == 0
            assert enum.value[0].name.endswith("_UNKNOWN"), enum.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_quantities_carry_their_unit(path: Path) -> None:
    """A number whose name lacks a unit has a comment that gives one."""
    lines = path.read_text().splitlines()
    suspicious = re.compile(
        r"\b(?:double|uint32|uint64|int64) (\w*(?:size|time|duration|memory|power|interval|lease|limit)\w*) ="
    )
    unit = re.compile(r"_(?:s|ms|us|bytes|mw|permille|c|hz)$|limit$|before_id$")
    for number, line in enumerate(lines):
        if match := suspicious.search(line):
            assert unit.search(match[1]) or lines[number - 1].strip().startswith(
                "//"
            ), f"{path.name}:{number + 1}: {match[1]}"


def test_the_check_notices_a_reused_number() -> None:
    """Break a copy on purpose: the comparison must see it."""
    altered = _current()
    message = next(m for f in altered.file for m in f.message_type if m.name == "Service")
    message.field[0].name = "renamed"
    message.field[1].type = descriptor_pb2.FieldDescriptorProto.TYPE_UINT64
    before, after = fields(_current()), fields(altered)
    assert sum(before[key] != after[key] for key in before) == 2
