"""A model file over HTTP, resumed where it stopped as long as it is still the same file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from gswarm.errors import GswarmError, NotFoundError, UnreachableError
from gswarm.model.sources.source import Cancelled, SourceFile, without_secrets

TRIES = 5
PAUSE_S = 0.5
STEP = 1 << 20
"""Progress is told every so many bytes."""
PLAIN = {"Accept-Encoding": "identity"}


class HttpSource:
    """One file at a URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._shown = without_secrets(url)

    def _client(self) -> httpx.Client:
        return httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0, connect=10.0))

    def files(self) -> list[SourceFile]:
        """The file, with its size when the server tells it."""
        try:
            with self._client() as client:
                answer = client.head(self._url, headers=PLAIN)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise UnreachableError(f"{self._shown} cannot be reached", why=str(error)) from None
        if answer.status_code >= 400 and answer.status_code not in (403, 405, 501):
            raise self._refused(answer)
        size = answer.headers.get("content-length") if answer.status_code < 400 else None
        name = PurePosixPath(unquote(urlsplit(self._url).path)).name or "model"
        return [SourceFile(name, int(size) if size and size.isdecimal() else None)]

    def _refused(self, answer: httpx.Response) -> GswarmError:
        if answer.status_code in (404, 410):
            return NotFoundError(f"{self._shown} does not exist", field="source")
        return GswarmError(f"{self._shown} cannot be read", why=f"HTTP {answer.status_code}")

    def local(self, file: SourceFile) -> Path | None:
        """Never on this machine."""
        return None

    def fetch(
        self, file: SourceFile, target: Path, progress: Callable[[int], None], cancelled: threading.Event
    ) -> None:
        """Download to `target`; a dropped connection is resumed with a range, if the ETag still holds."""
        tries = 0
        while True:
            before = target.stat().st_size if target.exists() else 0
            try:
                self._try(file, target, progress, cancelled)
                return
            except (httpx.HTTPError, _Short) as error:
                after = target.stat().st_size if target.exists() else 0
                tries = 1 if after > before else tries + 1
                if tries >= TRIES:
                    raise UnreachableError(
                        f"{self._shown} breaks off", why=str(error), next="try again; what has arrived is kept"
                    ) from None
                if cancelled.wait(PAUSE_S * tries):
                    raise Cancelled from None

    def _try(self, file: SourceFile, target: Path, progress: Callable[[int], None], cancelled: threading.Event) -> None:
        note = target.with_name(f"{target.name}.json")
        done = target.stat().st_size if target.exists() else 0
        tag, size = _read(note)
        headers = PLAIN | ({"Range": f"bytes={done}-", "If-Range": tag} if done and tag else {})
        with self._client() as client, client.stream("GET", self._url, headers=headers) as answer:
            resumed = answer.status_code == 206
            if answer.status_code == 416 and done == size and answer.headers.get("content-range") == f"bytes */{size}":
                return  # all of it had come already
            # Not every server heeds If-Range: what it sends must be of the same file, and go on where we stopped.
            if answer.status_code == 416 or (resumed and not _goes_on(answer, tag, done)):
                target.unlink(missing_ok=True)
                raise _Short("the file is not what it was")
            if answer.status_code not in (200, 206):
                raise self._refused(answer)
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise GswarmError(f"{self._shown} cannot be read", why="the server sends it compressed, unasked")
            done = done if resumed else 0
            expected = _total(answer, done)
            if expected is None and not resumed:
                expected = file.size_bytes
            with target.open("ab" if resumed else "wb") as out:
                if not resumed:
                    new_tag = answer.headers.get("etag", "")
                    # A weak tag does not promise the same bytes: then an interrupted download starts over.
                    note.write_text(json.dumps(["" if new_tag.startswith("W/") else new_tag, expected]))
                told = done
                for piece in answer.iter_raw():  # as it comes: what a cut leaves of a bigger piece would be lost
                    if cancelled.is_set():
                        raise Cancelled
                    out.write(piece)
                    done += len(piece)
                    if done - told >= STEP:
                        progress(told := done)
            progress(done)
        if expected is not None and done < expected:
            raise _Short(f"{done} of {expected} bytes came")


class _Short(Exception):
    """Fewer bytes came than were promised."""


def _goes_on(answer: httpx.Response, tag: str, offset: int) -> bool:
    return bool(
        answer.headers.get("etag") == tag and answer.headers.get("content-range", "").startswith(f"bytes {offset}-")
    )


def _total(answer: httpx.Response, offset: int) -> int | None:
    length = answer.headers.get("content-length", "")
    return offset + int(length) if length.isdecimal() else None


def _read(note: Path) -> tuple[str, int | None]:
    """ETag and size of the file that a download was begun of, as noted beside it."""
    try:
        tag, size = json.loads(note.read_text())
    except (OSError, ValueError):
        return "", None
    return tag, size
