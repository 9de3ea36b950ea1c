"""The protobuf encoding where messages are put together from bytes that are there already (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

import functools

VARINT, LENGTH_DELIMITED = 0, 2


@functools.lru_cache(maxsize=4096)
def varint(number: int) -> bytes:
    """A number from 0 up: seven bits a byte, least first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    """What stands before a field."""
    return varint(number << 3 | wire_type)


def length_prefixed(number: int, body: bytes) -> bytes:
    """A length-delimited field; concatenated fields of a message are that message."""
    return b"".join((tag(number, LENGTH_DELIMITED), varint(len(body)), body))
