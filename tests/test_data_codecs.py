"""Chunk codecs: every value comes back equal, and what cannot be held is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gswarm.data.codecs import decode, encode, inspect_file, npy_header
from gswarm.data.types import ChunkType
from gswarm.errors import InvalidError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
arrays = hnp.arrays(
    dtype=hnp.integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.boolean_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.unicode_string_dtypes(),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)


@given(json_values)
def test_json_round_trip(value: object) -> None:
    payload = encode(value)
    assert payload.type is ChunkType.JSON
    assert decode(payload.type, payload.buffer) == value


@given(st.binary())
def test_bytes_round_trip(value: bytes) -> None:
    payload = encode(value)
    assert (payload.type, bytes(payload.buffer)) == (ChunkType.BYTES, value)


@given(arrays)
def test_arrays_come_back_equal_and_read_only(value: np.ndarray) -> None:
    payload = encode(value)
    back = decode(payload.type, payload.buffer, payload.dtype, payload.shape)
    assert isinstance(back, np.ndarray)
    assert (back.dtype, back.shape, back.tobytes()) == (value.dtype, value.shape, value.tobytes())
    assert not back.flags.writeable


def test_an_array_is_a_view_of_the_chunk() -> None:
    payload = encode(np.arange(1000, dtype="<f4"))
    source = np.frombuffer(payload.buffer, np.uint8)
    back = decode(payload.type, payload.buffer, payload.dtype, payload.shape)
    assert isinstance(back, np.ndarray)
    assert np.shares_memory(back, source)


@pytest.mark.parametrize("value", [np.array([object()]), np.zeros(2, [("a", "i4")]), float("nan"), {1, 2}, object()])
def test_what_cannot_be_held_exactly_is_refused(value: object) -> None:
    with pytest.raises(InvalidError):
        encode(value)


@given(arrays)
def test_wrong_shape_is_refused(value: np.ndarray) -> None:
    payload = encode(value)
    with pytest.raises(InvalidError):
        decode(payload.type, payload.buffer, payload.dtype, (*payload.shape, 2, 3) if value.size else (7,))


def test_npy_files_become_arrays_and_come_back(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    found = inspect_file(tmp_path / "a.npy")
    assert (found.type, found.dtype, found.shape) == (ChunkType.NUMPY, ">i2", (2, 3, 4))
    body = (tmp_path / "a.npy").read_bytes()[found.offset :]
    (tmp_path / "b.npy").write_bytes(npy_header(found.dtype, found.shape) + body)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)


def test_bad_files_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", np.arange(10))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-3])
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "bad.json").write_text('{"a": 1,\n oops}')
    for name, why in (("cut.npy", "cut"), ("pickled.npy", "dtype"), ("bad.json", "line 2")):
        with pytest.raises(InvalidError, match=why):
            inspect_file(tmp_path / name)
    with pytest.raises(InvalidError, match="not a file"):
        inspect_file(tmp_path / "missing")


def test_json_type_is_by_suffix_or_by_word(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([1]))
    assert inspect_file(tmp_path / "x.json").type is ChunkType.JSON
    assert inspect_file(tmp_path / "x.json", ChunkType.FILE).type is ChunkType.FILE
