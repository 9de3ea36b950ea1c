"""The pool on one node: what is sealed stays, what is not leaves nothing behind, readers share the writer's pages."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from gswarm.data import wire
from gswarm.data.pool import Pool
from gswarm.errors import ExhaustedError, InvalidError, NotFoundError, RefusedError


def store(pool: Pool, data: bytes) -> str:
    reservation = pool.reserve(len(data))
    os.pwrite(reservation.fd, data, 0)
    digest = pool.digest(reservation)
    pool.seal(reservation, digest)
    return digest


def test_a_sealed_chunk_is_read_only_and_survives_a_new_pool(tmp_path: Path) -> None:
    digest = store(Pool(tmp_path), b"hello")
    again = Pool(tmp_path)
    again.drop_unfinished()
    fd = again.open(digest)
    try:
        assert os.pread(fd, 10, 0) == b"hello"
        with pytest.raises(OSError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)
    assert digest == blake3(b"hello").hexdigest()


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    assert store(pool, b"same") == store(pool, b"same")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mapping_outlives_deletion(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    digest = store(pool, np.arange(10, dtype="<i8").tobytes())
    array = np.memmap(pool.path(digest), dtype="<i8", mode="r")
    pool.delete(digest)
    assert digest not in pool
    assert array.sum() == 45


def test_no_room_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    with pytest.raises(ExhaustedError, match="no room"):
        pool.reserve(1 << 60)
    assert not list(tmp_path.iterdir())


def test_unfinished_writes_are_dropped_at_start(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    digest = store(pool, b"kept")
    os.close(pool.reserve(100).fd)
    assert Pool(tmp_path).drop_unfinished() == 1
    assert list(pool.digests()) == [digest]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "/x"])
def test_a_digest_is_never_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(InvalidError):
        Pool(tmp_path).open(digest)
    assert digest not in Pool(tmp_path)


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Pool(tmp_path).open("a" * 64)


words = st.text(max_size=20)
said = st.one_of(
    st.builds(wire.Reserve, st.integers(0, 2**62)),
    st.builds(wire.Reserved, words),
    st.builds(wire.Seal, words, words, words, words, st.lists(st.integers(0, 9)).map(tuple), words, words),
    st.builds(wire.Open, words),
    st.builds(wire.Refused, words, words, words, words, words),
)


@given(said)
def test_what_is_said_is_what_is_heard(message: wire.Said) -> None:
    assert wire.unpack(wire.pack(message)) == message


@given(st.binary(max_size=200) | said.map(wire.pack).map(lambda data: data[:-1]))
def test_noise_on_the_socket_is_refused_not_raised(data: bytes) -> None:
    with pytest.raises(InvalidError):
        wire.unpack(data)


def test_a_refusal_keeps_its_class_and_words() -> None:
    refusal = wire.Refused.of(RefusedError("held", why="by x", next="release it", field="id"))
    back = refusal.error()
    assert isinstance(back, RefusedError)
    assert (back.what, back.why, back.next, back.field) == ("held", "by x", "release it", "id")


def test_socket_paths_of_any_length_can_be_bound(tmp_path: Path) -> None:
    import socket

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    server, client = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with server, client:
        with wire.reachable(deep / "data.sock") as address:
            server.bind(address)
            server.listen()
            client.connect(address)
        assert (deep / "data.sock").is_socket()
