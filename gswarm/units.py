"""Numbers for people: sizes, durations, ages. Fixed rules, so that nothing jumps."""

from __future__ import annotations

from datetime import UTC, datetime

NA = "NA"
_SUFFIXES = ("", "k", "M", "G", "T", "P")


def size(value: int | float | None) -> str:
    """Bytes in powers of 1024, three significant digits at most: 0, 512, 8.0M, 16G."""
    if value is None:
        return NA
    amount = float(value)
    for suffix in _SUFFIXES:
        if amount < 999.5 or suffix == _SUFFIXES[-1]:
            break
        amount /= 1024
    if not suffix:
        return str(int(amount))
    return f"{amount:.1f}{suffix}" if amount < 9.95 else f"{amount:.0f}{suffix}"


def count(value: int | float | None) -> str:
    """A number in powers of 1000: 0, 812, 1.3k, 2.1M."""
    if value is None:
        return NA
    amount = float(value)
    for suffix in _SUFFIXES:
        if abs(amount) < 999.5 or suffix == _SUFFIXES[-1]:
            break
        amount /= 1000
    if not suffix:
        return f"{amount:.0f}"
    return f"{amount:.1f}{suffix}" if amount < 9.95 else f"{amount:.0f}{suffix}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 0.4s, 12s, 3m20, 2h17, 3d4h."""
    if seconds is None:
        return NA
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}" if whole % 60 else f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def age(seconds: float | None) -> str:
    """An age that steps: 1 s below 10 s, 5 s below a minute, minutes above."""
    if seconds is None:
        return NA
    whole = max(0, int(seconds))
    if whole < 10:
        return f"{whole}s"
    if whole < 60:
        return f"{whole - whole % 5}s"
    if whole < 3600:
        return f"{whole // 60}m"
    return (
        f"{whole // 3600}h{whole % 3600 // 60:02d}" if whole < 86400 else f"{whole // 86400}d{whole % 86400 // 3600}h"
    )


def since(then: datetime | None, now: datetime | None = None) -> str:
    """The age of a moment."""
    if then is None:
        return NA
    return age(((now or datetime.now(UTC)) - then).total_seconds())


def clock(moment: datetime | None) -> str:
    """A moment in local time, to the second."""
    return NA if moment is None else moment.astimezone().strftime("%H:%M:%S")


def parse_size(text: str) -> int:
    """Bytes of "16GiB", "500M", "1.5T" (all powers of 1024) or a plain number. Raises ValueError."""
    cleaned = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = 1
    if cleaned and cleaned[-1] in "KMGTP":
        factor = 1024 ** ("KMGTP".index(cleaned[-1]) + 1)
        cleaned = cleaned[:-1]
    value = float(cleaned) * factor
    if not 0 <= value < 2**63:
        raise ValueError(text)
    return int(value)


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "10m", "1h30m" or "2d". Raises ValueError."""
    import re

    if not re.fullmatch(r"\d+(\.\d+)?|(\d+(\.\d+)?[smhd])+", text):
        raise ValueError(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    return sum(float(number) * _SECONDS[unit or "s"] for number, unit in parts)
