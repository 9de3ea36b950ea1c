"""Putting and reading chunks on this machine, through the agent's Unix socket: mapped, never copied through a message."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gswarm.data import codecs, wire
from gswarm.data.types import ChunkType
from gswarm.errors import UnreachableError
from gswarm.v1 import data_pb2

COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Label:
    """What a chunk is put with: a name, a first holder and its lease (seconds, 0: the default), and who puts it."""

    name: str = ""
    holder: str = ""
    lease_s: float = 0.0
    request_id: str = ""
    token: str = ""


@contextlib.contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    """A connection to the agent that listens at `path`. Raises UnreachableError when none does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            with wire.reachable(path) as address:
                sock.connect(address)
        except OSError as error:
            raise UnreachableError(
                "no agent answers on this machine",
                why=f"{path}: {error.strerror}",
                next="start one with gswarm up, or gswarm client connect HOST:8090",
            ) from None
        yield sock
    except (BrokenPipeError, ConnectionResetError) as error:
        raise UnreachableError("the agent went away", why=str(error), next="try again; nothing was stored") from None
    finally:
        sock.close()


def put_value(path: Path, value: object, label: Label) -> data_pb2.Chunk:
    """Store a Python value; the chunk as registered. Blocks: call it in a thread."""
    payload = codecs.encode(value)

    def fill(fd: int) -> None:
        view = payload.buffer
        while view.nbytes:
            view = view[os.pwrite(fd, view[: 1 << 30], payload.size_bytes - view.nbytes) :]

    return _put(path, payload.size_bytes, fill, payload.type, payload.dtype, payload.shape, label)


def put_file(path: Path, file: codecs.FilePayload, label: Label) -> data_pb2.Chunk:
    """Store a file's bytes; the kernel copies them. Blocks."""

    def fill(fd: int) -> None:
        done = 0
        with file.path.open("rb") as source:
            while done < file.size_bytes:
                step = min(COPY_BYTES, file.size_bytes - done)
                sent = os.sendfile(fd, source.fileno(), file.offset + done, step)
                if not sent:
                    raise EOFError(f"{file.path} became shorter while it was read")
                done += sent

    return _put(path, file.size_bytes, fill, file.type, file.dtype, file.shape, label)


def _put(
    path: Path,
    size: int,
    fill: Callable[[int], None],
    type_: ChunkType,
    dtype: str,
    shape: tuple[int, ...],
    label: Label,
) -> data_pb2.Chunk:
    with connection(path) as sock:
        reserved, fd = wire.ask(sock, wire.Reserve(size), wire.Reserved)
        if fd is None:
            raise UnreachableError("the agent gave no descriptor", next="run gswarm doctor")
        try:
            fill(fd)
        finally:
            os.close(fd)
        seal = wire.Seal(
            reserved.name,
            type_.value,
            label.request_id,
            dtype,
            shape,
            label.name,
            label.holder,
            label.lease_s,
            label.token,
        )
        sealed, _ = wire.ask(sock, seal, wire.Sealed)
    return data_pb2.Chunk.FromString(bytes.fromhex(sealed.chunk))


class Mapped:
    """A chunk mapped read-only: `buffer` is its bytes, `value()` what was put, without a copy where the type allows.

    Close it, or use it as a context manager, when no view of it is needed any more.
    """

    def __init__(self, fd: int, chunk: data_pb2.Chunk) -> None:
        self.chunk = chunk
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None
        os.close(fd)
        self.buffer = memoryview(self._map) if self._map else memoryview(b"")

    def value(self) -> object:
        """Bytes as a memoryview, JSON as data, arrays as read-only numpy views."""
        kind = ChunkType(data_pb2.ChunkType.Name(self.chunk.type).removeprefix("CHUNK_TYPE_").lower())
        return codecs.decode(kind, self.buffer, self.chunk.dtype, tuple(self.chunk.shape))

    def close(self) -> None:
        """Unmap, unless a view is still in use: then the last view does."""
        with contextlib.suppress(BufferError):
            self.buffer.release()
            if self._map:
                self._map.close()

    def __enter__(self) -> Mapped:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_chunk(path: Path, chunk: data_pb2.Chunk) -> Mapped:
    """Map a chunk that this node holds. Raises NotFoundError. Blocks for microseconds."""
    with connection(path) as sock:
        _, fd = wire.ask(sock, wire.Open(chunk.digest), wire.Opened)
    if fd is None:
        raise UnreachableError("the agent gave no descriptor", next="run gswarm doctor")
    return Mapped(fd, chunk)


def write_file(mapped: Mapped, target: Path) -> None:
    """Write a chunk to a file, whole or not at all; arrays get their .npy header back. Blocks."""
    temporary = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            if mapped.chunk.type == data_pb2.CHUNK_TYPE_NUMPY:
                out.write(codecs.npy_header(mapped.chunk.dtype, tuple(mapped.chunk.shape)))
            out.write(mapped.buffer)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
