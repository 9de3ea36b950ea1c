"""Models that lie on the node that stores them: a directory, or one file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from gswarm.errors import ForbiddenError, InvalidError, NotFoundError
from gswarm.model.sources.source import SourceFile

LIMIT = 10_000


class FileSource:
    """A path on this machine. Links are followed, as in a hub's cache; with `roots` only within them."""

    def __init__(self, path: Path, roots: tuple[Path, ...] | None) -> None:
        """Raises ForbiddenError outside `roots`, NotFoundError when nothing is there."""
        self.path = path.resolve()
        self._roots = None if roots is None else [root.resolve() for root in roots]
        self._check(path)
        if not self.path.exists():
            raise NotFoundError(f"{path} does not exist on this node", field="source")

    def _check(self, path: Path) -> None:
        target = path.resolve()
        if self._roots is not None and not any(target.is_relative_to(root) for root in self._roots):
            raise ForbiddenError(
                f"{path} may not be read for a model",
                why="host or agent is beyond loopback",
                next="name its directory in client.file_roots on that node",
            )

    def files(self) -> list[SourceFile]:
        """Every regular file below the path, sorted; hidden ones left out."""
        if self.path.is_file():
            return [SourceFile(self.path.name, self.path.stat().st_size)]
        found = []
        for path in sorted(self.path.rglob("*")):
            inside = path.relative_to(self.path)
            if any(part.startswith(".") for part in inside.parts) or not path.is_file():
                continue
            self._check(path)
            found.append(SourceFile(inside.as_posix(), path.stat().st_size))
            if len(found) > LIMIT:
                raise InvalidError(f"{self.path} has more than {LIMIT} files", next="name the model's own directory")
        if not found:
            raise InvalidError(f"{self.path} has no files", field="source")
        return found

    def local(self, file: SourceFile) -> Path | None:
        """Its path."""
        return self.path if self.path.is_file() else self.path / file.path

    def fetch(
        self, file: SourceFile, target: Path, progress: Callable[[int], None], cancelled: threading.Event
    ) -> None:
        """Never needed: the files are local."""
        raise NotImplementedError("local files are copied, not fetched")
