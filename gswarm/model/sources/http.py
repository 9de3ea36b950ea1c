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
                answer = client.head(self._url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(f"{self._shown} cannot be reached", why=str(error)) from None
        if answer.status_code == 404:
            raise NotFoundError(f"{self._shown} does not exist", field="source")
        if answer.status_code >= 400 and answer.status_code not in (403, 405, 501):
            raise GswarmError(f"{self._shown} cannot be read", why=f"HTTP {answer.status_code}")
        size = answer.headers.get("content-length") if answer.status_code < 400 else None
        name = PurePosixPath(unquote(urlsplit(self._url).path)).name or "model"
        return [SourceFile(name, int(size) if size and size.isdecimal() else None)]

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
                self._try(target, progress, cancelled)
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

    def _try(self, target: Path, progress: Callable[[int], None], cancelled: threading.Event) -> None:
        tag_path = target.with_name(f"{target.name}.etag")
        done = target.stat().st_size if target.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        tag = _read_tag(tag_path)
        if done and tag:
            headers |= {"Range": f"bytes={done}-", "If-Range": tag}
        with self._client() as client, client.stream("GET", self._url, headers=headers) as answer:
            if answer.status_code == 416 and done:
                target.unlink()
                raise _Short("the file is not what it was")
            if answer.status_code not in (200, 206):
                raise GswarmError(f"{self._shown} cannot be read", why=f"HTTP {answer.status_code}")
            resumed = answer.status_code == 206
            done = done if resumed else 0
            if not resumed:
                new_tag = answer.headers.get("etag", "")
                # A weak tag does not promise the same bytes: then an interrupted download starts over.
                tag_path.write_text(json.dumps("" if new_tag.startswith("W/") else new_tag))
            expected = _total(answer, done)
            with target.open("ab" if resumed else "wb") as out:
                for piece in answer.iter_raw(1 << 20):
                    if cancelled.is_set():
                        raise Cancelled
                    out.write(piece)
                    done += len(piece)
                    progress(done)
        if expected is not None and done < expected:
            raise _Short(f"{done} of {expected} bytes came")
        tag_path.unlink(missing_ok=True)


class _Short(Exception):
    """Fewer bytes came than were promised."""


def _total(answer: httpx.Response, offset: int) -> int | None:
    length = answer.headers.get("content-length", "")
    return offset + int(length) if length.isdecimal() else None


def _read_tag(path: Path) -> str:
    try:
        return str(json.loads(path.read_text()))
    except (OSError, ValueError):
        return ""
