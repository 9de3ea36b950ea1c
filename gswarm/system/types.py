"""What this machine's own actions return."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of doctor: what was found, and what to do about it."""

    id: str
    verdict: Verdict
    found: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, its value, and where that comes from."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Daemon:
    """A background process of this machine."""

    role: str
    state: str
    pid: int
    address: str
    log: str
