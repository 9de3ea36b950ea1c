"""Dataclasses and wire messages: what goes over comes back equal, for every type, and drift between the two is noticed."""

from __future__ import annotations

import dataclasses
import typing
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.cluster.types import HostStatus, TokenInfo
from gswarm.codec import dataclass_of, from_proto, to_plain, to_proto
from gswarm.errors import InvalidError
from gswarm.kinds import BY_KIND, BY_SLOT, wire_of
from gswarm.model.types import Placement
from gswarm.v1 import cluster_pb2, models_pb2

PAIRS = [(dataclass_of(slot), info.message) for slot, info in BY_SLOT.items()]
PAIRS += [(TokenInfo, cluster_pb2.TokenInfo), (HostStatus, cluster_pb2.StatusResponse)]

times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
scalars: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=8),
    int: st.integers(0, 2**31),
    float: st.floats(allow_nan=False, width=64),
    bool: st.booleans(),
    datetime: times,
}


def values(hint: Any, *, top: bool = True) -> st.SearchStrategy[Any]:
    """Values of a field's type; enums without UNKNOWN loss, None where allowed."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return st.none() | values(next(a for a in arguments if a is not type(None)))
    origin = typing.get_origin(hint)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is not None:
        return st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(hint)
    if dataclasses.is_dataclass(hint):
        return instances(hint)
    return scalars[hint]


def instances(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{f.name: values(hints[f.name]) for f in dataclasses.fields(cls)})


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda p: getattr(p, "__name__", str(p)))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_type_comes_back_equal(cls: Any, message: Any, data: st.DataObject) -> None:
    value = data.draw(instances(cls))
    wire = message.FromString(to_proto(value, message).SerializeToString())
    assert from_proto(wire, cls) == value


def test_an_unknown_enum_number_reads_as_unknown() -> None:
    wire = models_pb2.Placement.FromString(b"\x30\x63")  # phase = 99, from a newer host
    assert from_proto(wire, Placement).phase.value == "unknown"


def test_naive_times_and_nan_are_refused() -> None:
    from gswarm.model.types import Service

    with pytest.raises(InvalidError, match="time zone"):
        to_proto(Placement(changed_at=datetime(2026, 1, 1)), models_pb2.Placement)
    with pytest.raises(InvalidError, match="tokens_per_s"):
        to_proto(Service(tokens_per_s=float("nan")), models_pb2.Service)


def test_a_field_on_one_side_only_is_noticed() -> None:
    @dataclasses.dataclass(frozen=True)
    class Drifted:
        name: str = ""

    with pytest.raises(TypeError, match="role"):
        to_proto(Drifted(), cluster_pb2.TokenInfo)


def test_plain_data_has_words_and_utc_times() -> None:
    shown = to_plain(Placement(id="a", changed_at=datetime(2026, 1, 2, 3, 4, 5, 6000, UTC)))
    assert shown["changed_at"] == "2026-01-02T03:04:05.006Z"
    assert shown["phase"] == "unknown"


@given(st.sampled_from(sorted(BY_KIND)), st.text(max_size=300), st.integers(0, 2**64 - 1), st.integers(0, 40_000))
def test_an_object_written_field_by_field_reads_as_one_made_by_protobuf(
    kind: int, key: str, revision: int, size: int
) -> None:
    info = BY_KIND[kind]
    body = info.message()
    setattr(body, info.key_field or "strategy", "é" * size)
    made = cluster_pb2.Object(kind=info.kind, key=key, revision=revision)
    gone = cluster_pb2.Object(kind=info.kind, key=key, revision=revision, deleted=True)
    getattr(made, info.slot).CopyFrom(body)
    assert cluster_pb2.Object.FromString(wire_of(kind, key, revision, body.SerializeToString())) == made
    assert cluster_pb2.Object.FromString(wire_of(kind, key, revision, None)) == gone
