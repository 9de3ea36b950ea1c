"""A moment of a recording: which one a text means, and what was sampled there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from gswarm.errors import InvalidError

if TYPE_CHECKING:
    from gswarm.profiler.columns import Rows
    from gswarm.profiler.segments import Segment


class Moments:
    """The newest sample of each device at a moment, as a mirror shows them."""

    def __init__(self, found: Sequence[Rows], segments: Sequence[Segment], until_us: int) -> None:
        self._found, self._segments, self._until_us = found, segments, until_us

    @cached_property
    def _newest(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        from gswarm.profiler.columns import absent

        at: dict[str, float] = {}
        values: dict[str, dict[str, float]] = {}
        for rows in self._found:
            stamps = (rows.times_us / 1e6).tolist()
            fresh = [not (device in at and at[device] > stamps[i]) for i, device in enumerate(rows.device_ids)]
            for i, device in enumerate(rows.device_ids):
                if fresh[i]:
                    at[device], values[device] = stamps[i], {}
            for name, column in rows.columns.items():
                for i, (number, missing) in enumerate(zip(column.tolist(), absent(column).tolist(), strict=True)):
                    if fresh[i] and not missing:
                        values[rows.device_ids[i]][name] = number
        return at, values

    @property
    def at(self) -> Mapping[str, float]:
        """Device id to the time of its sample, seconds since the epoch."""
        return self._newest[0]

    @property
    def values(self) -> Mapping[str, Mapping[str, float]]:
        """Device id to metric to value; what is NA is not there."""
        return self._newest[1]

    @cached_property
    def reasons(self) -> Mapping[str, Mapping[str, str]]:
        """Device id to metric to why it is NA; a reason holds until a value comes."""
        found: dict[str, dict[str, str]] = {}
        for segment in self._segments:
            for device, told in segment.reasons(self._until_us).items():
                found.setdefault(device, {}).update(told)
        nothing: dict[str, float] = {}
        return {
            device: {name: why for name, why in told.items() if name not in self.values.get(device, nothing)}
            for device, told in found.items()
        }


def parse_at(text: str, start: datetime, end: datetime) -> datetime:
    """The moment of `+12m` or `+90s` (from the start), `12:04:31` (local time) or an ISO time. Raises InvalidError."""
    if match := re.fullmatch(r"\+(\d+(?:\.\d+)?)(s|m|h)?", text):
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]
        # Beyond the end is the end anyway; ages beyond it are no date at all.
        return start + timedelta(seconds=min(seconds, 1e9))
    if match := re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", text):
        local = start.astimezone()
        seconds = float(match[3] or 0)
        if int(match[1]) < 24 and int(match[2]) < 60 and seconds < 60:
            when = local.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0) + timedelta(
                seconds=seconds
            )
            if when < start - timedelta(minutes=1) and when + timedelta(days=1) <= end + timedelta(minutes=1):
                when += timedelta(days=1)
            return when.astimezone(UTC)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidError(
            f"{text!r} is no time in a recording", next="write +12m, 12:04:31 or 2026-11-24T12:04:31Z", field="at"
        ) from None
    return (when if when.tzinfo else when.astimezone()).astimezone(UTC)
