"""What can go wrong, as classes with codes: each says what happened, why, and what to do next."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The one table of exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    REFUSED = 5
    TIMED_OUT = 124
    INTERRUPTED = 130


class GswarmError(Exception):
    """An error meant for a person.

    `what` happened, `why`, and what to do `next`; `field` names the offending input when there is one.
    `code` is the exit code, `status` the name of the gRPC status it travels as, `http` the REST status.
    """

    code: ClassVar[ExitCode] = ExitCode.FAILED
    status: ClassVar[str] = "UNKNOWN"
    http: ClassVar[int] = 500

    def __init__(self, what: str, *, why: str = "", next: str = "", field: str = "") -> None:
        self.what, self.why, self.next, self.field = what, why, next, field
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f": {self.why}")
        if self.next:
            command = self.next.startswith("gswarm ")
            parts.append(f". Run {self.next}" if command else f". {self.next[0].upper()}{self.next[1:]}")
        return "".join(parts)


class InvalidError(GswarmError):
    """Input that can never be right; refused whole."""

    code, status, http = ExitCode.USAGE, "INVALID_ARGUMENT", 422


class UnauthenticatedError(GswarmError):
    """No token, or one the host does not know."""

    code, status, http = ExitCode.REFUSED, "UNAUTHENTICATED", 401


class ForbiddenError(GswarmError):
    """The token's role does not allow it."""

    code, status, http = ExitCode.REFUSED, "PERMISSION_DENIED", 403


class NotFoundError(GswarmError):
    """No such object."""

    code, status, http = ExitCode.NOT_FOUND, "NOT_FOUND", 404


class RefusedError(GswarmError):
    """The state does not allow it now: a name taken, a chunk held, a model that does not fit."""

    code, status, http = ExitCode.REFUSED, "FAILED_PRECONDITION", 409


class UnreachableError(GswarmError):
    """The host (or a node) does not answer."""

    code, status, http = ExitCode.UNREACHABLE, "UNAVAILABLE", 503


class DeadlineError(GswarmError):
    """It took longer than was allowed."""

    code, status, http = ExitCode.TIMED_OUT, "DEADLINE_EXCEEDED", 504


class ExhaustedError(GswarmError):
    """A limit is reached: disk, shared memory, queue length, message size."""

    code, status, http = ExitCode.REFUSED, "RESOURCE_EXHAUSTED", 429


CLASSES: tuple[type[GswarmError], ...] = (
    InvalidError,
    UnauthenticatedError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    DeadlineError,
    ExhaustedError,
)


def from_status(status: str, what: str) -> GswarmError:
    """The error of a gRPC status name, for example "NOT_FOUND"."""
    for cls in CLASSES:
        if cls.status == status:
            return cls(what)
    return GswarmError(what)
