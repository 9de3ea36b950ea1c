"""What is said over an agent's Unix socket: one JSON object a datagram, file descriptors beside it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from gswarm.errors import CLASSES, GswarmError, InvalidError

MAX_MESSAGE = 64 * 1024
"""Bytes of one datagram; bulk bytes travel as descriptors, never in it."""

SOCKET_NAME = "data.sock"


@dataclass(frozen=True, slots=True)
class Reserve:
    """Ask for space; answered by Reserved with a writable descriptor."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """`name` stands for the space until it is sealed or the connection ends."""

    name: str


@dataclass(frozen=True, slots=True)
class Seal:
    """The space is written: hash, publish, register. Answered by Sealed once the host has it durably."""

    reservation: str
    type: str
    request_id: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    name: str = ""
    holder: str = ""
    lease_s: float = 0.0
    token: str = ""
    """Who puts it: the caller's token, so that the log names them; empty: the agent itself."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The chunk as registered, a serialised gswarm.v1.Chunk in hex."""

    chunk: str


@dataclass(frozen=True, slots=True)
class Open:
    """Ask for a read-only descriptor of a chunk by digest; answered by Opened."""

    digest: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The descriptor rides beside this."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Something was wrong; the fields are those of GswarmError."""

    status: str
    what: str
    why: str = ""
    next: str = ""
    field: str = ""

    @staticmethod
    def of(error: GswarmError) -> Refused:
        """The wire form of an error."""
        return Refused(error.status, error.what, error.why, error.next, error.field)

    def error(self) -> GswarmError:
        """The error it carries."""
        cls = next((c for c in CLASSES if c.status == self.status), GswarmError)
        return cls(self.what, why=self.why, next=self.next, field=self.field)


Said = Reserve | Reserved | Seal | Sealed | Open | Opened | Refused
_BY_NAME: dict[str, type[Said]] = {c.__name__: c for c in (Reserve, Reserved, Seal, Sealed, Open, Opened, Refused)}
_CHECKS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "float": (int, float),
    "tuple[int, ...]": (tuple,),
}
S = TypeVar("S", Reserved, Sealed, Opened)


def pack(said: Said) -> bytes:
    """One datagram."""
    data = json.dumps({"": type(said).__name__, **asdict(said)}, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise InvalidError(
            "the request is too long for the agent's socket", why=f"{len(data)} bytes, {MAX_MESSAGE} fit"
        )
    return data


def unpack(data: bytes) -> Said:
    """What a datagram says; InvalidError when it is none of ours."""
    try:
        body = json.loads(data)
        cls = _BY_NAME[body.pop("")]
        known = {f.name: f.type for f in fields(cls)}
        if "shape" in body:
            body["shape"] = tuple(int(n) for n in body["shape"])
        said = cls(**body)
        for name, kind in known.items():
            if not isinstance(getattr(said, name), _CHECKS[str(kind)]):
                raise TypeError(f"{name} is not {kind}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidError("the agent's socket got a message it does not know", why=str(error)) from None
    return said


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A spelling of `path` short enough for a Unix socket address (108 bytes), valid inside the block."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def ask(sock: socket.socket, said: Said, expected: type[S]) -> tuple[S, int | None]:
    """Send one request and wait for its answer: (answer, descriptor or None). Raises what the agent refused. Blocks."""
    sock.sendall(pack(said))
    data, descriptors, _, _ = socket.recv_fds(sock, MAX_MESSAGE, 1)
    if not data:
        raise ConnectionResetError("the agent closed the connection")
    answer = unpack(data)
    if isinstance(answer, Refused):
        raise answer.error()
    if not isinstance(answer, expected):
        raise InvalidError(f"the agent answered {type(answer).__name__} where {expected.__name__} was due")
    return answer, descriptors[0] if descriptors else None
