"""Pulling a chunk from another node's peer port straight into shared memory, hashed while it arrives."""

from __future__ import annotations

import http.client
import mmap
import queue
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass

from gswarm.data.pool import Pool
from gswarm.errors import RefusedError, UnreachableError

PIECE_BYTES = 4 << 20
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Source:
    """A node that has the chunk: where its peer port is and what opens it. `tls` None: plain (loopback only)."""

    node: str
    host: str
    port: int
    token: str
    tls: ssl.SSLContext | None = None


class Cancelled(Exception):
    """The pull was told to stop."""


def pull(
    pool: Pool,
    digest: str,
    size_bytes: int,
    source: Source,
    progress: Callable[[int], None],
    cancelled: threading.Event,
) -> None:
    """Fetch one chunk into `pool`; on any error the pool is as before.

    `progress` is called with the bytes so far, from this thread. Raises UnreachableError (try another source),
    RefusedError (wrong bytes came), ExhaustedError (no room), Cancelled. Blocks: one thread a pull.
    """
    reservation = pool.reserve(size_bytes)
    try:
        got = _receive(reservation.fd, digest, size_bytes, source, progress, cancelled)
        if got != digest:
            raise RefusedError(
                f"chunk {digest[:16]} came damaged from {source.node}",
                why=f"its digest is {got[:16]}",
                next=f"check memory and network of {source.node}; another holder is tried",
            )
        pool.seal(reservation, digest)
    except BaseException:
        if reservation.path.exists():
            pool.abandon(reservation)
        raise


def _receive(
    fd: int, digest: str, size: int, source: Source, progress: Callable[[int], None], cancelled: threading.Event
) -> str:
    from blake3 import blake3

    if not size:
        return blake3(b"").hexdigest()
    connection: http.client.HTTPConnection
    if source.tls:
        connection = http.client.HTTPSConnection(source.host, source.port, timeout=TIMEOUT_S, context=source.tls)
    else:
        connection = http.client.HTTPConnection(source.host, source.port, timeout=TIMEOUT_S)
    hasher, pieces = blake3(), queue.SimpleQueue[memoryview | None]()

    def hash_pieces() -> None:
        while (piece := pieces.get()) is not None:
            hasher.update(piece)
            piece.release()

    try:
        connection.request("GET", f"/chunks/{digest}", headers={"Authorization": f"Bearer {source.token}"})
        response = connection.getresponse()
        if response.status != 200:
            detail = response.read(300).decode(errors="replace")
            raise UnreachableError(f"{source.node} did not send chunk {digest[:16]}", why=f"{response.status} {detail}")
        if response.length != size:
            raise RefusedError(f"{source.node} offers {response.length} bytes for a chunk of {size}")
        with mmap.mmap(fd, size) as mapping, memoryview(mapping) as view:
            worker = threading.Thread(target=hash_pieces, name="chunk-hash", daemon=True)
            worker.start()
            try:
                done = 0
                while done < size:
                    if cancelled.is_set():
                        raise Cancelled
                    start, stop = done, min(done + PIECE_BYTES, size)
                    while done < stop:
                        with view[done:stop] as target:
                            if not (count := response.readinto(target)):
                                raise UnreachableError(f"{source.node} hung up after {done} of {size} bytes")
                        done += count
                    pieces.put(view[start:stop])
                    progress(done)
            finally:
                pieces.put(None)
                worker.join()
        return hasher.hexdigest()
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{source.node} cannot be reached", why=str(error) or type(error).__name__) from None
    finally:
        connection.close()
