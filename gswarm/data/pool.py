"""A node's share of the data pool: one file in shared memory per chunk, named by digest."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gswarm.errors import ExhaustedError, GswarmError, InvalidError, NotFoundError

DIGEST = re.compile(r"[0-9a-f]{64}")
_WRITING = ".writing-"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Space for a chunk that is being written: `fd` is open for reading and writing, the pool owns it."""

    name: str
    path: Path
    size_bytes: int
    fd: int


class Pool:
    """Chunks of one node under `root`, a directory on shared memory (tmpfs) that survives the agent.

    Files rather than memfds: acknowledged chunks must outlive `kill -9` of the agent. A sealed file is 0400 and is
    handed out as a read-only descriptor; a mapping stays valid after the file is deleted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise InvalidError(f"{root} belongs to another user", next="remove it or set GSWARM_SHM_DIR")

    def reserve(self, size_bytes: int) -> Reservation:
        """Allocate `size_bytes` now, so that a full /dev/shm is an error here and not a SIGBUS while writing.

        Raises ExhaustedError when there is no room, leaving nothing behind.
        """
        if not 0 <= size_bytes < 1 << 63:
            raise InvalidError(f"a chunk of {size_bytes} bytes cannot be", field="size")
        name = _WRITING + secrets.token_hex(8)
        path = self.root / name
        fd = -1
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # someone may have cleaned up /dev/shm
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if size_bytes:
                os.posix_fallocate(fd, 0, size_bytes)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                path.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
                raise GswarmError(
                    "shared memory cannot be used", why=f"{self.root}: {error.strerror}", next="run gswarm doctor"
                ) from None
            raise ExhaustedError(
                f"no room for {size_bytes} bytes in shared memory",
                why=f"{self.free_bytes()} bytes are free under {self.root}",
                next="delete chunks no one needs (gswarm data list, gswarm data delete), or enlarge /dev/shm",
            ) from None
        return Reservation(name, path, size_bytes, fd)

    def abandon(self, reservation: Reservation) -> None:
        """Give reserved space back."""
        os.close(reservation.fd)
        reservation.path.unlink(missing_ok=True)

    def digest(self, reservation: Reservation) -> str:
        """BLAKE3 of what was written, hex. Blocks: call it in a thread."""
        from blake3 import blake3

        if not reservation.size_bytes:
            return blake3(b"").hexdigest()
        return blake3(max_threads=blake3.AUTO).update_mmap(reservation.path).hexdigest()

    def seal(self, reservation: Reservation, digest: str) -> bool:
        """Publish the written bytes under their digest; False when the pool already had them (nothing is kept twice)."""
        target = self._path(digest)
        os.fchmod(reservation.fd, 0o400)
        os.close(reservation.fd)
        if target.exists():
            reservation.path.unlink()
            return False
        reservation.path.rename(target)
        return True

    def open(self, digest: str) -> int:
        """A read-only descriptor of a chunk, which the caller closes. Raises NotFoundError."""
        try:
            return os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"chunk {digest[:16]} is not on this node") from None

    def path(self, digest: str) -> Path:
        """The file of a chunk, for a server that sends it. Raises NotFoundError."""
        if not (path := self._path(digest)).exists():
            raise NotFoundError(f"chunk {digest[:16]} is not on this node")
        return path

    def delete(self, digest: str) -> None:
        """Remove a chunk; who has it mapped keeps the pages."""
        self._path(digest).unlink(missing_ok=True)

    def __contains__(self, digest: str) -> bool:
        return bool(DIGEST.fullmatch(digest)) and self._path(digest).exists()

    def digests(self) -> Iterator[str]:
        """Every sealed chunk."""
        try:
            names = [path.name for path in self.root.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return iter(())  # cleaned away under us; what was there is then reported lost
        return (name for name in names if DIGEST.fullmatch(name))

    def drop_unfinished(self) -> int:
        """Remove what a killed agent left half-written; how many there were. Only at start."""
        left = [p for p in self.root.iterdir() if p.name.startswith(_WRITING)]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def free_bytes(self) -> int:
        """Room left on the file system."""
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize

    def _path(self, digest: str) -> Path:
        # A digest comes from a peer: never let it be a path.
        if not DIGEST.fullmatch(digest):
            raise InvalidError(f"{digest!r} is no BLAKE3 digest", field="digest")
        return self.root / digest
