"""The protocol of a source, and which one a text such as "file:///models/x" names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from gswarm.errors import InvalidError
from gswarm.units import parse_size

SCHEMES = ("file", "http", "https", "simulated")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file a source offers: its place in the model, and its size when known (bytes)."""

    path: str
    size_bytes: int | None


class Cancelled(Exception):
    """The download is no longer wanted."""


class Source(Protocol):
    """Where a model's files come from. Methods block: call them in a thread."""

    def files(self) -> list[SourceFile]:
        """What there is. Raises GswarmError."""

    def local(self, file: SourceFile) -> Path | None:
        """The file itself when it lies on this machine, to be copied; None: fetch it."""

    def fetch(
        self, file: SourceFile, target: Path, progress: Callable[[int], None], cancelled: threading.Event
    ) -> None:
        """Bring a file to `target`, going on where an earlier try stopped. Raises GswarmError, Cancelled."""


def check(text: str) -> str:
    """The scheme of a source. Raises InvalidError for what no source understands."""
    scheme = text.partition(":")[0]
    if scheme not in SCHEMES or text == scheme:
        raise InvalidError(
            f"{without_secrets(text)!r} is no source",
            next="write file:///path, https://host/path or simulated:16GiB",
            field="source",
        )
    if scheme == "simulated":
        simulated_size(text)
        return scheme
    try:
        parts = urlsplit(text)
        if scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/") or "\0" in unquote(text):
                raise InvalidError(
                    f"{text!r} is no file source",
                    next="write file:// and an absolute path: file:///models/x",
                    field="source",
                )
            if parts.query or parts.fragment:
                raise InvalidError(f"{text!r} is no path", next="write %23 for # and %3F for ?", field="source")
        elif not parts.hostname or parts.port == 0:
            raise InvalidError(f"{without_secrets(text)!r} names no host or port", field="source")
    except ValueError as error:  # of urlsplit, and of a port that is no number
        raise InvalidError("the source is no URL", why=str(error), field="source") from None
    return scheme


def simulated_size(text: str) -> int:
    """Bytes of a "simulated:16GiB" source. Raises InvalidError."""
    try:
        size = parse_size(text.partition(":")[2])
    except ValueError:
        size = 0
    if not size:
        raise InvalidError(f"{text!r} names no size", next="write for example simulated:16GiB", field="source")
    return size


def without_secrets(text: str) -> str:
    """A source as it may be shown and kept: user, password and query removed."""
    if not text.startswith(("http://", "https://")):
        return text
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_source(text: str, *, file_roots: tuple[Path, ...] | None) -> Source:
    """The source of a text. `file_roots` limits file://; None: any readable path. Raises InvalidError, ForbiddenError."""
    from gswarm.model.sources.file import FileSource
    from gswarm.model.sources.http import HttpSource

    scheme = check(text)
    if scheme == "file":
        return FileSource(Path(unquote(urlsplit(text).path)), file_roots)
    return HttpSource(text)
