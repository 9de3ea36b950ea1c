"""What a recording says of itself, and which files it has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gswarm import __version__, net
from gswarm.errors import InvalidError, NotFoundError
from gswarm.profiler.journal import FORMAT

MANIFEST = "manifest.json"
_SEGMENT = re.compile(r"(journal|state|metrics|events)-(\d{4,})(\.parquet)?")
OLD_JOURNAL = "journal"
"""The only segment of a recording of format 1."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`."""

    name: str
    interval_s: float
    nodes: tuple[str, ...] = ()
    """Empty: all."""
    metrics: tuple[str, ...] = ()
    """Empty: all."""
    tags: Mapping[str, str] = field(default_factory=dict)
    started_at: str = ""
    stopped_at: str = ""
    """Empty: it records, or the host was killed."""
    actor: str = ""
    gswarm: str = __version__
    payloads: bool = False
    slowest_s: float = 0.0
    """Over 0: sampled at `interval_s` only while values moved, else as seldom as this."""
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Put it beside the other files, whole or not at all."""
        net.write_private(directory / MANIFEST, json.dumps(asdict(self), indent=2) + "\n")


def read(directory: Path) -> Manifest:
    """The manifest of a recording. Raises NotFoundError, or InvalidError for a damaged or newer one."""
    path = directory / MANIFEST
    if not path.is_file():
        raise NotFoundError(
            f"{directory} is no recording",
            why=f"it has no {MANIFEST}",
            next="give a recording's directory, or the name of a session that this machine's host recorded",
        )
    try:
        body = json.loads(path.read_text())
        version = int(body["format"])
        if version <= FORMAT:
            return _parsed(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidError(f"{path} is damaged", why=str(error)) from None
    raise InvalidError(
        f"{directory} was recorded by a newer gswarm",
        why=f"its format is {version}, this one reads up to {FORMAT}",
        next="upgrade gswarm",
    )


def _parsed(body: Mapping[str, Any]) -> Manifest:
    return Manifest(
        str(body["name"]),
        float(body["interval_s"]),
        tuple(str(name) for name in body.get("nodes", ())),
        tuple(str(name) for name in body.get("metrics", ())),
        {str(key): str(value) for key, value in body.get("tags", {}).items()},
        str(body.get("started_at", "")),
        str(body.get("stopped_at", "")),
        str(body.get("actor", "")),
        str(body.get("gswarm", "")),
        bool(body.get("payloads", False)),
        float(body.get("slowest_s", 0.0)),
        int(body["format"]),
    )


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one segment; `sealed` when its `state` stands, which is written last."""

    number: int
    journal: Path
    state: Path
    metrics: Path
    events: Path

    @property
    def sealed(self) -> bool:
        """Whether the journal has been turned into the other three."""
        return self.state.is_file()


def files(directory: Path, number: int) -> Files:
    """Where a segment's files are."""
    return Files(
        number,
        directory / f"journal-{number:04d}",
        directory / f"state-{number:04d}",
        directory / f"metrics-{number:04d}.parquet",
        directory / f"events-{number:04d}.parquet",
    )


def segments(directory: Path) -> list[Files]:
    """The segments that have a journal or are sealed, in order."""
    if (old := directory / OLD_JOURNAL).is_file():
        known = files(directory, 0)
        return [Files(0, old, known.state, known.metrics, known.events)]
    numbers = {
        int(match[2])
        for path in directory.iterdir()
        if (match := _SEGMENT.fullmatch(path.name)) and match[1] in ("journal", "state")
    }
    return [files(directory, number) for number in sorted(numbers)]


def adopt(directory: Path) -> None:
    """Bring an unsealed recording of format 1 to segments; one that is sealed stays as it is, and readable."""
    old = directory / OLD_JOURNAL
    if old.is_file() and not list(directory.glob("metrics-*.parquet")):
        known = read(directory)
        old.rename(files(directory, 1).journal)
        replace(known, format=FORMAT).write(directory)
